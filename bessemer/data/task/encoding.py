"""Samples become documents: tokens, and which of them are learnt.

Texts:         BOS prompt answer EOS     learnt: answer and EOS; tokenised apart, as they are when it is asked
Conversations: what the template writes, with the sample's tools. Its tokens are tokens where it wrote them,
               letters where somebody spelt them (spelt.py); cut where any answer begins or ends (pieces.py).
An answer, which may be a call of a tool, ends with the token that closes its turn. What follows the last of
them is left out: it could neither be learnt nor be seen by what is. What tools answer is never learnt.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bessemer.data.fitting import Spans
from bessemer.data.sources.values import usable_text
from bessemer.data.task.pieces import Piece, PieceEncoder, cut
from bessemer.data.task.render import Asked, Rendered, Renderer, Span
from bessemer.data.task.samples import Message, Sample, Tool
from bessemer.data.task.spelt import MOST_NESTED, Spellings
from bessemer.data.task.templates import Template
from bessemer.data.task.unusable import Unusable
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.errors import DataError

_SPELLING = re.compile(r"<[^<>\s]{1,40}>\s*$")
_TAIL = 40  # characters shown of a turn's end


@dataclass(frozen=True)
class Document:
    tokens: list[int]
    spans: Spans


@dataclass(frozen=True)
class _Draft:
    pieces: list[Piece]
    spans: list[tuple[int, int]]  # of pieces that are learnt


class SampleEncoder:
    """Encodes samples of one task. learn: as finetune.data.learn. Close it."""

    def __init__(self, tokenizer: TextTokenizer, template: Template, learn: str) -> None:
        self._tokenizer, self._template, self._learn = tokenizer, template, learn
        definition, named = json.loads(tokenizer.text), tokenizer.special_words()
        self._spellings = Spellings(definition, named, template.source)
        self._pieces = PieceEncoder(tokenizer, definition, all_special=self._spellings.all_special)
        self._renderer = Renderer(template, named)
        self.end: str | None = None  # what closed the assistant's turns

    def documents(self, samples: Sequence[Sample]) -> list[list[Document] | Unusable]:
        """Of each sample its documents, or why it has none."""
        refused = [self._refused(sample) for sample in samples]
        texts = iter(self._texts([sample for sample in samples if sample.texts]))
        chats = iter(
            self._chats([one for one, why in zip(samples, refused, strict=True) if one.chats and why is None])
        )
        return [
            why or (next(texts) if sample.texts else next(chats))
            for sample, why in zip(samples, refused, strict=True)
        ]

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """What a model is asked with. Raises Unusable."""
        asked = Sample("", "", chats=(tuple(messages),), tools=tuple(tools))
        if why := self._refused(asked):
            raise why
        marked = self._spellings.marked(messages, tools)
        text, turns = self._renderer.prompt(marked.messages, marked.tools)
        pieces, _ = cut(text, self._borders(text, turns, []), marked.marks)
        return [token for ids in self._pieces.encode(pieces) for token in ids]

    def _refused(self, sample: Sample) -> Unusable | None:
        """Why a sample cannot be written, as far as that is seen beforehand."""
        if any(self._spellings.is_too_deep(chat, sample.tools) for chat in sample.chats):
            told = f"a special token is spelt in tools or calls nested deeper than {MOST_NESTED} levels"
            return Unusable("not_tools", told, is_error=True)
        return self._template.unwritten(sample)

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
        marked = [self._spellings.marked(sample.chats[number], sample.tools) for sample, number in sides]
        turns = [sample.turns(number, self._learn) for sample, number in sides]
        asked = [Asked(one.messages, wanted, one.tools) for one, wanted in zip(marked, turns, strict=True)]
        rendered = self._renderer.turns(asked)
        drafts = [
            text if isinstance(text, Unusable) else self._draft(text, learnt, one.marks)
            for text, learnt, one in zip(rendered, turns, marked, strict=True)
        ]
        pieces = [draft.pieces for draft in drafts if isinstance(draft, _Draft)]
        ids = iter(self._pieces.encode([piece for each in pieces for piece in each]))
        documents = iter(
            [draft if isinstance(draft, Unusable) else self._finished(draft, ids) for draft in drafts]
        )
        found: list[list[Document] | Unusable] = []
        for sample in samples:
            each = [next(documents) for _ in sample.chats]
            useless = [one for one in each if isinstance(one, Unusable)]
            found.append(useless[0] if useless else [one for one in each if isinstance(one, Document)])
        return found

    def _draft(self, rendered: Rendered, learnt: Sequence[int], marks: str) -> _Draft | Unusable:
        """A rendered conversation in pieces, cut where an answer begins and ends."""
        text, turns = rendered
        if usable_text(text)[0] is None:  # contents are checked before; tools, calls and thoughts here
            return Unusable("undecodable", "its tools, calls or other keys", is_error=True)
        try:
            spans = [(turns[turn][0], self._turn_end(text, turns[turn])) for turn in learnt]
        except Unusable as why:
            return why
        if not spans:
            return Unusable("masked", "nothing that the assistant says is learnt")
        borders = {*self._borders(text, turns, learnt), *(place for span in spans for place in span)}
        end = len(text) if self._learn == "all" else max(end for _, end in spans)
        pieces, counts = cut(text[:end], borders, marks)
        return _Draft(pieces, [(counts[begin], counts[end]) for begin, end in spans])

    def _borders(self, text: str, turns: dict[int, Span], learnt: Sequence[int]) -> set[int]:
        """Where the answers that are not learnt begin and end, as far as that can be told."""
        found: set[int] = set()
        for turn, span in turns.items():
            end = None if turn in learnt else self._end_of(text, span)
            if end is not None:
                found |= {span[0], end[0]}
        return found

    def _finished(self, draft: _Draft, ids: Iterator[list[int]]) -> Document:
        tokens: list[int] = []
        places = [0]
        for _ in draft.pieces:
            tokens += next(ids)
            places.append(len(tokens))
        spans = tuple((max(1, places[begin]), places[end]) for begin, end in draft.spans)
        return Document(tokens, ((1, len(tokens)),) if self._learn == "all" else spans)

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
        said, known = text[begin:end], self._spellings
        for found in list(known.special.finditer(said)) or list(known.closer.finditer(said)):
            # What somebody spelt has a mark behind it, which nothing that closes has.
            if known.closing.fullmatch(said[found.end() :] + (rest or "")):
                return begin + found.end(), found[0]
        # What a template marks as the assistant's may end before the token that closes it.
        behind = known.closer.match(text, end) if rest is None else None
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
