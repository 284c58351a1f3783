"""Examples that are longer than a row: what of them is kept, token by token.

The last answer is what an example is for. So what is cut is what stands before it, from three quarters on:
its beginning says what it is about, its end what is asked. Only an answer longer than the row loses its own
end. One token before it always stays, as its first token is predicted from something. Both documents of a
pair lose the same of their prompt, or their answers would not be compared.
Of chats whole turns go first (task/cuts.py); this is what remains to be done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

# (begin, end) of tokens that are learnt. The last one begins with the last answer, also where what stands
# before it is learnt too.
Spans = tuple[tuple[int, int], ...]
Kept = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Fitted:
    kept: Kept | slice  # places of the tokens that stay, rising; most documents stay whole, and have none
    size: int  # how many stay
    spans: Spans  # among those

    @staticmethod
    def at(places: Kept, spans: Spans) -> "Fitted":
        return Fitted(places, len(places), spans)

    @staticmethod
    def whole(length: int, spans: Spans) -> "Fitted":
        return Fitted(slice(0, length), length, spans)

    @property
    def places(self) -> Kept:
        return np.arange(self.size) if isinstance(self.kept, slice) else self.kept


def fit_document(length: int, spans: Spans, context: int) -> Fitted:
    """At most `context` tokens of a document. Without spans all of it but the last token is its prompt."""
    if length <= context:
        return Fitted.whole(length, spans)
    prompt = prompt_of(length, spans)
    room = max(1, prompt - (length - context))
    head = max(1, room * 3 // 4)
    kept = np.concatenate(
        [np.arange(head), np.arange(prompt - (room - head), prompt), np.arange(prompt, length)]
    )
    kept = kept[:context]
    learnt = np.zeros(length, dtype=bool)
    for begin, end in spans:
        learnt[begin:end] = True
    # Behind the cut stands what another token than its own predecessor would predict.
    after = int(kept[head]) if room > head else prompt
    if after != head and after < prompt:
        learnt[after] = False
    return Fitted.at(kept, _spans(learnt[kept], room))


def fit_pair(lengths: Sequence[int], spans: Sequence[Spans], context: int) -> list[Fitted]:
    """Both documents in one row: `context` tokens together."""
    if sum(lengths) <= context:
        return [fit_document(length, span, length) for length, span in zip(lengths, spans, strict=True)]
    prompts = [prompt_of(length, span) for length, span in zip(lengths, spans, strict=True)]
    answers = [length - prompt for length, prompt in zip(lengths, prompts, strict=True)]
    room = min(max(1, (context - sum(answers)) // 2), *prompts)
    sizes = [room + answer for answer in answers]
    if sum(sizes) > context:  # the longer answer loses its end, or both do
        shorter = 0 if sizes[0] <= sizes[1] else 1
        sizes[shorter] = min(sizes[shorter], context // 2)
        sizes[1 - shorter] = context - sizes[shorter]
    return [
        _cut_to(length, span, prompt, room, size)
        for length, span, prompt, size in zip(lengths, spans, prompts, sizes, strict=True)
    ]


def prompt_of(length: int, spans: Spans) -> int:
    """Tokens before the last answer; of a text without one, before its end."""
    return spans[-1][0] if spans else length - 1


def _cut_to(length: int, spans: Spans, prompt: int, room: int, size: int) -> Fitted:
    """`room` tokens of the prompt, and of the answer what `size` leaves."""
    fitted = fit_document(length, spans, room + length - prompt)
    inside = tuple((begin, min(end, size)) for begin, end in fitted.spans if begin < size)
    return Fitted.at(fitted.places[:size], inside)


def _spans(learnt: np.ndarray[Any, np.dtype[np.bool_]], answer: int) -> Spans:
    """Runs of what is learnt, apart where the last answer begins; the first token never is."""
    inside = learnt.copy()
    inside[:1] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    runs: list[tuple[int, int]] = []
    for begin, end in edges.reshape(-1, 2).tolist():
        parts = [begin, answer, end] if begin < answer < end else [begin, end]
        runs += pairwise(parts)
    return tuple(runs)
