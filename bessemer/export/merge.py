"""Adapters merged into the weights that they stand beside, and the proof that the model computes the same.

W + scale B A is computed in fp32 on the base as it was before any quantisation (checkpoint/base.py). The
receipt tells two differences of logits on held-out text: between the model with its adapters apart and the
merged one, which is rounding; and, of a base in 4 or 8 bits, between the model that was trained and the
merged one, which is what quantisation made. The adapters learned beside the quantised weights and correct
some of its errors: merged onto full precision they meet weights that they never saw. That is the usual way
(PEFT's documentation), and its cost is told instead of being assumed small.
Memory: one model in fp32 at a time; of the merge itself one tensor.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bessemer.checkpoint.base import merged_weights
from bessemer.checkpoint.huggingface import load_into
from bessemer.checkpoint.load import model_of
from bessemer.data.prepared import open_prepared
from bessemer.errors import DataError
from bessemer.export.parity import TOLERANCE, why_not
from bessemer.export.weights import write_tensors
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.rundir import read_object

_ROWS, _TOKENS = 4, 128


def write_merged(stage: Path, checkpoint: Path, shape: ModelShape, folder: Path, dtype: torch.dtype) -> None:
    """The weights of a stage of adapters, merged, as files of transformers. shape: without adapters."""
    widened = ((name, tensor.float()) for name, tensor in merged_weights(stage, checkpoint))
    write_tensors(widened, shape, folder, dtype, dtype.itemsize)


def merge_proof(
    stage: Path, checkpoint: Path, shape: ModelShape, folder: Path, *, exact: bool
) -> dict[str, Any]:
    """For the receipt of the merged model in `folder`. shape: with its adapters.

    exact: it was not rounded, so that an assertion fails where it computes something else.
    """
    reason = why_not(shape, "bessemer")
    if reason is not None:
        return {"merge": {"max_absolute_logit_difference": None, "reason": reason}}
    assert shape.adapter is not None
    text = held_out(stage, shape)
    logits = _Logits(stage, checkpoint, text)
    merged = logits.merged(replace(shape, adapter=None), folder)
    apart = logits.apart(replace(shape, adapter=replace(shape.adapter, base="float")))
    found: dict[str, Any] = {
        **differences(apart, merged),
        "tokens": text.tokens_BT.numel(),
        "text": text.kind,
    }
    largest = float(found["max_absolute_logit_difference"])
    assert not exact or largest <= TOLERANCE, f"merged model differs by {largest} in {folder}"
    if shape.adapter.base != "float":
        trained = logits.apart(shape)
        found["quantisation"] = {"base": shape.adapter.base, **differences(trained, merged)}
    return {"merge": found}


@dataclass(frozen=True)
class Text:
    """Tokens to compare models on, and where their documents begin."""

    kind: str
    tokens_BT: Tensor
    starts_BT: Tensor


def held_out(stage: Path, shape: ModelShape) -> Text:
    """Of the stage's own held-out rows; at random where they cannot be read, which its kind tells."""
    info = read_object(stage / "stage.json") or {}
    folder = Path((info.get("data") or {}).get("folder") or stage / "data")
    length = min(_TOKENS, shape.context)
    try:
        rows = open_prepared(folder).rows("validation", int(info["context"]))
        some = [rows.row(index) for index in range(min(_ROWS, len(rows)))]
        why = "none are held out"
    except DataError as error:
        some, why = [], f"{error.problem}: {error.found}"
    if some:
        columns = ([getattr(row, name)[:length] for row in some] for name in ("tokens_T", "starts_T"))
        return Text("held-out", *(torch.from_numpy(np.stack(column)).long() for column in columns))
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, shape.vocab, (_ROWS, length), generator=generator)
    return Text(f"random tokens ({why})", tokens_BT, torch.zeros_like(tokens_BT))


def differences(one: Tensor, other: Tensor) -> dict[str, Any]:
    distance = (one - other).abs()
    return {
        "max_absolute_logit_difference": float(distance.max()),
        "mean_absolute_logit_difference": float(distance.mean()),
        "same_next_token": float((one.argmax(-1) == other.argmax(-1)).float().mean()),
    }


class _Logits:
    """Of the same text, by one model after the other, in fp32."""

    def __init__(self, stage: Path, checkpoint: Path, text: Text) -> None:
        self._stage, self._checkpoint, self._text = stage, checkpoint, text
        self._origin = (read_object(stage / "stage.json") or {}).get("origin")

    def apart(self, shape: ModelShape) -> Tensor:
        return self._of(model_of(self._stage, self._checkpoint, shape, torch.float32, self._origin))

    def merged(self, shape: ModelShape, folder: Path) -> Tensor:
        model = Decoder(shape, torch.float32)
        load_into(model, folder)
        return self._of(model)

    @torch.inference_mode()
    def _of(self, model: Decoder) -> Tensor:
        model = model.cpu()
        return model.logits(model(self._text.tokens_BT, self._text.starts_BT))
