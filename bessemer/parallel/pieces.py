"""Which part of each stored tensor this rank holds, and cutting a model down to it.

A weight is cut along the expert axis (a stack of experts, dim 0), the tensor axis (`tensor_dim` of the
tensor table), and by FSDP (a dim of its own choice). What another rank holds too is saved by one of them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from bessemer.formulas.layout import split_evenly
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensor_spec import TensorSpec
from bessemer.formulas.tensors import tensor_table
from bessemer.model.decoder import Decoder
from bessemer.model.packed import pack_bases
from bessemer.model.pieces import Piece, Pieces, stored, stored_names
from bessemer.parallel.mesh import Mesh

Ranges = list[range]  # of a parameter's dims


def cut(model: Decoder, mesh: Mesh) -> None:
    """On the meta device: each parameter keeps the size of this rank's part of it."""
    specs = _specs(model.shape)
    for room, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            full = f"{room}.{name}" if room else name
            if parameter.dtype == torch.uint8:  # its bytes follow from its part of the matrix: below
                continue
            size = [len(each) for each in _ranges(full, parameter, specs, mesh)]
            if size != list(parameter.shape):
                own = torch.empty(size, dtype=parameter.dtype, device="meta")
                module.register_parameter(name, nn.Parameter(own, requires_grad=parameter.requires_grad))
    pack_bases(model, model.shape, mesh.layout.tensor, mesh.place("tensor"))


def held_pieces(models: nn.Module, shape: ModelShape, mesh: Mesh) -> Pieces:
    """By parameter name in `models`: a Decoder, or the ModuleList of a pipeline rank's stages."""
    specs, found = _specs(shape), {}
    for prefix, model in _parts(models):
        for name, tensor in stored(model):
            found[prefix + name] = list(_pieces(model, name, tensor, specs, mesh))
    return found


def _pieces(
    model: Decoder, name: str, tensor: Tensor, specs: dict[str, TensorSpec], mesh: Mesh
) -> Iterator[Piece]:
    whole = _whole(name, specs, model.shape)
    ranges = _ranges(name, whole, specs, mesh)
    is_stack, is_cut = ".experts." in name, _is_cut(name, specs)
    saved = (is_cut or mesh.place("tensor") == 0) and not _is_copy(model, name)
    if isinstance(tensor, DTensor):
        ranges, first = _fsdp_ranges(tensor, ranges, mesh)
        saved = saved and first
    elif not is_stack or mesh.layout.expert == 1:  # whole on every data rank, such as a buffer
        saved = saved and mesh.place("replicate") == mesh.place("fsdp") == 0
    size, offset = tuple(map(len, ranges)), tuple(each.start for each in ranges)
    if not is_stack:
        yield Piece(name, tuple(whole.shape), offset, size, saved=saved)
        return
    names = stored_names(name, whole)
    for index, expert in enumerate(ranges[0]):
        yield Piece(names[expert], tuple(whole.shape)[1:], offset[1:], size[1:], index, saved)


def _ranges(name: str, whole: Tensor, specs: dict[str, TensorSpec], mesh: Mesh) -> Ranges:
    """This rank's part along expert and tensor axes of a parameter whose whole shape is known."""
    ranges = [range(size) for size in whole.shape]
    is_stack = ".experts." in name
    if is_stack:
        ranges[0] = split_evenly(whole.shape[0], mesh.layout.expert)[mesh.place("expert")]
    dim = _spec(name, specs).tensor_dim
    if dim is not None:
        dim += is_stack
        ranges[dim] = split_evenly(whole.shape[dim], mesh.layout.tensor)[mesh.place("tensor")]
    return ranges


def _fsdp_ranges(tensor: DTensor, ranges: Ranges, mesh: Mesh) -> tuple[Ranges, bool]:
    """The part of `ranges` that FSDP left here, and whether this rank is the first that holds it."""
    first, ranges = True, list(ranges)
    for axis, placement in zip(tensor.device_mesh.mesh_dim_names or (), tensor.placements, strict=True):
        if not isinstance(placement, Shard):
            first = first and mesh.place(axis) == 0
            continue
        dim = placement.dim
        longest = -(-len(ranges[dim]) // mesh.degree[axis])  # as torch.chunk cuts
        begin = min(mesh.place(axis) * longest, len(ranges[dim]))
        ranges[dim] = ranges[dim][begin : begin + longest]
    return ranges, first


def _whole(name: str, specs: dict[str, TensorSpec], shape: ModelShape) -> Tensor:
    """A meta tensor of the size that the parameter has in one process."""
    size = _spec(name, specs).shape
    if ".experts." in name:
        size = (shape.experts, *size)
    return torch.empty(size, device="meta")


def _is_cut(name: str, specs: dict[str, TensorSpec]) -> bool:
    return _spec(name, specs).tensor_dim is not None


def copied_over_tensor(shape: ModelShape) -> set[str]:
    """Stored tensors that every rank of the tensor axis holds whole."""
    return {spec.name for spec in tensor_table(shape) if spec.tensor_dim is None}


def _is_copy(model: Decoder, name: str) -> bool:
    """The head of a model with tied embeddings, on a stage that is not the first."""
    return name == "model.embed_tokens.weight" and not model.part.first


def _spec(name: str, specs: dict[str, TensorSpec]) -> TensorSpec:
    room, experts, matrix = name.rpartition(".experts.")
    return specs[f"{room}.experts.0.{matrix}.weight" if experts else name]


def _specs(shape: ModelShape) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in tensor_table(shape)}


def _parts(models: nn.Module) -> Iterator[tuple[str, Decoder]]:
    if isinstance(models, nn.ModuleList):
        for number, model in enumerate(models):
            assert isinstance(model, Decoder)
            yield f"{number}.", model
    else:
        assert isinstance(models, Decoder)
        yield "", models
