"""Weights of one rank of a layout: what it holds, what is gathered beside it, what is cast or joined for use.

Blocks' matrices are gathered in the compute type; embedding and head (and norms and routers, which are left
out) in fp32. Linear layers of a rank whose weights are sharded, or of a pipeline, cast and join them again in
the backward pass (model/deferred.py): of those copies there is one at a time. Experts' copies are kept until
then, but where they are gathered in the compute type already.
Where ranks hold the same whole weights (`repeats_weights`), nothing is gathered, and copies are kept as in
one process.
Source: parallel/shard.py, parallel/replicate.py, parallel/apply.py.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import ceil

from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.memory.copies import copied_elements, largest_copy
from bessemer.formulas.memory.parts import Kinds, Workload
from bessemer.formulas.parameters import num_dense_layers
from bessemer.formulas.quantized import NONE_PACKED, Packed, packed_block, unpacked_bytes
from bessemer.formulas.schedule import splits_backward
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensor_spec import TensorSpec
from bessemer.formulas.tensors import tensor_table


@dataclass(frozen=True)
class Held:
    """Parameters that a rank computes with, before they are sharded."""

    ordinary: int
    experts: int
    largest_block: int
    ends: int  # embedding, head, final norm: part of ordinary
    root: int  # of the ends head and final norm, which stay gathered from forward to backward
    # Of adapters, beside all that is above, which then is frozen; None: there are none.
    added: int | None = None
    added_block: int = 0
    packed: Packed = NONE_PACKED  # of the ordinary ones, those in 4 or 8 bits
    packed_block: Packed = NONE_PACKED  # of the largest block

    @property
    def whole(self) -> int:
        return self.ordinary + self.experts

    def local(self, layout: Layout) -> int:
        """What is left of them on the rank with the largest part, once they are sharded."""
        return ceil(self.ordinary / _fsdp(layout)) + ceil(self.experts / ranks_of_experts(layout))

    def learned(self, layout: Layout) -> int:
        """Of what learns, the same."""
        return self.local(layout) if self.added is None else ceil(self.added / _fsdp(layout))

    @property
    def learned_whole(self) -> int:
        return self.whole if self.added is None else self.added

    @property
    def learned_block(self) -> int:
        """Of the largest block."""
        return self.largest_block if self.added is None else self.added_block

    def weight_bytes(self, work: Workload, layout: Layout) -> int:
        local = self.local(layout)
        if self.added is None:
            return 4 * local
        return self.packed.shard(_fsdp(layout)).frozen_bytes(local, work.size) + 4 * self.learned(layout)


def gathered_bytes(held: Held, work: Workload, layout: Layout) -> int:
    """Beside the rank's own shards, from the first forward pass of a step to its last backward pass."""
    if not _shards_weights(layout):
        return 0
    ends = 4 if held.added is None else work.size
    if layout.reshard and layout.pipeline == 1 and _fsdp(layout) > 1:
        return ends * held.root
    blocks = held.ordinary - held.ends + (held.experts if _gathers_experts(layout) else 0)
    if held.added is not None:
        frozen = held.packed.frozen_bytes(held.ends + blocks, work.size)
        return frozen + _gathered_size(work, layout) * held.added
    return ends * held.ends + _gathered_size(work, layout) * blocks


def whole_gradients(held: Held, layout: Layout) -> int:
    """Bytes of fp32 gradients of other shards, where they are summed over micro-batches before they are
    scattered. The rank's own, which a rank has in any case, are left out."""
    waits = layout.pipeline > 1 or _fsdp(layout) == 1
    return 4 * (held.learned_whole - held.learned(layout)) if waits and _shards_weights(layout) else 0


def block_bytes(held: Held, work: Workload, layout: Layout) -> int:
    """Gathered for the block that is taken back: its weights and those of the next one, then its gradients,
    and again for their way as they are scattered (in fp32), when its weights have gone."""
    if _fsdp(layout) == 1 or layout.pipeline > 1:
        return 0
    size, on_its_way = _gathered_size(work, layout), 4
    if held.added is not None:  # whose gradients are small
        frozen = held.packed_block.frozen_bytes(held.largest_block, work.size)
        return (2 if layout.reshard else 0) * frozen + 12 * held.added_block
    if not layout.reshard:
        return (size + on_its_way) * held.largest_block
    return (size + max(2 * size, size + on_its_way)) * held.largest_block


def left_over(held: Held, work: Workload, layout: Layout) -> int:
    """The last gradients of the micro-batch before, in fp32 as they were sent: FSDP lets go of them when it
    sends the next ones."""
    if _fsdp(layout) == 1 or layout.pipeline > 1 or work.micro_batches == 1:
        return 0
    if held.added is not None:
        return 4 * held.added_block
    return 4 * (held.ends - held.root or held.root)


def kept_copies(shape: ModelShape, work: Workload, layout: Layout, dense: int, routed: int) -> int:
    """Bytes of copies of matrices that autograd keeps. dense, routed: layers of the rank, one time for each
    micro-batch that is on its way, but once where they are recomputed."""
    if shape.adapter is not None:
        return 0
    gathered = _gathers_experts(layout) and _gathered_size(work, layout) == 2
    elements = 0.0
    for is_routed, count in ((False, dense), (True, routed)):
        others, experts = copied_elements(shape, work.size, routed=is_routed)
        elements += count * (0 if rejoins(layout) else others)
        elements += count * (0 if gathered else experts / layout.expert)
    return ceil(work.size * elements / layout.tensor)


def one_copy(shape: ModelShape, work: Workload, layout: Layout, kinds: Kinds) -> int:
    """Bytes of the largest cast or joined matrix of such layers, or of one out of its packing, while it is
    used."""
    if shape.adapter is not None:
        return unpacked_bytes(shape, work.size, layout.tensor)
    largest = max(largest_copy(shape, work.size, routed=routed) for routed in kinds)
    return ceil(work.size * largest / layout.tensor)


def layer_learned(shape: ModelShape, layout: Layout, *, routed: bool) -> float:
    """Parameters of one layer that learn, on the rank: what is left of them once they are sharded."""
    if shape.adapter is not None:
        return adapter_elements(shape, layout.tensor, routed=routed) / _fsdp(layout)
    plain, experts = block_elements(shape, layout.tensor, routed=routed)
    return plain / _fsdp(layout) + experts / layout.expert / ranks_of_experts(layout)


def rejoins(layout: Layout) -> bool:
    """Whether linear layers make their copies again: parallel/apply.py."""
    return _shards_weights(layout) or layout.pipeline > 1


def held_weights(shape: ModelShape, layout: Layout, pipeline_rank: int) -> Held:
    stages = layout.stages_of(pipeline_rank)
    table = layers_of_stages(shape, layout)
    layers = [layer for stage in stages for layer in table[stage]]
    routed = sum(layer >= num_dense_layers(shape) for layer in layers)
    counts = {False: len(layers) - routed, True: routed}
    ordinary = experts = block = added = added_block = 0
    packed = of_block = NONE_PACKED
    for is_routed, count in counts.items():
        if count:
            plain, of_experts = block_elements(shape, layout.tensor, routed=is_routed)
            of_experts = ceil(of_experts / layout.expert)
            ordinary, experts = ordinary + count * plain, experts + count * of_experts
            block = max(block, plain + of_experts)
            of_adapters = adapter_elements(shape, layout.tensor, routed=is_routed)
            added, added_block = added + count * of_adapters, max(added_block, of_adapters)
            one = packed_block(shape, layout.tensor, routed=is_routed)
            packed, of_block = packed + one.times(count), max(of_block, one, key=lambda each: each.bytes)
    matrix = ceil(shape.vocab / layout.tensor) * shape.hidden
    first, last = 0 in stages, layout.num_stages - 1 in stages
    # Tied ends of a V-shaped pipeline, too, lie in two stages of one rank, each with a table of its own.
    shared = shape.tie_embeddings and layout.num_stages == 1
    # A head of classes is whole on every rank of the tensor axis, and learns also beside adapters.
    classes = shape.labels * shape.hidden if last else 0
    head = (matrix if last and not shape.labels else 0) + (classes if shape.adapter is None else 0)
    norm = shape.hidden if last else 0
    ends = (matrix + shape.positions * shape.hidden) * first + (0 if shared else head) + norm
    found = Held(ordinary + ends, experts, block, ends, head + norm)
    if shape.adapter is None:
        return found
    added += classes
    return replace(found, added=added, added_block=added_block, packed=packed, packed_block=of_block)


def block_elements(shape: ModelShape, tensor: int, *, routed: bool) -> tuple[int, int]:
    """Of one layer on the tensor rank with the largest part: (all but experts, all experts together)."""
    return _block_elements(replace(shape, rope_scaling=None), tensor, routed)  # of which no tensor depends


@cache
def _block_elements(shape: ModelShape, tensor: int, routed: bool) -> tuple[int, int]:
    """A table of 256 experts takes milliseconds to make."""
    specs = _block_specs(replace(shape, adapter=None), routed)
    plain = sum(_split(spec, tensor) for spec in specs if spec.expert is None)
    return plain, sum(_split(spec, tensor) for spec in specs if spec.expert is not None)


def adapter_elements(shape: ModelShape, tensor: int, *, routed: bool) -> int:
    """Of one layer's adapters on the tensor rank with the largest part."""
    return _adapter_elements(replace(shape, rope_scaling=None), tensor, routed)


@cache
def _adapter_elements(shape: ModelShape, tensor: int, routed: bool) -> int:
    if shape.adapter is None:
        return 0
    return sum(_split(spec, tensor) for spec in _block_specs(shape, routed))


def ranks_of_experts(layout: Layout) -> int:
    """How many ranks shard the same experts between them: `inner` of parallel/mesh.py."""
    shards = layout.shard * layout.context
    return (shards if shards % layout.expert == 0 else layout.replicate * shards) // layout.expert


def _block_specs(shape: ModelShape, routed: bool) -> list[TensorSpec]:
    one = replace(shape, layers=1, dense_layers=0 if routed or not shape.experts else 1)
    return [spec for spec in tensor_table(one) if spec.trained and ".layers." in spec.name]


def _split(spec: TensorSpec, tensor: int) -> int:
    """Elements on the rank with the largest part."""
    if spec.tensor_dim is None:
        return spec.numel
    size = spec.shape[spec.tensor_dim]
    return spec.numel // size * ceil(size / tensor)


def _fsdp(layout: Layout) -> int:
    """Ranks that share dense weights between them."""
    return layout.shard * layout.context


def _shards_weights(layout: Layout) -> bool:
    """As parallel/mesh.py has it."""
    return layout.replicate * _fsdp(layout) > 1 and not layout.repeats_weights


def _gathers_experts(layout: Layout) -> bool:
    """Whether other ranks have parts of the same experts, or the same ones in a way of FSDP's."""
    return _shards_weights(layout) and layout.replicate * _fsdp(layout) > layout.expert


def _gathered_size(work: Workload, layout: Layout) -> int:
    """Bytes of an element. In fp32 where weight gradients wait: they are added up where the weights stand."""
    return 4 if splits_backward(layout) else work.size
