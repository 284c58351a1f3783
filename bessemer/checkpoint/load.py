"""Bring a checkpoint back: into a run that goes on, or as a model to use.

Files are verified before the first tensor is copied (checkpoint/folder.py), and names before it too, so
nothing damaged ever reaches a model. Each rank reads the pieces that it holds, whichever ranks wrote them.
A stage of adapters has its own weights only; the others come from what it began with (checkpoint/base.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bessemer.checkpoint.base import Base, check_base, load_base
from bessemer.checkpoint.folder import chosen
from bessemer.checkpoint.parts import held_pieces, local
from bessemer.checkpoint.tensors import CheckpointTensors, incomplete
from bessemer.checkpoint.weights import load_weights, read_piece
from bessemer.errors import DataError
from bessemer.formulas.shape import ModelShape
from bessemer.model.adapter import base_pieces, trained_pieces
from bessemer.model.decoder import Decoder
from bessemer.model.device import this_device
from bessemer.model.pieces import Piece, Pieces, whole_pieces
from bessemer.rundir import read_object

COMPUTE = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class LoadedModel:
    """A stage's model, ready to compute, and where it came from."""

    model: Decoder
    shape: ModelShape
    tokenizer_path: Path
    step: int
    folder: Path  # of the checkpoint


def load_model(stage: Path, step: int | None, say: Callable[[str], None]) -> LoadedModel:
    """The model of a stage's checkpoint: the newest good one, or that of `step`.

    say: is told of each damaged checkpoint that was passed over.
    """
    folder, manifest = chosen(stage, step, say)
    info = read_object(stage / "stage.json")
    if info is None or "shape" not in info:
        raise DataError(
            f"{stage} does not say what model it holds",
            found="no stage.json with a shape",
            wanted="a stage that bessemer trained",
            fix="a model of your own is loaded by your own code: see docs/library.md",
        )
    shape = ModelShape.from_json(info["shape"])
    compute = COMPUTE[(info.get("plan") or {}).get("dtype", "fp32")]
    model = model_of(stage, folder, shape, compute, info.get("origin"))
    return LoadedModel(model, shape, stage / info["tokenizer"], manifest.step, folder)


def model_of(
    stage: Path, folder: Path, shape: ModelShape, compute: torch.dtype, origin: dict[str, Any] | None
) -> Decoder:
    """The model of a verified checkpoint, in any compute type, its base kept in any way (`shape.adapter`)."""
    with torch.device("meta"):
        model = Decoder(shape, compute)
    model.to_empty(device=this_device())
    if shape.adapter is None:
        load_weights(model, folder)
    else:
        held = whole_pieces(model)
        base = Base.of(stage, origin)
        check_base(base)
        load_base(model, base, shape, base_pieces(held, shape))
        load_weights(model, folder, trained_pieces(held, shape))
    return model


def restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, pieces: Pieces | None = None
) -> None:
    """Weights and optimizer state, bit for bit, of a verified checkpoint that any ranks wrote."""
    load_weights(model, folder, pieces)
    parameters = set(model.parameters())
    with CheckpointTensors(folder, "optimizer") as stored, torch.no_grad():
        keys: dict[str, list[str]] = {}
        for name in stored.names:
            weight, _, key = name.removeprefix("optimizer.").rpartition(".")
            keys.setdefault(weight, []).append(key)
        for tensor, held in held_pieces(model, pieces):
            # The pieces of one parameter have the same state; without any there is nothing to go on from.
            for key in keys.get(held[0].name, []) if tensor in parameters and held else []:
                optimizer.state[tensor][key] = _state(stored, key, tensor, held)
        weights = {piece.name for _, each in held_pieces(model, pieces) for piece in each}
        foreign = set(keys) - weights
        if pieces is None and foreign:
            raise incomplete(folder, f"state of {min(foreign)}, which is no weight of the model")


def _state(stored: CheckpointTensors, key: str, parameter: Tensor, held: list[Piece]) -> Tensor:
    """The state `key` of a parameter: of its shape, sharded as it is, or as it was stored."""
    name = f"optimizer.{held[0].name}.{key}"
    if stored.shape(name) != held[0].shape:
        return stored.read(name).clone().to(parameter.device)
    state = torch.zeros_like(parameter, dtype=stored.torch_dtype(name), requires_grad=False)
    for piece in held:
        values = read_piece(stored, f"optimizer.{piece.name}.{key}", piece)
        piece.of(local(state)).copy_(values)
    return state
