"""Bring a checkpoint back: into a run that goes on, or as a model to use.

Files are verified before the first tensor is copied (checkpoint/folder.py), and names before it too, so
nothing damaged ever reaches a model. Each rank reads the pieces that it holds, whichever ranks wrote them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bessemer.checkpoint.folder import chosen
from bessemer.checkpoint.parts import held_pieces, local
from bessemer.checkpoint.tensors import CheckpointTensors, incomplete
from bessemer.errors import DataError
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.device import this_device
from bessemer.model.pieces import Piece, Pieces
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
    with torch.device("meta"):
        model = Decoder(shape, COMPUTE[(info.get("plan") or {}).get("dtype", "fp32")])
    model.to_empty(device=this_device())
    load_weights(model, folder)
    return LoadedModel(model, shape, stage / info["tokenizer"], manifest.step, folder)


def load_weights(model: nn.Module, folder: Path, pieces: Pieces | None = None) -> None:
    """Copy a verified checkpoint's weights into a model whose memory is there.

    pieces: what this rank holds, which may be a part of the model; None: all of it.
    """
    held = list(held_pieces(model, pieces))
    names = {piece.name for _, each in held for piece in each}
    with CheckpointTensors(folder, "model") as stored, torch.no_grad():
        found = set(stored.names)
        different = names - found if pieces is not None else names ^ found
        if different:
            raise incomplete(folder, f"{len(different)} names differ, {min(different)} among them")
        for tensor, each in held:
            for piece in each:
                piece.of(local(tensor)).copy_(_read(stored, piece.name, piece))


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
        values = _read(stored, f"optimizer.{piece.name}.{key}", piece)
        piece.of(local(state)).copy_(values)
    return state


def _read(stored: CheckpointTensors, name: str, piece: Piece) -> Tensor:
    return stored.read(name, piece.shape, piece.offset, piece.size)
