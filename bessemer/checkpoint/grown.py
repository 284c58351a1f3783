"""Rows for new tokens, in the embedding and head of a model that was made without them.

A new row is the mean of the rows that have a word. Its logit is then their mean logit, so that n new tokens
among N move what is predicted by log(1 + n / N) of KL divergence at most, where random rows can outweigh all
others (nlp.stanford.edu/~johnhew/vocab-expansion.html). So are rows of padding that the larger table has.
Computed from the whole tensor, so that every layout has the same values. Memory: one tensor in fp32.
"""

from collections.abc import Sequence

from torch import Tensor

from bessemer.formulas.shape import WORD_HEAD

EMBEDDING = "model.embed_tokens.weight"
GROWN = (EMBEDDING, WORD_HEAD)


def grown(weight_VD: Tensor, rows: int, new: Sequence[int]) -> Tensor:
    """[rows, D] fp32. new: numbers of the new tokens, the first of which follows on the last old word."""
    words = min(new)
    assert words <= weight_VD.shape[0] and max(new) < rows, (words, max(new), rows, weight_VD.shape)
    mean_D = weight_VD[:words].double().mean(0).float()
    out_VD = mean_D.repeat(rows, 1)
    out_VD[: weight_VD.shape[0]] = weight_VD[:rows].float()
    out_VD[list(new)] = mean_D
    return out_VD
