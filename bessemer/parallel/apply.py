"""From a shape and a layout to this rank's part of the model. The order of the axes is here, and only here:

    pipeline split → tensor (and sequence) → expert → context → recompute → compile → shard

All on the meta device; `materialise` then gives memory and values to what this rank holds, no more.
"""

from collections.abc import Callable

import torch
from torch import nn

from bessemer.formulas.layout import layers_of_stages
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder, Part
from bessemer.model.init import fill, zero_counters
from bessemer.model.layers import Linear
from bessemer.parallel.context import split_over_context
from bessemer.parallel.expert import split_over_experts
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.pieces import cut, held_pieces
from bessemer.parallel.shard import shard
from bessemer.parallel.tensor import split_over_tensor


def build_parts(
    shape: ModelShape,
    compute: torch.dtype,
    mesh: Mesh,
    *,
    context: int,
    recompute: str = "none",
    recompute_layers: int | None = None,
    compile_blocks: Callable[[Decoder], None] | None = None,
) -> list[Decoder]:
    """This rank's stages of the model, on the meta device: one, but in a pipeline with several a rank.

    context: tokens in a row; recompute, recompute_layers: model/recompute.py.
    """
    layers, last = layers_of_stages(shape, mesh.layout), mesh.layout.num_stages - 1
    parts = []
    for stage in mesh.layout.stages_of(mesh.place("pipeline")):
        with torch.device("meta"):
            model = Decoder(shape, compute, Part(layers[stage], first=stage == 0, last=stage == last))
        cut(model, mesh)
        split_over_tensor(model, mesh, context)
        split_over_experts(model, mesh)
        split_over_context(model, mesh, context)
        if mesh.shards_weights or mesh.layout.pipeline > 1:
            rejoin_weights(model)
        model.model.recompute, model.model.recompute_layers = recompute, recompute_layers
        if compile_blocks is not None:
            compile_blocks(model)
        shard(model, mesh)
        parts.append(model)
    return parts


def rejoin_weights(model: nn.Module) -> None:
    """Let no linear layer keep a copy of its weights from forward to backward."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.rejoins = True


def joined(parts: list[Decoder]) -> nn.Module:
    """One module whose parameters are all that this rank holds."""
    return parts[0] if len(parts) == 1 else nn.ModuleList(parts)


def materialise(models: nn.Module, shape: ModelShape, mesh: Mesh, seed: int | None) -> None:
    """Memory on the device, and first values, each rank making only its own. seed None: memory alone."""
    models.to_empty(device=mesh.device)
    zero_counters(models)
    if seed is not None:
        fill(models, held_pieces(models, shape, mesh), shape, seed)
