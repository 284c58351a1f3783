"""Examples that are longer than a row: what of them is written, and how many that were.

Chats lose their oldest exchanges, whole ones, behind the system message: what is left is the newest part that
fits, at least the last question with its answer. Both sides of a pair lose the same. If that is still too
long, and for all others, the middle of what stands before the answer goes (data/fitting.py). A text that is
learnt whole goes on in further documents. Nothing goes before the first token of each, so that one is read
but not learnt: one in `context`. A last piece of a single token is left out.
Cost: a few renderings of each chat that is too long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bessemer.data.fitting import Fitted, Spans, fit_document, fit_pair
from bessemer.data.task.encoding import Document, SampleEncoder
from bessemer.data.task.samples import Sample
from bessemer.data.task.unusable import Unusable

Documents = list[tuple[Sequence[int], Spans]]


@dataclass
class Cuts:
    """Of one split. `total` counts, for the manifest, what was cut."""

    context: int
    encoder: SampleEncoder
    is_text: bool  # learnt whole
    total: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("prompts_cut", "answers_cut", "examples_cut", "turns_dropped"), 0
        )
    )

    def fitted(self, sample: Sample, documents: list[Document]) -> Documents:
        """No document is longer than the context, nor both of a pair together. Raises Unusable."""
        if self.is_text:
            return _pieces(documents[0].tokens, self.context)
        sample, documents, dropped = self._shortened(sample, documents)
        fitted = _fit(documents, self.context)
        if sample.label is None and not all(one.spans for one in fitted):
            raise Unusable("masked", "no token of the answer is left in the context")
        ends = [len(one.tokens) - 1 for one in documents]
        answers_cut = any(int(one.places[-1]) != end for one, end in zip(fitted, ends, strict=True))
        prompts_cut = any(int(one.places[-1]) != one.size - 1 for one in fitted)
        self.total["turns_dropped"] += dropped
        self.total["answers_cut"] += answers_cut
        self.total["prompts_cut"] += prompts_cut
        self.total["examples_cut"] += answers_cut or prompts_cut or dropped > 0
        return [
            (np.asarray(one.tokens)[fit.kept].tolist(), fit.spans)
            for one, fit in zip(documents, fitted, strict=True)
        ]

    def _shortened(self, sample: Sample, documents: list[Document]) -> tuple[Sample, list[Document], int]:
        """(the sample, its documents, how many messages were left out)."""
        best = (sample, documents, 0)
        if not sample.chats or total(documents) <= self.context:
            return best
        cuts = _places(sample)
        low, high = 0, len(cuts)  # fewer than `low` are too few, `high` are enough, or all there are
        while low < high:
            middle = (low + high) // 2
            shorter = sample.without(cuts[middle])
            (found,) = self.encoder.documents([shorter])
            if isinstance(found, Unusable):  # the template wants what was left out
                return best
            fits = total(found) <= self.context
            if fits or middle == len(cuts) - 1:
                best = (shorter, found, cuts[middle])
            low, high = (low, middle) if fits else (middle + 1, high)
        return best


def total(documents: Sequence[Document]) -> int:
    return sum(len(document.tokens) for document in documents)


def _places(sample: Sample) -> list[int]:
    """How many messages may go: up to where a user begins anew, at the latest with the last question."""
    first = sample.first_turn
    asked = sample.common if sample.is_pair else len(sample.chats[0])
    roles = [message["role"] for message in sample.chats[0][:asked]]
    begins = [n for n in range(first + 1, len(roles)) if roles[n] == "user" and roles[n - 1] != "user"]
    return [begin - first for begin in begins]


def _fit(documents: Sequence[Document], context: int) -> list[Fitted]:
    lengths, spans = [len(one.tokens) for one in documents], [one.spans for one in documents]
    if len(documents) == 2:
        return fit_pair(lengths, spans, context)
    return [fit_document(lengths[0], spans[0], context)]


def _pieces(tokens: Sequence[int], context: int) -> Documents:
    pieces = [tokens[begin : begin + context] for begin in range(0, len(tokens), context)]
    if len(pieces) > 1 and len(pieces[-1]) < 2:  # a single token has nothing before it to be predicted from
        pieces.pop()
    return [(piece, ((1, len(piece)),)) for piece in pieces]
