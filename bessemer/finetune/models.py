"""Whole models beside the one that is trained: what answers are sampled with, and who is asked about them.

Each rank that samples has the whole model, so that ranks share the prompts and not the layers: a token of one
answer is far too little work to be divided. Cost under a layout of several ranks: the weights once more on
each, for as long as a round is made (fp32 compute 4 bytes a parameter, bf16 2), and one all-reduce of them.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bessemer.checkpoint.base import Base, check_base
from bessemer.checkpoint.huggingface import load_into
from bessemer.checkpoint.load import COMPUTE, load_model
from bessemer.checkpoint.parts import local
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.device import this_device
from bessemer.model.moe import Router
from bessemer.model.pieces import Piece, stored, whole_pieces
from bessemer.parallel.engine import Engine, Ranks
from bessemer.parallel.pieces import held_pieces
from bessemer.train.origin import Origin

ASKS = "asks"  # use of a base (checkpoint/base.py)


def check_asked(stage: Path, origin: Origin) -> None:
    """CheckpointError unless a model that the stage asks about answers is the one that it asked at first."""
    check_base(Base.of(stage, origin.to_json(), ASKS))


def origin_model(origin: Origin, dtype: str, say: Callable[[str], None]) -> Decoder:
    """The model that a run or a Hugging Face folder holds, to compute with."""
    assert origin.adapter is None, f"{origin.adapter} is not merged into {origin.folder}"
    if origin.kind == "checkpoint":
        return load_model(Path(origin.folder), origin.step, say).model
    model = _empty(origin.shape(), COMPUTE[dtype])
    load_into(model, Path(origin.folder))
    return model


def sampling_model(engine: Engine, shape: ModelShape) -> Decoder:
    """The weights of this moment as a whole model. All ranks ask at the same time."""
    first = next(part for part in engine.model.modules() if isinstance(part, Decoder))
    compute = first.compute
    if engine.world == 1 and (compute == torch.float32 or shape.adapter is not None):
        return first  # as it is: nothing would be cast in each token's pass
    with torch.device("meta"):
        model = Decoder(shape, compute)
    # Not the engine's own: those of a stage of adapters leave its base out.
    here = held_pieces(engine.model, shape, engine.mesh) if isinstance(engine, Ranks) else whole_pieces(first)
    parts: dict[str, list[tuple[Piece, Tensor]]] = {}
    for name, tensor in stored(engine.model):
        for piece in here[name]:
            parts.setdefault(piece.name, []).append((piece, piece.of(local(tensor))))
    # Frozen matrices are in the compute type already, and adapters are fp32 in every pass.
    kept = _in_compute_type(model) if shape.adapter is None else set()
    held = whole_pieces(model)
    with torch.no_grad():
        for name, tensor in list(stored(model)):
            values = torch.empty_like(tensor, device=engine.device, dtype=compute if name in kept else None)
            for whole in held[name]:
                own = parts.get(whole.name, [])
                whole.of(values).copy_(_gathered(whole, own, tensor.dtype, engine))
            _put(model, name, values, trained=tensor.requires_grad)
    return model


def _in_compute_type(model: Decoder) -> set[str]:
    """Matrices, which every pass would cast. Norms and routers compute in fp32."""
    routers = tuple(name for name, module in model.named_modules() if isinstance(module, Router))
    named = model.named_parameters()
    return {name for name, each in named if each.dim() > 1 and not name.startswith(routers or ("-",))}


def _put(model: Decoder, name: str, values: Tensor, *, trained: bool) -> None:
    room, _, own = name.rpartition(".")
    module = model.get_submodule(room)
    if isinstance(getattr(module, own), nn.Parameter):
        module.register_parameter(own, nn.Parameter(values, requires_grad=trained))
    else:
        module.register_buffer(own, values)


def _gathered(whole: Piece, parts: list[tuple[Piece, Tensor]], dtype: torch.dtype, engine: Engine) -> Tensor:
    """A stored tensor from the parts that all ranks hold.

    Those that hold the same part hold the same values, and who holds none says the least number there is: so
    the largest over all ranks is the value, bit for bit.
    """
    if engine.world == 1:
        ((_, part),) = parts
        return part
    values = torch.full(whole.shape, -torch.inf, dtype=dtype, device=engine.device)
    for piece, part in parts:
        values[tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.size, strict=True))] = part
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def _empty(shape: ModelShape, compute: torch.dtype) -> Decoder:
    with torch.device("meta"):
        model = Decoder(shape, compute)
    return model.to_empty(device=this_device())
