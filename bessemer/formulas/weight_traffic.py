"""What the ranks exchange of weights and their gradients in a step: the first part of formulas/traffic.py.

FSDP's units, as parallel/shard.py wraps them: each block (its norms and routers apart where its matrices are
cast), its experts where they lie elsewhere, the embedding, and the rest. Where ranks hold the same whole
weights, parallel/replicate.py sums the gradients of the same units, and nothing is cast.
"""

from collections.abc import Iterator

from bessemer.formulas.schedule import splits_backward
from bessemer.formulas.step_sizes import FP32, Exchange, Step, block_specs, cut, embedding, is_fp32, padded


def weight_exchanges(step: Step) -> Iterator[Exchange]:
    """Unit by unit."""
    both = (step.layout.replicate, step.fsdp)
    for layer in step.layers:
        for sizes, over, size in _block_units(step, step.is_routed(layer)):
            yield from _unit(step, sizes, over, size=size)
    table = cut(embedding(step.shape), step)
    if step.has_first and not step.shape.tie_embeddings:
        yield from _unit(step, [table], both)
    # What is left of a stage. Tied, the embedding is part of it, and both ends of a pipeline have their own.
    if step.has_last:
        yield from _unit(step, [[step.shape.hidden], table], both, twice=False)
    if step.has_first and step.shape.tie_embeddings and step.layout.num_stages > 1:
        yield from _unit(step, [table], both, twice=False)


_Sizes = list[list[int]]


def _block_units(step: Step, routed: bool) -> Iterator[tuple[_Sizes, tuple[int, int], int]]:
    """(sizes of the weights before sharding, (repeating, sharding) ranks, bytes of a gathered element)."""
    layout, specs, both = step.layout, block_specs(step.shape, routed), (step.layout.replicate, step.fsdp)
    here = step.shape.experts // layout.expert
    stacks = [[here, *cut(spec, step)] for spec in specs if spec.expert is not None]
    plain = [spec for spec in specs if spec.expert is None]
    # Matrices are cast before they travel; norms and routers, which compute in fp32, travel apart.
    cast = step.work.dtype != "fp32" and not splits_backward(layout) and not layout.repeats_weights
    size = step.work.size if cast else FP32
    if cast:
        yield [cut(spec, step) for spec in plain if is_fp32(spec)], both, FP32
    matrices = [cut(spec, step) for spec in plain if not (cast and is_fp32(spec))]
    if layout.expert > 1 and stacks:
        yield stacks, step.expert_ranks, size
    yield (matrices if layout.expert > 1 else matrices + stacks), both, size


def _unit(
    step: Step, sizes: _Sizes, over: tuple[int, int], *, size: int = FP32, twice: bool = True
) -> Iterator[Exchange]:
    """twice: gathered again for the backward pass where the layout reshards."""
    replicas, ranks = over
    layout, turns = step.layout, step.work.micro_batches
    elements = sum(padded(each, ranks) for each in sizes)
    # Where dense weights are not sharded, nothing is freed in between, and all gradients wait for the last
    # micro-batch.
    again = twice and layout.reshard and step.fsdp > 1
    gathers = 1 if layout.pipeline > 1 else turns * (2 if again else 1)
    scatters = 1 if layout.pipeline > 1 or step.fsdp == 1 else turns
    is_dense = over == (layout.replicate, step.fsdp)
    yield Exchange("fsdp" if is_dense else "inner", "all_gather", size * elements, ranks, gathers)
    yield Exchange("fsdp" if is_dense else "inner", "reduce_scatter", FP32 * elements, ranks, scatters)
    axis = "replicate" if is_dense else "outer"
    yield Exchange(axis, "all_reduce", FP32 * elements // ranks, replicas, 1)
