"""The process that renders chat templates: code of others, in Jinja's sandbox, with little to reach for.

    reads   {"source", "variables"}                     once; answers {"ready": true} or {"failed": why}
    then lists of what follows, and answers with a list: one exchange for many rows
            {"messages", "tools", "prompt",             answers {"text", "spans": one of each turn}; `prompt`:
             "turns", "learnt"}                         up to where the next answer begins
    or      {"reason": of this row, "told": why}        the row is left out
            {"unstable": turn, "told": why}             the template is of no use for this

A span is [begin, end, rest]: what an assistant turn adds to the text behind the generation prompt, found by
rendering up to there, or where the template marks `{% generation %}`, as it says. `rest` is what stands there
only where nothing follows the turn; null of a span that the template marks. A turn that is not learnt and is
written otherwise where others follow it has null for a span.
The sandbox keeps a template from Python's objects; time and memory it does not bound, so the kernel does: a
render of more than 1 s of processor time is ended by SIGPROF, whatever it is in, and memory has a limit.
The date is always the one that Llama 3.1 falls back on: the same rows give the same tokens on any day.
What templates are given is what transformers gives them (utils/chat_template_utils.py, 5.24).
"""

import json
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_SECONDS = 1.0
MOST_CHARACTERS = 1 << 20
_MEMORY_BYTES = 1 << 30
_DATE = datetime(2024, 7, 26)

Span = tuple[int, int, str | None]


class TooLongError(Exception):
    """The text has more than MOST_CHARACTERS."""


class Unstable(Exception):
    def __init__(self, turn: int, told: str) -> None:
        super().__init__(told)
        self.turn = turn


class Generation(Extension):
    """`{% generation %}`: what the assistant says. Notes where in the text it is."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        environment.extend(blocks=[], marked=[])

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("note"), [], [], body).set_lineno(line)

    @pass_eval_context
    def note(self, _: Any, caller: Any) -> str:
        said = str(caller())
        blocks: list[str] = self.environment.blocks  # type: ignore[attr-defined]
        begin = sum(map(len, blocks))
        self.environment.marked.append((begin, begin + len(said), None))  # type: ignore[attr-defined]
        return said


class Conversations:
    """A template, and what it makes of conversations."""

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _DATE.strftime
        self._environment, self._variables = environment, variables
        self._template = environment.from_string(source)

    def text(self, row: dict[str, Any], end: int | None, *, prompt: bool) -> tuple[str, list[Span]]:
        """(text of a row's first messages, what it marks as generation)."""
        blocks: list[str] = self._environment.blocks  # type: ignore[attr-defined]
        marked: list[Span] = self._environment.marked  # type: ignore[attr-defined]
        blocks.clear()
        marked.clear()
        size = 0
        given = {"documents": None, **self._variables}
        given.update(messages=row["messages"][:end], tools=row["tools"], add_generation_prompt=prompt)
        with _limited():
            for block in self._template.generate(**given):
                size += len(block)
                if size > MOST_CHARACTERS:
                    raise TooLongError
                blocks.append(block)
        return "".join(blocks), list(marked)

    def turns(self, row: dict[str, Any]) -> tuple[str, Sequence[Span | None]]:
        """(text of all, span of each assistant turn)."""
        text, marked = self.text(row, None, prompt=row["prompt"])
        if marked and len(marked) == len(row["turns"]):
            return text, marked
        spans: list[Span | None] = []
        for turn in row["turns"]:
            try:
                spans.append(self._span(row, turn, text))
            except (Unstable, TemplateError):
                if turn in row["learnt"]:
                    raise
                spans.append(None)
        return text, spans

    def _span(self, row: dict[str, Any], turn: int, text: str) -> Span:
        asked, _ = self.text(row, turn, prompt=True)
        is_last = turn + 1 == len(row["messages"])
        said = text if is_last else self.text(row, turn + 1, prompt=False)[0]
        if not text.startswith(asked):
            same = _same(asked, text)
            raise Unstable(
                turn, f"{asked[same : same + 40]!r} is asked for, {text[same : same + 40]!r} is written"
            )
        same = _same(said, text)
        return len(asked), same, said[same:]


def main() -> None:
    with suppress(ValueError, OSError):  # a system without this limit, or with a lower one
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    conversations: Conversations | None = None
    for line in sys.stdin:
        row = json.loads(line)
        if conversations is None:
            try:
                with _limited():
                    conversations = Conversations(row["source"], row["variables"])
                answer: Any = {"ready": True}
            except (TemplateError, RecursionError, MemoryError) as error:
                answer = {"failed": f"{type(error).__name__}: {error}, line {getattr(error, 'lineno', '?')}"}
        else:
            answer = [_answer(conversations, one) for one in row]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _answer(conversations: Conversations, row: dict[str, Any]) -> dict[str, Any]:
    try:
        text, spans = conversations.turns(row)
        return {"text": text, "spans": spans}
    except TooLongError:
        return {"reason": "template.too_large", "told": f"more than {MOST_CHARACTERS:,} characters"}
    except MemoryError:
        return {"reason": "template.too_large", "told": "more memory than a template gets"}
    except Unstable as error:
        return {"unstable": error.turn, "told": str(error)}
    except Exception as error:  # whatever the template's code runs into with this row
        return {"reason": "template", "told": f"{type(error).__name__}: {error}"[:300]}


@contextmanager
def _limited() -> Iterator[None]:
    """SIGPROF ends the process if this takes more than MOST_SECONDS of its time."""
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _same(part: str, text: str) -> int:
    """How many characters both begin with."""
    if text.startswith(part):
        return len(part)
    return next((n for n, (a, b) in enumerate(zip(part, text, strict=False)) if a != b), len(text))


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


if __name__ == "__main__":
    main()
