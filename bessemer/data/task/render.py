"""Chat templates rendered in a process of their own (render_worker.py says why and how).

Cost on one core: 0.1 s to start, then 70 µs a conversation of four turns, in exchanges of 32: one by one,
changing between the processes costs more than the rendering.
"""

import json
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from bessemer.data.task.samples import Message, Tool
from bessemer.data.task.templates import Template
from bessemer.data.task.unusable import Unusable
from bessemer.errors import DataError
from bessemer.processes import worker_command


class Asked(NamedTuple):
    messages: Sequence[Message]
    learnt: Sequence[int]  # which of them
    tools: Sequence[Tool] = ()


Span = tuple[int, int, str | None]  # begin, end, rest (render_worker.py)
Rendered = tuple[str, dict[int, Span]]  # a text, and where its assistant turns are: all that are learnt,
# of the others those that are written alike wherever they stand
_AT_ONCE = 32  # conversations in one exchange with the process
_PATIENCE_S = 120.0  # of a machine with other work; a template's own second is counted by the kernel
_MOST_TIMEOUTS = 10  # rows that are given a second each: more is the template's fault


class Renderer:
    """Use as a context manager. variables: what the template may name besides messages: bos_token …"""

    def __init__(self, template: Template, variables: dict[str, str]) -> None:
        self._template, self._variables = template, variables
        self._process: subprocess.Popen[bytes] | None = None
        self._timeouts = 0

    def turns(self, asked: Sequence[Asked]) -> list[Rendered | Unusable]:
        """Of each conversation its text with the spans of its assistant turns, or why it has none.

        What is wrong with the template itself is a DataError.
        """
        rows = [_row(one, prompt=False) for one in asked]
        return [
            answer if isinstance(answer, Unusable) else _rendered(row, answer)
            for row, answer in zip(rows, self._ask(rows), strict=True)
        ]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Rendered:
        """The text behind which the assistant answers. Raises Unusable."""
        row = _row(Asked(messages, [], tools), prompt=True)
        (answer,) = self._ask([row])
        if isinstance(answer, Unusable):
            raise answer
        return _rendered(row, answer)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> "Renderer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any] | Unusable]:
        for begin in range(0, len(rows), _AT_ONCE):
            if self._process is None:  # also where the exchange before this one ended it
                self._start()
            some = rows[begin : begin + _AT_ONCE]
            answers = self._exchange(some)
            if answers is None and len(some) > 1:  # one of them had no end; which, is found out one by one
                for row in some:
                    yield from self._ask([row])
            elif answers is None:
                yield self._timed_out()
            else:
                yield from map(self._checked, answers)

    def _timed_out(self) -> Unusable:
        self._timeouts += 1
        if self._timeouts > _MOST_TIMEOUTS:
            raise self._useless("it takes more than 1 s for a conversation", "for several of them")
        return Unusable("template.timeout", "more than 1 s")

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any] | Unusable:
        if "unstable" in answer:
            raise self.unstable(f"message {answer['unstable'] + 1}: {answer['told']}")
        return Unusable(answer["reason"], answer["told"]) if "reason" in answer else answer

    def _start(self) -> None:
        self._process = subprocess.Popen(
            worker_command("bessemer.data.task.render_worker"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        answer = self._exchange({"source": self._template.source, "variables": self._variables})
        if answer is None or "failed" in answer:
            why = "it takes more than 1 s to read" if answer is None else answer["failed"]
            raise self._useless("it cannot be read", why)

    def _exchange(self, row: Any) -> Any:
        """The answer; None where the template had no end."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(row).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone, as the missing answer tells
        if not select.select([process.stdout], [], [], _PATIENCE_S)[0]:
            process.kill()
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        code = process.wait()
        self.close()
        assert -code in (signal.SIGPROF, signal.SIGKILL), f"the template's process ended with {code}"
        return None

    def _useless(self, problem: str, found: str) -> DataError:
        return DataError(
            f"the chat template {self._template.name} is of no use: {problem}",
            found=found,
            wanted="a Jinja template that makes a text of `messages` in a second",
            fix='mend it, or set finetune.data.template = "chatml", "llama3", "qwen3" or "plain"',
        )

    def unstable(self, found: str) -> DataError:
        return DataError(
            f"the chat template {self._template.name} writes a turn otherwise when others follow it",
            found=found,
            wanted="a conversation's text that begins with the text of its first messages, so that what is "
            "learnt is what will be asked for; or `{% generation %}` around what the assistant says",
            fix='set finetune.data.learn = "last", or template = "qwen3", "chatml", "llama3" or "plain"',
        )


def _row(asked: Asked, *, prompt: bool) -> dict[str, Any]:
    turns = [n for n, message in enumerate(asked.messages) if message["role"] == "assistant"]
    # An empty list would have some templates (Llama 3.1) tell of tools and name none.
    return {**asked._asdict(), "tools": asked.tools or None, "turns": turns, "prompt": prompt}


def _rendered(row: dict[str, Any], answer: dict[str, Any]) -> Rendered:
    spans = zip(row["turns"], answer["spans"], strict=True)
    return answer["text"], {turn: tuple(span) for turn, span in spans if span is not None}
