"""Adapters on a model: what is added, what is frozen, and how its magnitudes begin.

Which weights learn is `trained` of the tensor table. Frozen matrices are kept in the compute type, to which
a matmul would cast them anyway; norms, biases and routers, which compute in fp32, stay fp32. So a model with
fresh adapters gives the same numbers as without, bit for bit.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from bessemer.formulas.adapters import is_adapted
from bessemer.formulas.shape import CLASS_HEAD, Adapter, ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model.frozen import row_norms
from bessemer.model.layers import Factor, Linear
from bessemer.model.pieces import Pieces, local


def add_adapters(model: nn.Module, shape: ModelShape, compute: torch.dtype) -> None:
    """To a whole model whose weights have no values yet."""
    assert shape.adapter is not None
    for name, module in model.named_modules():
        if isinstance(module, Linear) and is_adapted(f"{name}.weight", shape.adapter):
            _add_adapter(module, shape.adapter)
    trained = trained_names(shape)
    for name, parameter in list(model.named_parameters()):
        if name not in trained:
            _freeze(model, name, compute if _is_matrix(name, parameter) else parameter.dtype)


def trained_names(shape: ModelShape) -> set[str]:
    """Stored tensors that learn."""
    return {spec.name for spec in tensor_table(shape) if spec.trained}


def trained_pieces(pieces: Pieces, shape: ModelShape) -> Pieces:
    """Those of an adapter stage's own checkpoints."""
    trained = trained_names(shape)
    return {name: [piece for piece in held if piece.name in trained] for name, held in pieces.items()}


def base_pieces(pieces: Pieces, shape: ModelShape, *, begins: bool = False) -> Pieces:
    """Those that come from the model that an adapter stage began with.

    begins: with a head of classes, which learns, and begins as it was if that model had it.
    """
    other = trained_names(shape) - ({CLASS_HEAD} if begins else set())
    return {name: [piece for piece in held if piece.name not in other] for name, held in pieces.items()}


@torch.no_grad()
def begin_magnitudes(model: nn.Module, compute: torch.dtype) -> None:
    """DoRA's, from the base that is there now: the lengths of its rows, as B is zero."""
    for module in model.modules():
        if isinstance(module, Linear) and module.lora_magnitude_vector is not None:
            here = replace(module.frozen_part(), weight=local(module.weight), down_RI=None, up_OR=None)
            # Sharded by rows, magnitudes lie where their rows do.
            local(module.lora_magnitude_vector.weight).copy_(row_norms(here, compute))


def _add_adapter(module: Linear, adapter: Adapter) -> None:
    outputs, inputs = module.weight.shape
    device = module.weight.device
    with device:
        module.lora_A, module.lora_B = Factor(adapter.rank, inputs), Factor(outputs, adapter.rank)
        if adapter.dora:
            module.lora_magnitude_vector = Factor(outputs)
    module.scale = adapter.scale


def _freeze(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    room, _, own = name.rpartition(".")
    module = model.get_submodule(room)
    values: Tensor = getattr(module, own).data
    module.register_parameter(own, nn.Parameter(values.to(dtype), requires_grad=False))


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and not name.endswith(".gate.weight")
