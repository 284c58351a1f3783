"""What the ranks exchange of weights and their gradients in a step: the first part of
formulas/traffic/step.py.

FSDP's units, as parallel/shard.py wraps them: each block (its norms and routers apart where its matrices are
cast), its experts where they lie elsewhere, the embedding, and the rest. Where ranks hold the same whole
weights, parallel/replicate.py sums the gradients of the same units, and nothing is cast. Frozen weights are
gathered like others, in the type that they are kept in or packed, and have no gradient to exchange.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bessemer.formulas.layout import split_evenly
from bessemer.formulas.quantized import is_packed, packed_row_bytes
from bessemer.formulas.schedule import splits_backward
from bessemer.formulas.tensor_spec import TensorSpec
from bessemer.formulas.traffic.sizes import FP32, Exchange, Step, block_specs, cut, embedding, is_fp32, padded


@dataclass(frozen=True)
class _Part:
    """A weight before it is sharded."""

    size: list[int]
    bytes: int  # of an element that is gathered
    learns: bool


def weight_exchanges(step: Step) -> Iterator[Exchange]:
    """Unit by unit."""
    both, learns = (step.layout.replicate, step.fsdp), step.shape.adapter is None
    for layer in step.layers:
        for parts, over in _block_units(step, step.is_routed(layer)):
            yield from _unit(step, parts, over)
    table = _Part(cut(embedding(step.shape), step), FP32 if learns else step.work.size, learns)
    norm = _Part([step.shape.hidden], FP32, learns)
    if step.has_first and not step.shape.tie_embeddings:
        yield from _unit(step, [table], both, is_backward=learns)
    # What is left of a stage. Tied, the embedding is part of it, and both ends of a pipeline have their own.
    head = table
    if step.shape.labels:  # of classes: whole on every tensor rank, and it learns beside adapters too
        head = _Part([step.shape.labels, step.shape.hidden], FP32, learns=True)
    if step.has_last:
        yield from _unit(step, [norm, head], both, twice=False)
    if step.has_first and step.shape.tie_embeddings and step.layout.num_stages > 1:
        yield from _unit(step, [table], both, twice=False)


def _block_units(step: Step, routed: bool) -> Iterator[tuple[list[_Part], tuple[int, int]]]:
    """(weights, (repeating, sharding) ranks)."""
    layout, specs, both = step.layout, block_specs(step.shape, routed), (step.layout.replicate, step.fsdp)
    # Matrices are cast before they travel; norms and routers, which compute in fp32, travel apart.
    cast = step.work.dtype != "fp32" and not splits_backward(layout) and not layout.repeats_weights
    stacks = [_part(step, spec, cast) for spec in specs if spec.expert is not None]
    plain = [spec for spec in specs if spec.expert is None]
    if cast:
        yield [_part(step, spec, cast) for spec in plain if is_fp32(spec)], both
    matrices = [_part(step, spec, cast) for spec in plain if not (cast and is_fp32(spec))]
    if layout.expert > 1 and stacks:
        yield stacks, step.expert_ranks
    yield (matrices if layout.expert > 1 else matrices + stacks), both


def _part(step: Step, spec: TensorSpec, cast: bool) -> _Part:
    learns = spec.trained or step.shape.adapter is None
    is_small = cast or not (learns or len(spec.shape) == 1)  # frozen matrices are kept in the compute type
    size, adapter = cut(spec, step), step.shape.adapter
    if adapter is not None and adapter.base != "float" and is_packed(spec):
        return _Part([size[0], packed_row_bytes(adapter.base, _columns(spec, step))], 1, learns=False)
    if spec.expert is not None:
        size = [step.shape.experts // step.layout.expert, *size]
    return _Part(size, step.work.size if is_small and not is_fp32(spec) else FP32, learns)


def _columns(spec: TensorSpec, step: Step) -> range:
    """Of this rank's part."""
    if spec.tensor_dim != 1:
        return range(spec.shape[1])
    return split_evenly(spec.shape[1], step.layout.tensor)[step.place.tensor]


def _unit(
    step: Step,
    parts: list[_Part],
    over: tuple[int, int],
    *,
    twice: bool = True,
    is_backward: bool = True,
) -> Iterator[Exchange]:
    """twice: gathered again for the backward pass where the layout reshards."""
    replicas, ranks = over
    layout, turns = step.layout, step.work.micro_batches
    gathered = sum(part.bytes * padded(part.size, ranks) for part in parts)
    learned = sum(padded(part.size, ranks) for part in parts if part.learns)
    # Where dense weights are not sharded, nothing is freed in between, and all gradients wait for the last
    # micro-batch.
    again = twice and layout.reshard and step.fsdp > 1
    # A unit without a gradient before it (the frozen embedding) has no backward pass of its own: FSDP gathers
    # it ahead of one all the same, and has it then for the next forward pass.
    gathers = turns + (again and (turns if is_backward else 1))
    gathers = 1 if layout.pipeline > 1 else gathers
    scatters = 1 if layout.pipeline > 1 or step.fsdp == 1 else turns
    is_dense = over == (layout.replicate, step.fsdp)
    yield Exchange("fsdp" if is_dense else "inner", "all_gather", gathered, ranks, gathers)
    yield Exchange("fsdp" if is_dense else "inner", "reduce_scatter", FP32 * learned, ranks, scatters)
    axis = "replicate" if is_dense else "outer"
    yield Exchange(axis, "all_reduce", FP32 * learned // ranks, replicas, 1)
