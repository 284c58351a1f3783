"""Greedy answers to held-out prompts, and continuations of held-out documents, in batches.

Prompts go in order of length, so that a batch pads little; the result is in the order asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bessemer.checkpoint.load import load_model
from bessemer.data.prepared import Example
from bessemer.data.rows import Rows
from bessemer.data.task.encoding import SampleEncoder
from bessemer.data.task.samples import Message, Tool
from bessemer.data.task.templates import Template
from bessemer.data.task.unusable import Unusable
from bessemer.data.tokens.tokenizer import load as load_tokenizer
from bessemer.data.tokens.tokenizer import read_config
from bessemer.errors import DataError, RecipeError
from bessemer.evaluate.text import exact_match, rouge_l
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.generate import generate, room_of

_BATCH = 16
_PROMPT_TOKENS = 32  # of a document that a pretrained model is to go on with
_SAMPLES = 3


def task_answers(
    model: Decoder, examples: Sequence[Example], tokenizer: Tokenizer, eos_id: int | None, max_tokens: int
) -> list[dict[str, Any]]:
    """One row an example: id, prompt, expected, answer, exact_match, rouge_l."""
    produced = complete(model, [list(example.prompt_ids) for example in examples], eos_id, max_tokens)
    answers = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in produced]
    return [
        {
            "id": example.id,
            "prompt": example.prompt,
            "expected": example.answer,
            "answer": answer,
            "exact_match": exact_match(answer, example.answer),
            "rouge_l": rouge_l(answer, example.answer),
        }
        for example, answer in zip(examples, answers, strict=True)
    ]


def continuations(
    model: Decoder, rows: Rows, tokenizer: Tokenizer, eos_id: int | None, max_tokens: int
) -> list[dict[str, Any]]:
    """What a pretrained model writes after the beginnings of the first held-out documents."""
    openings = _openings(rows, max_tokens)
    produced = complete(model, [prompt for prompt, _ in openings], eos_id, max_tokens)

    def words(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return [
        {"prompt": words(prompt), "answer": words(answer), "expected": words(expected)}
        for (prompt, expected), answer in zip(openings, produced, strict=True)
    ]


@dataclass(frozen=True)
class Completer:
    """A stage's model with its tokenizer, for texts rather than tokens."""

    model: Decoder
    tokenizer: Tokenizer
    bos_id: int | None
    eos_id: int | None
    step: int
    say: Callable[[str], None]  # is told where an answer ends early
    chat: SampleEncoder | None = None  # of a model that was tuned with a chat template

    @staticmethod
    def load(stage: Path, step: int | None, console: Console) -> "Completer":
        loaded = load_model(stage, step, console.line)
        if loaded.shape.labels:
            raise RecipeError(
                f"{stage} cannot write",
                found=f"a head of {loaded.shape.labels} labels",
                wanted="a model with a head for its vocabulary",
                fix="measure it with `bessemer evaluate`, or name the stage that it was made from",
            )
        tokenizer = Tokenizer.from_file(str(loaded.tokenizer_path))
        bos_id, eos_id = loaded.shape.bos_id, loaded.shape.eos_id
        config = read_config(loaded.tokenizer_path.parent)
        chat = None
        if "turn_end_token" in config:
            template = Template("of the tokenizer", str(config["chat_template"]))
            chat = SampleEncoder(load_tokenizer(loaded.tokenizer_path), template, "last")
            eos_id = tokenizer.token_to_id(str(config["turn_end_token"]))
        return Completer(loaded.model, tokenizer, bos_id, eos_id, loaded.step, console.line, chat)

    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        said: Sequence[Message] = (),
        tools: Sequence[Tool] = (),
    ) -> str:
        """The text that follows. Like a training document, the prompt begins with the begin token.

        said: what was said before, to a model that was tuned with a chat template. tools: functions that it
        may call, which it does as its template writes calls: then the text has its special tokens too.
        """
        ids = self._ids(prompt, said, tools)
        room = room_of(self.model.shape, ids)
        if room < max_tokens:
            self.say(f"an answer has room for {room:,} tokens: there the model's original context ends")
        (produced,) = generate(
            self.model,
            [ids],
            max_tokens=max_tokens,
            eos_id=self.eos_id,
            temperature=temperature,
            seed=seed,
        )
        text = str(self.tokenizer.decode(produced, skip_special_tokens=not tools))
        # A template may ask with no blank at its end: then the answer's first word has it.
        return text if self.chat is None else text.removeprefix(" ")

    def _ids(self, prompt: str, said: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        if self.chat is not None:
            try:
                return self.chat.prompt_ids([*said, {"role": "user", "content": prompt}], tools)
            except Unusable as why:
                raise DataError(
                    "the model's chat template cannot write this",
                    found=why.told,
                    wanted="a text of which it makes a turn",
                    fix="ask otherwise, or without --tools" if tools else "ask otherwise",
                ) from why
            finally:
                self.chat.close()
        begin = [] if self.bos_id is None else [self.bos_id]
        return [*begin, *self.tokenizer.encode(prompt, add_special_tokens=False).ids]


def complete(
    model: Decoder, prompts: list[list[int]], eos_id: int | None, max_tokens: int
) -> list[list[int]]:
    """Greedy continuations in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    produced: list[list[int]] = [[] for _ in prompts]
    for begin in range(0, len(order), _BATCH):
        places = order[begin : begin + _BATCH]
        batch = [prompts[place] for place in places]
        for place, ids in zip(
            places, generate(model, batch, max_tokens=max_tokens, eos_id=eos_id), strict=True
        ):
            produced[place] = ids
    return produced


def _openings(rows: Rows, max_tokens: int) -> list[tuple[list[int], list[int]]]:
    """(first tokens of a document, what follows) for the first documents that are long enough."""
    found: list[tuple[list[int], list[int]]] = []
    for index in range(len(rows)):
        row = rows.row(index)
        begins = sorted({int(start) for start in row.starts_T})
        for begin, end in zip(begins, [*begins[1:], len(row.tokens_T)], strict=True):
            # A row's first piece may be the middle of a document: only a new start is a beginning.
            if end - begin > 2 * _PROMPT_TOKENS and (begin > 0 or index == 0):
                tokens = [int(token) for token in row.tokens_T[begin:end]]
                expected = tokens[_PROMPT_TOKENS : _PROMPT_TOKENS + max_tokens]
                found.append((tokens[:_PROMPT_TOKENS], expected))
                if len(found) == _SAMPLES:
                    return found
    return found
