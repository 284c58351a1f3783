"""Rows of pairs and of texts, made by hand, and their losses written as TRL and torch write them.

The five-line references below are TRL 1.16's formulas, of `trainer/dpo_trainer.py` (sigmoid, ipo),
`experimental/cpo/cpo_trainer.py` (smoothing, simpo) and `experimental/orpo/orpo_trainer.py`, over whole
logits of documents one by one: nothing is packed, chunked or split there.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bessemer.data.rows import NO_LOSS, Row, Rows
from bessemer.formulas.objective import Objective
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder


@dataclass(frozen=True)
class Document:
    tokens: list[int]
    prompt: int  # tokens of it; the rest are targets
    reference: float = 0.0


@dataclass(frozen=True)
class Pair:
    chosen: Document
    rejected: Document


def make_pairs(number: int, shape: ModelShape) -> list[Pair]:
    """One to three pairs that fit a row of 16 tokens; of row 3 none."""
    random = np.random.default_rng([7, number])

    def document(length: int) -> Document:
        tokens = random.integers(0, shape.vocab, length).tolist()
        return Document(tokens, int(random.integers(1, length)), float(random.normal(-8.0, 1.0)))

    lengths = {0: [(5, 4), (3, 3)], 1: [(9, 6)], 2: [(2, 3), (2, 2), (3, 2)], 3: []}[number % 4]
    return [Pair(document(chosen), document(rejected)) for chosen, rejected in lengths]


class PairRows(Rows):
    def __init__(self, count: int, shape: ModelShape) -> None:
        self.pairs = [make_pairs(number, shape) for number in range(count)]
        self._context = shape.context

    def __len__(self) -> int:
        return len(self.pairs)

    def row(self, index: int) -> Row:
        size = self._context
        tokens, targets = np.zeros(size, np.int32), np.full(size, NO_LOSS, np.int32)
        starts, partner = np.zeros(size, np.int32), np.zeros(size, np.int32)
        reference = np.zeros(size, np.float32)
        begin = 0
        for pair in self.pairs[index]:
            partner[begin] = begin + len(pair.chosen.tokens)
            for document in (pair.chosen, pair.rejected):
                end = begin + len(document.tokens)
                tokens[begin:end] = document.tokens
                targets[begin + document.prompt - 1 : end - 1] = document.tokens[document.prompt :]
                starts[begin:], reference[begin] = begin, document.reference
                begin = end
        columns = {"partner": partner, "reference": reference}
        return Row(tokens, targets, starts, columns, units=len(self.pairs[index]))

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        first = 2 * sum(len(pairs) for pairs in self.pairs[:index])
        lengths = [len(d.tokens) for pair in self.pairs[index] for d in (pair.chosen, pair.rejected)]
        ends = np.cumsum(lengths).tolist()
        spans = zip(ends, lengths, strict=True)
        return [(first + place, end - length, end) for place, (end, length) in enumerate(spans)]


class TextRows(Rows):
    """Texts with a label of `labels`, at the last token of each."""

    def __init__(self, count: int, shape: ModelShape) -> None:
        random = np.random.default_rng(5)
        self._context = shape.context
        self.texts = [
            [
                (random.integers(0, shape.vocab, length).tolist(), int(random.integers(shape.labels)))
                for length in ((5, 7, 2), (1, 15), (9,), ())[number % 4]
            ]
            for number in range(count)
        ]

    def __len__(self) -> int:
        return len(self.texts)

    def row(self, index: int) -> Row:
        size = self._context
        tokens, targets = np.zeros(size, np.int32), np.full(size, NO_LOSS, np.int32)
        starts, begin = np.zeros(size, np.int32), 0
        for text, label in self.texts[index]:
            end = begin + len(text)
            tokens[begin:end], targets[end - 1] = text, label
            starts[begin:] = begin
            begin = end
        return Row(tokens, targets, starts)

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        raise AssertionError("nobody asks")


def trl_loss(objective: Objective, model: Decoder, pairs: list[Pair]) -> Tensor:
    """Summed over the pairs, by TRL's formulas over each document alone."""
    losses = []
    for pair in pairs:
        (c, nc), (r, nr) = (log_prob(model, document) for document in (pair.chosen, pair.rejected))
        beta, delta = objective.beta, (c - pair.chosen.reference) - (r - pair.rejected.reference)
        if objective.kind == "dpo":
            smooth = objective.smoothing
            loss = -functional.logsigmoid(beta * delta) * (1 - smooth)
            loss = loss - functional.logsigmoid(-beta * delta) * smooth
        elif objective.kind == "ipo":
            delta = (c - pair.chosen.reference) / nc - (r - pair.rejected.reference) / nr
            loss = (delta - 1 / (2 * beta)) ** 2
        elif objective.kind == "simpo":
            loss = -functional.logsigmoid(beta * (c / nc - r / nr - objective.margin / beta))
        elif objective.kind == "orpo":
            odds = (c / nc - r / nr) - (torch.log1p(-(c / nc).exp()) - torch.log1p(-(r / nr).exp()))
            loss = -c / nc - beta * functional.logsigmoid(odds)
        else:
            rewards = [model(torch.tensor([d.tokens]))[0, -1] for d in (pair.chosen, pair.rejected)]
            chosen, rejected = (model.logits(reward)[0] for reward in rewards)
            loss = -functional.logsigmoid(chosen - rejected)
        losses.append(loss)
    return torch.stack(losses).sum()


def log_prob(model: Decoder, document: Document) -> tuple[Tensor, int]:
    """Summed over its targets, and their number."""
    tokens = torch.tensor(document.tokens)
    logits = model.logits(model(tokens[None]))[0]
    if model.shape.labels:
        return logits.sum() * 0, 1
    log_probs = logits[:-1].log_softmax(-1).gather(1, tokens[1:, None])[document.prompt - 1 :]
    return log_probs.sum(), len(log_probs)
