"""Bring a checkpoint back: into a run that goes on, or as a model to use.

Files are verified before the first tensor is copied (checkpoint/folder.py), and names and shapes before
that tensor too, so nothing damaged ever reaches a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bessemer.checkpoint.folder import chosen
from bessemer.checkpoint.tensors import CheckpointTensors, incomplete
from bessemer.checkpoint.write import stored_tensors
from bessemer.errors import DataError
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.device import this_device
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


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a verified checkpoint's weights into a model whose memory is there."""
    tensors = stored_tensors(model)
    with CheckpointTensors(folder, "model") as stored, torch.no_grad():
        different = set(stored.names) ^ set(tensors)
        if different:
            raise incomplete(folder, f"{len(different)} names differ, {min(different)} among them")
        for name, tensor in tensors.items():
            tensor.copy_(stored.read(name, tuple(tensor.shape)))


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Weights and optimizer state, bit for bit, of a verified checkpoint."""
    load_weights(model, folder)
    parameters = dict(model.named_parameters())
    with CheckpointTensors(folder, "optimizer") as stored:
        for name in stored.names:
            weight, _, key = name.removeprefix("optimizer.").rpartition(".")
            if weight not in parameters:
                raise incomplete(folder, f"{name}, which belongs to no weight of the model")
            parameter = parameters[weight]
            optimizer.state[parameter][key] = stored.read(name).to(parameter.device)
