"""Rows with what distillation and sampled answers need beside their tokens, of any numbers."""

from dataclasses import replace

import numpy as np
from making_runs import TinyRows

from bessemer.data.rows import NO_LOSS, Row, Rows
from bessemer.formulas.shape import ModelShape

K = 5


class AnswerColumns(Rows):
    """As TinyRows, with a teacher's words, and with answers' advantages."""

    def __init__(self, count: int, shape: ModelShape) -> None:
        self._rows = TinyRows(count, shape)
        self._vocab = shape.vocab

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        row, random = self._rows.row(index), np.random.default_rng([7, index])
        trained_T = row.targets_T != NO_LOSS
        length = len(trained_T)
        ids_TK = np.stack([random.permutation(self._vocab)[:K] for _ in range(length)]).astype(np.int32)
        shares_TK = random.dirichlet(np.ones(K + 1), size=length)[:, :K].astype(np.float32)
        columns = {
            "teacher_ids": ids_TK,
            "teacher_log_probs": np.log(shares_TK),
            # About as likely as any word is to these models: some ratios are clipped, some are not.
            "old_log_probs": random.normal(-np.log(self._vocab), 0.3, length).astype(np.float32),
            "reference_log_probs": random.normal(-np.log(self._vocab), 0.3, length).astype(np.float32),
            "advantage": random.normal(0.0, 1.0, length).astype(np.float32),
        }
        return replace(row, columns={name: self._where(trained_T, each) for name, each in columns.items()})

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        return self._rows.documents(index)

    @staticmethod
    def _where(trained_T: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Zero where a row holds nothing."""
        shape = (len(trained_T),) + (1,) * (values.ndim - 1)
        return np.where(trained_T.reshape(shape), values, 0).astype(values.dtype)
