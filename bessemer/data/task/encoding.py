"""Samples become documents: tokens, and which of them are learnt.

Texts:         BOS prompt answer EOS     learnt: answer and EOS; tokenised apart, as they are when it is asked
Conversations: what the template writes. Its tokens are tokens where it wrote them and letters where somebody
               spelt them: each such spelling goes through the template between two marks of Unicode's
               private use. A text is cut where any answer begins and ends, learnt or not, and so is what a
               model is asked with: what was said before has the tokens that it was learnt with.
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
from bessemer.data.task.render import Rendered, Renderer, Span
from bessemer.data.task.samples import Message, Sample
from bessemer.data.task.templates import Template
from bessemer.data.task.unusable import Unusable
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.errors import DataError

_PRIVATE = range(0xE000, 0xF8FF)
_SPELLING = re.compile(r"<[^<>\s]{1,40}>\s*$")
_TAIL = 40  # characters shown of a turn's end
_ROLES = ("system", "user", "assistant", "tool")


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
        definition = json.loads(tokenizer.text)
        added = definition.get("added_tokens") or []
        words = [token["content"] for token in added]
        special = [token["content"] for token in added if token.get("special")]
        named = tokenizer.special_words()
        own = [*special, *(word for word in named.values() if word in words)]
        written = [*own, *(word for word in words if _writes(template.source, word))]
        # `<think>` and `</think>` are how an assistant marks its words up, where they are no special tokens.
        markup = {word for word in words if {word, f"</{word[1:]}"} <= {*words}}
        markup |= {f"</{word[1:]}" for word in markup}
        self._spelt = _any_of(written)
        self._closer = _any_of([word for word in written if word in own or word not in markup])
        self._special = _any_of(special)
        self._letters = tokenizer.engine if {*written} <= {*special} else _without_tokens(definition)
        self._closing = re.compile(rf"(?:\s|{_any_of(words).pattern})*")
        self._newline, alone, behind = [
            self._engine.encode(text, add_special_tokens=False).ids for text in ("\n", "a b", "\na b")
        ]
        self._puts_blank = alone != behind[len(self._newline) :]
        self._renderer = Renderer(template, named)
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
            text if isinstance(text, Unusable) else self._draft(text, learnt, marks)
            for text, learnt, (marks, _) in zip(rendered, turns, marked, strict=True)
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

    def _draft(self, rendered: Rendered, learnt: Sequence[int], marks: str) -> "_Draft | Unusable":
        """A rendered conversation in pieces, cut where an answer begins and ends."""
        text, turns = rendered
        try:
            spans = [(turns[turn][0], self._turn_end(text, turns[turn])) for turn in learnt]
        except Unusable as why:
            return why
        if not spans:
            return Unusable("masked", "nothing that the assistant says is learnt")
        borders = {*self._borders(text, turns, learnt), *(place for span in spans for place in span)}
        end = len(text) if self._learn == "all" else max(end for _, end in spans)
        pieces, counts = _cut(text[:end], borders, marks)
        return _Draft(pieces, [(counts[begin], counts[end]) for begin, end in spans])

    def _borders(self, text: str, turns: dict[int, Span], learnt: Sequence[int]) -> set[int]:
        """Where the answers that are not learnt begin and end, as far as that can be told."""
        found: set[int] = set()
        for turn, span in turns.items():
            end = None if turn in learnt else self._end_of(text, span)
            if end is not None:
                found |= {span[0], end[0]}
        return found

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
        text, turns = self._renderer.prompt(marked)
        pieces, _ = _cut(text, self._borders(text, turns, []), marks)
        return [token for ids in self._encode(pieces) for token in ids]

    def _marked(self, messages: Sequence[Message]) -> tuple[str, list[Message]]:
        """(two characters that occur nowhere, messages with them around every spelling of a token)."""
        strings = list(_strings(list(messages)))
        if not any(self._spelt.search(one) for one in strings):
            return "", list(messages)
        used = {letter for one in strings for letter in one}
        unused = (chr(code) for code in _PRIVATE if chr(code) not in used)
        marks = next(unused) + next(unused)
        return marks, [
            {
                key: value if key == "role" else self._mark(value, marks, message["role"])
                for key, value in message.items()
            }
            for message in messages
        ]

    def _mark(self, value: Any, marks: str, role: str) -> Any:
        if isinstance(value, str):
            tokens = self._closer if role == "assistant" else self._spelt
            return tokens.sub(lambda found: marks[0] + found[0] + marks[1], value)
        if isinstance(value, dict):
            return {self._mark(key, marks, role): self._mark(one, marks, role) for key, one in value.items()}
        return [self._mark(one, marks, role) for one in value] if isinstance(value, list) else value

    def _encode(self, pieces: Sequence["_Piece"]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in pieces]
        for spelt, engine in ((False, self._engine), (True, self._letters)):
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

    def _turn_end(self, text: str, span: Span) -> int:
        """Behind the token that closes the turn. Raises Unusable."""
        begin, end, rest = span
        said = text[begin:end]
        closed = self._end_of(text, span)
        if closed is not None:
            behind, closer = closed
            if not text[begin : behind - len(closer)].strip():
                raise Unusable("empty", "the template writes nothing of an answer")
            self.end = closer
            return behind
        if rest is not None and rest.strip():
            alone, followed = rest[:_TAIL], text[end : end + _TAIL]
            raise self._renderer.unstable(
                f"{alone!r} where nothing follows, {followed!r} where something does"
            )
        raise self._not_closed(said.rstrip())

    def _end_of(self, text: str, span: Span) -> tuple[int, str] | None:
        """(place behind it, token) of what closes a turn: the first special one that only others follow."""
        begin, end, rest = span
        said = text[begin:end]
        for found in list(self._special.finditer(said)) or list(self._closer.finditer(said)):
            # What somebody spelt has a mark behind it, which nothing that closes has.
            if self._closing.fullmatch(said[found.end() :] + (rest or "")):
                return begin + found.end(), found[0]
        # What a template marks as the assistant's may end before the token that closes it.
        behind = self._closer.match(text, end) if rest is None else None
        return None if behind is None else (behind.end(), behind[0])

    def _not_closed(self, said: str) -> DataError:
        eos = self._tokenizer.engine.id_to_token(self._tokenizer.eos_id)
        spelt = _SPELLING.search(said)
        missing = spelt[0] if spelt else eos
        fix = (
            "write {{ eos_token }} behind what the assistant says, "
            f"in the chat template {self._template.name}"
        )
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


def _cut(text: str, borders: set[int], marks: str) -> tuple[list[_Piece], dict[int, int]]:
    """(pieces, how many of them stand before each border)."""
    places = sorted({0, len(text), *(place for place in borders if place < len(text))})
    pieces: list[_Piece] = []
    counts = {0: 0}
    for begin, end in pairwise(places):
        pieces += _pieces(text[begin:end], marks, is_first=begin == 0)
        counts[end] = len(pieces)
    return pieces, counts


def _strings(value: Any) -> Iterator[str]:
    """Every string inside, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _strings(list(pair))
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _writes(source: str, word: str) -> bool:
    """Does a template write this token: as it is, or put together of a role and what is around it?"""
    if word.isspace():  # Gemma's line ends: everybody writes them
        return False
    parts = [word.split(role, 1) for role in _ROLES if role in word]
    return word in source or any(all(part and part in source for part in pair) for pair in parts)


def _without_tokens(definition: dict[str, Any]) -> Engine:
    """The tokenizer, to which every added token's name is text: those that are not special as well."""
    added = [{**token, "special": True} for token in definition["added_tokens"]]
    engine = Engine.from_str(json.dumps({**definition, "added_tokens": added}))
    engine.encode_special_tokens = True
    engine.no_padding()
    engine.no_truncation()
    return engine


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
