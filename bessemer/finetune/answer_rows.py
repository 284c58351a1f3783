"""Sampled answers as rows to train on, and what a model says at each of their tokens.

Answers are packed whole, best fit, as any task's examples are; the loss is on the answer and its end. What a
token's loss needs beside that is kept as arrays over all trained tokens, one answer after the other, and
becomes columns of the rows at the place that predicts the token.
Dims: T tokens in a row, A trained tokens of all answers, N of some rows, D hidden.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from bessemer.data.loader import micro_batch
from bessemer.data.packed_rows import pack
from bessemer.data.rows import NO_LOSS, Row, Rows
from bessemer.formulas.objective import ASKED_ROWS
from bessemer.model.decoder import Decoder

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Answer:
    """Tokens of prompt and answer. `prompt`: how many are the prompt's."""

    tokens: Array
    prompt: int

    @property
    def trained(self) -> int:
        return len(self.tokens) - self.prompt


@final
class AnswerRows(Rows):
    def __init__(
        self, answers: Sequence[Answer], columns: Mapping[str, Array], context: int, pad_id: int
    ) -> None:
        self._answers, self._columns = answers, columns
        self._context, self._pad_id = context, pad_id
        self._first = np.cumsum([0, *(answer.trained for answer in answers)])
        self._rows = pack([len(answer.tokens) for answer in answers], context)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        tokens_T = np.full(self._context, self._pad_id, dtype=np.int32)
        targets_T = np.full(self._context, NO_LOSS, dtype=np.int32)
        starts_T = np.zeros(self._context, dtype=np.int32)
        for number, begin, end in self.documents(index):
            answer = self._answers[number]
            tokens_T[begin:end] = answer.tokens
            targets_T[begin + answer.prompt - 1 : end - 1] = answer.tokens[answer.prompt :]
            starts_T[begin:] = begin
        return Row(tokens_T, targets_T, starts_T, self._placed(index, targets_T != NO_LOSS))

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        shown, begin = [], 0
        for number in self._rows[index]:
            end = begin + len(self._answers[number].tokens)
            shown.append((number, begin, end))
            begin = end
        return shown

    def trained(self, index: int) -> Array:
        """Places in the arrays over all trained tokens, of those of a row, in its order."""
        spans = [np.arange(self._first[k], self._first[k + 1]) for k in self._rows[index]]
        return np.concatenate(spans)

    def _placed(self, index: int, is_trained_T: Array) -> dict[str, Array]:
        found = {}
        for name, values_A in self._columns.items():
            column_T = np.zeros((self._context, *values_A.shape[1:]), dtype=values_A.dtype)
            column_T[is_trained_T] = values_A[self.trained(index)]
            found[name] = column_T
        return found


def trained_states(model: Decoder, rows: Rows, begin: int = 0) -> Iterator[tuple[range, Tensor, Tensor]]:
    """(some rows, hidden states [N, D], targets [N]) of all tokens with loss, in order of rows and places.

    begin: the first row that is wanted.
    """
    device = model.head_weight.device
    for first in range(begin, len(rows), ASKED_ROWS):
        some = range(first, min(first + ASKED_ROWS, len(rows)))
        part = micro_batch(rows, some).to(device)
        counted_BT = part.targets_BT != NO_LOSS
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            hidden_ND = model(part.tokens_BT, part.starts_BT)[counted_BT]
        yield some, hidden_ND, part.targets_BT[counted_BT]


@torch.no_grad()
def said_of(
    model: Decoder, answers: Sequence[Answer], context: int, ask: Callable[[Tensor, Tensor], Sequence[Tensor]]
) -> list[Array]:
    """Arrays over all trained tokens of what `ask` gives, for hidden states [N, D] and targets [N]."""
    rows = AnswerRows(answers, {}, context, pad_id=0)
    total = sum(answer.trained for answer in answers)
    arrays: list[Array] = []
    for some, hidden_ND, targets_N in trained_states(model, rows):
        places_N = np.concatenate([rows.trained(index) for index in some])
        found = [values.cpu().numpy() for values in ask(hidden_ND, targets_N)]
        arrays = arrays or [np.zeros((total, *values.shape[1:]), dtype=values.dtype) for values in found]
        for array, values in zip(arrays, found, strict=True):
            array[places_N] = values
    return arrays
