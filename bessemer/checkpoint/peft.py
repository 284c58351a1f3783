"""Adapters in PEFT's form: `adapter_config.json` and `adapter_model.safetensors`, both ways.

Our names are PEFT's but for its prefix and the `.weight` behind a magnitude. Where a family's class joins
matrices that are apart here (Phi-3's query, key and value), so are their adapters: A one below the other, B
block by block, rank and alpha times the number of them; the product is the same, number for number.
A head of classes travels along, as one of PEFT's `modules_to_save`.
Source: peft 0.21, `peft/tuners/lora/config.py`, `peft/utils/save_and_load.py`, and `get_pattern_key` of
`peft/utils/other.py`.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bessemer.formulas.adapters import is_adapted
from bessemer.formulas.shape import CLASS_HEAD, Adapter, ModelShape
from bessemer.formulas.stored import StoredTensor, stored_table
from bessemer.formulas.tensor_spec import TensorSpec
from bessemer.formulas.tensors import tensor_table

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"


def peft_config(shape: ModelShape, base: str | None) -> dict[str, Any]:
    """adapter_config.json. base: what `base_model_name_or_path` says."""
    adapter = _adapter(shape)
    joined = {_module(each): _count(each, adapter) for each in _adapted(shape) if len(each.parts) > 1}
    grown = {name: count for name, count in joined.items() if count > 1}
    names = {each.name.removesuffix(".weight") for each in _adapted(shape)}
    short = {_module(each) for each in _adapted(shape)}
    return {
        "alpha_pattern": {name: _number(_alpha(adapter, count)) for name, count in grown.items()},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _number(adapter.alpha),
        "lora_dropout": 0.0,
        "modules_to_save": ["score"] if shape.labels else None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "rank_pattern": {name: count * adapter.rank for name, count in grown.items()},
        # Some versions of transformers have experts, which are not adapted, as modules of the same names.
        "target_modules": sorted(names if shape.experts else short),
        "task_type": "SEQ_CLS" if shape.labels else "CAUSAL_LM",
        "use_dora": adapter.dora,
        "use_rslora": adapter.rslora,
    }


def peft_scales(config: Mapping[str, Any], shape: ModelShape) -> dict[str, tuple[float, float]]:
    """(rank, alpha) that PEFT gives each adapted matrix of the family's files.

    By its rule for patterns: the first key that, as a regular expression, is the module's name or its end
    behind a dot. re.error: one is none.
    """
    default = {"r": 8, "lora_alpha": 8}

    def said(key: str, pattern: str, module: str) -> float:
        own = config.get(pattern) or {}
        found = next((name for name in own if re.match(rf"(.*\.)?({name})$", module)), None)
        return float(config.get(key, default[key]) if found is None else own[found])

    modules = [each.name.removesuffix(".weight") for each in _adapted(shape)]
    return {
        name: (said("r", "rank_pattern", name), said("lora_alpha", "alpha_pattern", name)) for name in modules
    }


def partly_joined(shape: ModelShape) -> str | None:
    """A joined matrix of which only a part has magnitudes; None: there is none. PEFT's are of all its rows,
    and for the others they would have to be the norms of the base, which no adapter holds."""
    adapter = _adapter(shape)
    parts = (each for each in _adapted(shape) if _count(each, adapter) < len(each.parts))
    return next((_module(each) for each in parts), None) if adapter.dora else None


def peft_tensors(shape: ModelShape, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of adapter_model.safetensors. read: gives a trained tensor of ours by its name."""
    adapter = _adapter(shape)
    for stored in _adapted(shape):
        room = PREFIX + stored.name.removesuffix("weight")
        parts = [(spec, rows) for spec, rows in stored.rows() if is_adapted(spec.name, adapter)]
        yield f"{room}lora_A.weight", torch.cat([read(_own(spec, "lora_A.weight")) for spec, _ in parts])
        yield f"{room}lora_B.weight", _blocks(stored, parts, adapter.rank, read)
        if adapter.dora:
            magnitudes = [read(_own(spec, f"{_MAGNITUDE}.weight")) for spec, _ in parts]
            yield f"{room}{_MAGNITUDE}", torch.cat(magnitudes)
    if shape.labels:
        yield PREFIX + CLASS_HEAD, read(CLASS_HEAD)


def peft_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Of the tensors that such a file has."""
    sizes = {spec.name: spec.shape for spec in tensor_table(shape)}
    return {
        name: tuple(tensor.shape)
        for name, tensor in peft_tensors(shape, lambda name: torch.empty(sizes[name], device="meta"))
    }


def own_tensors(shape: ModelShape, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse: ours by name. KeyError: one is missing; ValueError: a joined one is no block matrix."""
    adapter, found = _adapter(shape), {}
    for stored in _adapted(shape):
        room = PREFIX + stored.name.removesuffix("weight")
        parts = [(spec, rows) for spec, rows in stored.rows() if is_adapted(spec.name, adapter)]
        down, up = tensors[f"{room}lora_A.weight"], tensors[f"{room}lora_B.weight"]
        rebuilt = torch.zeros_like(up)
        for index, (spec, rows) in enumerate(parts):
            own = slice(index * adapter.rank, (index + 1) * adapter.rank)
            found[_own(spec, "lora_A.weight")] = down[own]
            found[_own(spec, "lora_B.weight")] = rebuilt[rows, own] = up[rows, own]
            if adapter.dora:
                found[_own(spec, f"{_MAGNITUDE}.weight")] = tensors[f"{room}{_MAGNITUDE}"][rows]
        if not torch.equal(rebuilt, up):
            raise ValueError(f"{stored.name} has one adapter for matrices that are apart here")
    if shape.labels and PREFIX + CLASS_HEAD in tensors:
        found[CLASS_HEAD] = tensors[PREFIX + CLASS_HEAD]
    return found


def _blocks(
    stored: StoredTensor, parts: list[tuple[TensorSpec, slice]], rank: int, read: Callable[[str], Tensor]
) -> Tensor:
    """B of matrices that are joined: each in its own rows, for its own rows of A."""
    ups = [read(_own(spec, "lora_B.weight")) for spec, _ in parts]
    if len(stored.parts) == 1:
        return ups[0]
    joined = ups[0].new_zeros((stored.shape[0], rank * len(parts)))
    for index, ((_, rows), up) in enumerate(zip(parts, ups, strict=True)):
        joined[rows, index * rank : (index + 1) * rank] = up
    return joined


def _adapted(shape: ModelShape) -> list[StoredTensor]:
    """Matrices of the family's files that have an adapter, be it in a part of them."""
    base = replace(shape, adapter=None)
    return [stored for stored in stored_table(base) if _count(stored, _adapter(shape))]


def _count(stored: StoredTensor, adapter: Adapter) -> int:
    return sum(is_adapted(spec.name, adapter) for spec in stored.parts)


def _alpha(adapter: Adapter, count: int) -> float:
    """That gives a rank `count` times as high the same scale."""
    return adapter.alpha * (math.sqrt(count) if adapter.rslora else count)


def _adapter(shape: ModelShape) -> Adapter:
    assert shape.adapter is not None, "a model without adapters"
    return shape.adapter


def _module(stored: StoredTensor) -> str:
    return stored.name.removesuffix(".weight").rpartition(".")[2]


def _own(spec: TensorSpec, tensor: str) -> str:
    return spec.name.removesuffix("weight") + tensor


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value
