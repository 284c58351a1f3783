"""Adapters (LoRA, rsLoRA, DoRA): which matrices get one, and the tensors that it has.

Beside a frozen matrix W [out, in] stand A [rank, in] and B [out, rank]; the layer computes W + scale B A
(arXiv:2106.09685). DoRA adds a magnitude for each row (arXiv:2402.09353). Everything else is frozen. Names
are PEFT's as its modules have them (its files leave ".weight" out behind `lora_magnitude_vector`).
A begins as PEFT's in variance, uniform within 1 / sqrt(in) there, normal here; B at zero, so that the model
begins as it was; magnitudes as the norms of W's rows (model/adapter.py).
On the tensor axis A is split where W's columns are, B and magnitudes where its rows are; the other is whole
on every rank, and its gradient partial.
Not done: adapters on routed experts (stacked in one parameter), the router, embedding and head.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from bessemer.formulas.parameters import num_dense_layers
from bessemer.formulas.shape import CLASS_HEAD, Adapter, ModelShape
from bessemer.formulas.tensor_spec import TensorSpec

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
MAGNITUDE = "lora_magnitude_vector.weight"


def with_adapters(table: Iterable[TensorSpec], adapter: Adapter) -> Iterator[TensorSpec]:
    """The table with each adapter behind its matrix, and everything else frozen."""
    for spec in table:
        # A head of classes is new with the task, so it learns, as PEFT's `modules_to_save`.
        yield replace(spec, trained=spec.trained and spec.name == CLASS_HEAD)
        if is_adapted(spec.name, adapter):
            yield from _specs(spec, adapter)


def is_adapted(name: str, adapter: Adapter) -> bool:
    """Whether the weight of that name has an adapter beside it."""
    module, _, kind = name.rpartition(".")
    return kind == "weight" and ".experts." not in name and module.rpartition(".")[2] in adapter.targets


def matrices(shape: ModelShape, *, routed: bool) -> dict[str, tuple[int, int]]:
    """(out, in) of the matrices of one layer that can have an adapter, by the name of their module."""
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    found = dict(zip(ATTENTION, sizes, strict=True))
    ffn = shape.shared_ffn if routed else shape.ffn
    if ffn:
        found |= zip(FEED_FORWARD, [(ffn, hidden), (ffn, hidden), (hidden, ffn)], strict=True)
        if not shape.gated:
            del found["gate_proj"]
    return found


def adapter_params(shape: ModelShape) -> int:
    """Trained numbers of all adapters."""
    return sum(count * layer_adapter_params(shape, routed=routed) for routed, count in _layers(shape))


def layer_adapter_params(shape: ModelShape, *, routed: bool) -> int:
    """Of one layer, in closed form."""
    adapter = shape.adapter
    if adapter is None:
        return 0
    sizes = [size for name, size in matrices(shape, routed=routed).items() if name in adapter.targets]
    return sum(adapter.rank * (out + inputs) + out * adapter.dora for out, inputs in sizes)


def trained_params(shape: ModelShape, total: int) -> int:
    """Of a model of `total` parameters."""
    if shape.adapter is None:
        return total
    return adapter_params(shape) + shape.labels * shape.hidden


def _layers(shape: ModelShape) -> list[tuple[bool, int]]:
    dense = num_dense_layers(shape)
    return [(False, dense), (True, shape.layers - dense)]


def _specs(spec: TensorSpec, adapter: Adapter) -> Iterator[TensorSpec]:
    module, (out, inputs) = spec.name.removesuffix("weight"), spec.shape
    by_rows, by_columns = spec.tensor_dim == 0, spec.tensor_dim == 1
    yield replace(
        spec,
        name=f"{module}lora_A.weight",
        shape=(adapter.rank, inputs),
        init_std=1.0 / math.sqrt(3.0 * inputs),
        tensor_dim=1 if by_columns else None,
    )
    split = 0 if by_rows else None
    yield replace(
        spec, name=f"{module}lora_B.weight", shape=(out, adapter.rank), init_std=0.0, tensor_dim=split
    )
    if adapter.dora:
        yield replace(
            spec, name=f"{module}{MAGNITUDE}", shape=(out,), init_std=None, decay=False, tensor_dim=split
        )
