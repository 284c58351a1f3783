"""A stage whose weights are far from their first values, as training would leave them."""

import json
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import tensor_table


def random_weights(shape: ModelShape) -> dict[str, Tensor]:
    """Under the stored names. Ones and zeros would hide a norm or a bias that is not applied."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for spec in tensor_table(shape):
        values = torch.randn(spec.shape, generator=generator)
        if len(spec.shape) == 2:
            values *= spec.shape[1] ** -0.5
        weights[spec.name] = values if spec.init_std is not None else 1.0 + 0.2 * values
    return weights


def trained_stage(make: Any, **changes: Any) -> tuple[Path, ModelShape, dict[str, Tensor]]:
    """make: the fixture of that name."""
    stage = make(**changes)
    shape = ModelShape.from_json(json.loads((stage / "stage.json").read_text())["shape"])
    weights = random_weights(shape)
    write_stage_checkpoint(stage, weights)
    return stage, shape, weights


def write_stage_checkpoint(stage: Path, weights: dict[str, Tensor]) -> None:
    """In place of that of step 30."""
    folder = stage / "checkpoints/step-00000030"
    file = folder / "model-00000.safetensors"
    save_file(weights, file, {"slices": "{}"})
    content = file.read_bytes()
    files = {file.name: {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}}
    (folder / "manifest.json").write_text(json.dumps({"step": 30, "layout": {}, "files": files}))
