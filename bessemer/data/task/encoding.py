"""Samples become documents: tokens, and which of them are learnt.

Texts:         BOS prompt answer EOS     learnt: answer and EOS; tokenised apart, as they are when it is asked
Conversations: what the template writes. Special tokens are tokens where the template wrote them and letters
               where somebody spelt them: each such spelling goes through the template between two marks of
               Unicode's private use. A text is cut where an answer begins and ends, so that its tokens are
               those that a model which was asked gives.
An answer ends with the token that closes its turn. What follows the last of them is left out: it could
neither be learnt nor be seen by what is.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer as Engine

from bessemer.data.fitting import Spans
from bessemer.data.task.render import Renderer
from bessemer.data.task.samples import Message, Sample
from bessemer.data.task.templates import Template
from bessemer.data.task.unusable import Unusable
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.errors import DataError

_PRIVATE = range(0xE000, 0xF8FF)
_SPELLING = re.compile(r"<[^<>\s]{1,40}>\s*$")
_TAIL = 40  # characters shown of a turn's end


@dataclass(frozen=True)
class Document:
    tokens: list[int]
    spans: Spans


class SampleEncoder:
    """Encodes samples of one task. learn: as finetune.data.learn. Close it."""

    def __init__(self, tokenizer: TextTokenizer, template: Template, learn: str) -> None:
        self._tokenizer, self._template, self._learn = tokenizer, template, learn
        self._engine = Engine.from_str(tokenizer.text)  # special tokens are tokens here
        self._engine.no_padding()
        self._engine.no_truncation()
        added = json.loads(tokenizer.text).get("added_tokens") or []
        self._special = _any_of([token["content"] for token in added if token.get("special")])
        self._any_added = _any_of([token["content"] for token in added])
        self._closing = re.compile(rf"(?:\s|{self._any_added.pattern})*")
        self._newline, alone, behind = [
            self._engine.encode(text, add_special_tokens=False).ids for text in ("\n", "a b", "\na b")
        ]
        self._puts_blank = alone != behind[len(self._newline) :]
        self._renderer = Renderer(template, tokenizer.special_words())
        self.end: str | None = None  # what closed the assistant's turns

    def documents(self, samples: Sequence[Sample]) -> list[list[Document] | Unusable]:
        """Of each sample its documents, or why it has none."""
        texts = iter(self._texts([sample for sample in samples if sample.texts]))
        chats = iter(self._chats([sample for sample in samples if sample.chats]))
        return [next(texts) if sample.texts else next(chats) for sample in samples]

    def close(self) -> None:
        self._renderer.close()

    def _texts(self, samples: Sequence[Sample]) -> Iterator[list[Document]]:
        texts = [text for sample in samples for text in sample.texts]
        encoded = iter(self._tokenizer.encode(texts) if texts else [])
        for sample in samples:
            first, *rest = [next(encoded) for _ in sample.texts]
            if rest:
                yield [self._document(first, answer) for answer in rest]
            else:
                yield [self._document([], first, is_class=sample.label is not None)]

    def _document(self, asked: list[int], told: list[int], *, is_class: bool = False) -> Document:
        bos_id, eos_id = self._tokenizer.bos_id, self._tokenizer.eos_id
        begin_ids = [] if bos_id is None else [bos_id]
        # A text that is told apart ends where it ends: so it is given to transformers' classes as well.
        tokens = [*begin_ids, *asked, *told, *([] if is_class else [eos_id])]
        begin = 1 if self._learn == "all" else max(1, len(begin_ids) + len(asked))
        return Document(tokens, () if is_class else ((begin, len(tokens)),))

    def _chats(self, samples: Sequence[Sample]) -> list[list[Document] | Unusable]:
        sides = [(sample, number) for sample in samples for number in range(len(sample.chats))]
        marked = [self._marked(sample.chats[number]) for sample, number in sides]
        turns = [sample.turns(number, self._learn) for sample, number in sides]
        asked = [(messages, wanted) for (_, messages), wanted in zip(marked, turns, strict=True)]
        rendered = self._renderer.turns(asked)
        drafts = [
            text if isinstance(text, Unusable) else self._draft(*text, marks)
            for text, (marks, _) in zip(rendered, marked, strict=True)
        ]
        pieces = [draft.pieces for draft in drafts if isinstance(draft, _Draft)]
        ids = iter(self._encode([piece for each in pieces for piece in each]))
        documents = iter(
            [draft if isinstance(draft, Unusable) else self._finished(draft, ids) for draft in drafts]
        )
        found: list[list[Document] | Unusable] = []
        for sample in samples:
            each = [next(documents) for _ in sample.chats]
            useless = [one for one in each if isinstance(one, Unusable)]
            found.append(useless[0] if useless else [one for one in each if isinstance(one, Document)])
        return found

    def _draft(self, text: str, turns: Sequence[tuple[int, int, str]], marks: str) -> "_Draft | Unusable":
        """A rendered conversation in pieces, cut where an answer begins and ends."""
        try:
            spans = [(span[0], self._turn_end(text, span)) for span in turns]
        except Unusable as why:
            return why
        if not spans:
            return Unusable("masked", "nothing that the assistant says is learnt")
        borders = sorted({0, *(place for span in spans for place in span)})
        if self._learn == "all":
            borders.append(len(text))
        pieces: list[_Piece] = []
        counts = {0: 0}
        for begin, end in pairwise(borders):
            pieces += _pieces(text[begin:end], marks, is_first=begin == 0)
            counts[end] = len(pieces)
        return _Draft(pieces, [(counts[begin], counts[end]) for begin, end in spans])

    def _finished(self, draft: "_Draft", ids: Iterator[list[int]]) -> Document:
        tokens: list[int] = []
        places = [0]
        for _ in draft.pieces:
            tokens += next(ids)
            places.append(len(tokens))
        spans = tuple((max(1, places[begin]), places[end]) for begin, end in draft.spans)
        return Document(tokens, ((1, len(tokens)),) if self._learn == "all" else spans)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What a model is asked with. Raises Unusable."""
        marks, marked = self._marked(messages)
        pieces = _pieces(self._renderer.prompt(marked), marks, is_first=True)
        return [token for ids in self._encode(pieces) for token in ids]

    def _marked(self, messages: Sequence[Message]) -> tuple[str, list[Message]]:
        """(two characters that occur nowhere, messages with them around every special token's spelling)."""
        whole = json.dumps(messages, ensure_ascii=False)
        if not self._special.search(whole):
            return "", list(messages)
        unused = (chr(code) for code in _PRIVATE if chr(code) not in whole)
        marks = next(unused) + next(unused)
        return marks, [
            {key: value if key == "role" else self._mark(value, marks) for key, value in message.items()}
            for message in messages
        ]

    def _mark(self, value: Any, marks: str) -> Any:
        if isinstance(value, str):
            return self._special.sub(lambda found: marks[0] + found[0] + marks[1], value)
        if isinstance(value, dict):
            return {key: self._mark(one, marks) for key, one in value.items()}
        return [self._mark(one, marks) for one in value] if isinstance(value, list) else value

    def _encode(self, pieces: Sequence["_Piece"]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in pieces]
        for spelt, engine in ((False, self._engine), (True, self._tokenizer.engine)):
            places = [place for place, piece in enumerate(pieces) if piece.is_spelt == spelt]
            # Some tokenizers put a blank before whatever text begins; behind a line end it does not begin.
            lines = [self._puts_blank and not pieces[place].is_first for place in places]
            texts = ["\n" * line + pieces[place].text for place, line in zip(places, lines, strict=True)]
            encoded = engine.encode_batch_fast(texts, add_special_tokens=False)
            for place, line, one in zip(places, lines, encoded, strict=True):
                found[place] = self._behind_line(engine, pieces[place].text, one.ids) if line else one.ids
        return found

    def _behind_line(self, engine: Engine, text: str, ids: list[int]) -> list[int]:
        size = len(self._newline)
        if ids[:size] == self._newline:
            return ids[size:]
        return list(engine.encode(text, add_special_tokens=False).ids)

    def _turn_end(self, text: str, span: tuple[int, int, str]) -> int:
        """Behind the token that closes the turn: the first special one that only others follow."""
        begin, end, rest = span
        said = text[begin:end]
        closers = list(self._special.finditer(said)) or list(self._any_added.finditer(said))
        for found in closers:
            # What somebody spelt has a mark behind it, which nothing that closes has.
            if self._closing.fullmatch(said[found.end() :] + rest):
                if not said[: found.start()].strip():
                    raise Unusable("empty", "the template writes nothing of an answer")
                self.end = found[0]
                return begin + found.end()
        if rest.strip():
            alone, followed = rest[:_TAIL], text[end : end + _TAIL]
            raise self._renderer.unstable(
                f"{alone!r} where nothing follows, {followed!r} where something does"
            )
        raise self._not_closed(said.rstrip())

    def _not_closed(self, said: str) -> DataError:
        eos = self._tokenizer.engine.id_to_token(self._tokenizer.eos_id)
        spelt = _SPELLING.search(said)
        missing = spelt[0] if spelt else eos
        fix = f"write {{{{ eos_token }}}} behind what the assistant says, in {self._template.name}"
        if spelt:
            fix = (
                f'set finetune.add_tokens = ["{missing}"] with all others of the template, '
                'or finetune.data.template = "plain"'
            )
        return DataError(
            f"the chat template {self._template.name} does not close an assistant turn: {missing} is missing",
            found=f"a turn that ends with {said[-_TAIL:]!r}"
            + (", no token of the tokenizer" if spelt else ""),
            wanted=f"the end token {missing} behind each answer, or the model would never learn to stop",
            fix=fix,
        )


@dataclass(frozen=True)
class _Piece:
    """What is encoded at once."""

    text: str
    is_first: bool  # of its document
    is_spelt: bool  # a special token that somebody spelt: it stays text


@dataclass(frozen=True)
class _Draft:
    pieces: list[_Piece]
    spans: list[tuple[int, int]]  # of pieces that are learnt


def _pieces(text: str, marks: str, *, is_first: bool) -> list[_Piece]:
    """What stands between the two marks apart from the rest."""
    parts = re.split(f"{marks[0]}(.*?){marks[1]}", text, flags=re.DOTALL) if marks else [text]
    pieces = []
    for number, part in enumerate(parts):
        # A template may have taken a text apart between the two: a lone mark is dropped.
        whole = part.replace(marks[0], "").replace(marks[1], "") if marks else part
        if whole:
            pieces.append(_Piece(whole, is_first and number == 0, number % 2 == 1))
    return pieces


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
