"""Memory of one rank of a layout: the parts of formulas/memory/parts.py, as the axes divide them.

- shard and context divide weights, gradients and optimizer (ZeRO-3, arXiv:1910.02054); experts lie apart
  on the expert axis and the rest. While they compute, ranks hold blocks whole:
  formulas/memory/rank_weights.py. `reshard=no` keeps them (ZeRO-2), and so do replicas of experts or of a
  pipeline, whose gathered weights are copies. Replicas of whole weights hold what one process holds: the
  gradients that travel are copied unit by unit, when more than that is free again.
- tensor divides matrices, and with sequence parallelism all activations (arXiv:2205.05198); context
  divides tokens.
- A pipeline rank has its stages' layers; the first stage the embedding, the last the head and the loss
  (both where they are tied). It holds the activations of every micro-batch that the schedule keeps on its
  way; recomputed ones grow while their weights wait (formulas/memory/waiting.py). Gradient reduction and
  freeing of gathered weights wait for a stage's last backward pass (parallel/shard.py), so that a sharded
  stage is there whole, weights and gradients.
The peak is in the loss or in the block that is taken back first, of any micro-batch:
formulas/memory/rank_moments.py lists where a rank may be fullest. A test compares the sum without `base` with
rehearsed ranks (measure/rehearse.py), for fp32 and bf16, whose numbers are in docs/planner.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import ceil

from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.memory.parts import (
    STATE_BYTES,
    Memory,
    Workload,
    activation_bytes,
    back_bytes_per_token,
    base_bytes,
    device_memory,
    ends_per_token,
    exchanged_rows_bytes,
    head_gradient_bytes,
    kept_per_token,
    kinds_of,
    loss_bytes,
    made_again_per_token,
    received_by_tensor,
    whole_rows_bytes,
    working_bytes,
)
from bessemer.formulas.memory.rank_moments import Moment, rank_moments
from bessemer.formulas.memory.rank_weights import (
    block_bytes,
    gathered_bytes,
    held_weights,
    kept_copies,
    layer_learned,
    left_over,
    one_copy,
    rejoins,
    whole_gradients,
)
from bessemer.formulas.memory.stage_ends import angle_bytes, given_bytes
from bessemer.formulas.memory.waiting import kept_longer
from bessemer.formulas.parameters import head_rows, num_dense_layers
from bessemer.formulas.passes import pass_lengths
from bessemer.formulas.shape import ModelShape


def rank_memory(shape: ModelShape, work: Workload, layout: Layout, pipeline_rank: int = 0) -> Memory:
    """Bytes at the peak of a step on each rank of that place in the pipeline.

    work.tokens: of whole rows, before the context axis cuts them.
    """
    if layout.world == 1:
        return device_memory(shape, work)
    # Scaled positions are no bytes, and their words in a dict would forbid to keep the answer.
    return _rank_memory(replace(shape, rope_scaling=None), work, layout, pipeline_rank)


@cache
def _rank_memory(shape: ModelShape, work: Workload, layout: Layout, pipeline_rank: int) -> Memory:
    rank = _Rank(shape, work, layout, pipeline_rank)
    return max((rank.at(moment) for moment in rank.moments), key=lambda memory: memory.total)


class _Rank:
    """A rank's sizes, and what of them is there at a moment."""

    def __init__(self, shape: ModelShape, work: Workload, layout: Layout, pipeline_rank: int) -> None:
        self.shape, self.work, self.layout = shape, work, layout
        self.table = layers_of_stages(shape, layout)
        self.held = held_weights(shape, layout, pipeline_rank)
        self.spread = layout.tensor * layout.context
        local = self.held.local(layout)
        # What allocators keep, by resident sets, is in the base.
        layers = [layer for stage in layout.stages_of(pipeline_rank) for layer in self.table[stage]]
        self.kinds = kinds_of(shape, layers)
        working = ceil(working_bytes(shape, work, self.kinds) / self.spread)
        back = max(back_bytes_per_token(shape, work.size, routed=routed) for routed in self.kinds)
        self.tensors = ceil(work.tokens * back / self.spread)
        learned = self.held.learned(layout)
        saved = learned if shape.adapter else local - _second_table(shape, layout, pipeline_rank)
        self.always = Memory(
            weights=self.held.weight_bytes(work, layout),
            gradients=4 * learned,
            optimizer=8 * learned,
            casts=0,
            activations=0,
            working=0,
            loss=0,
            base=base_bytes(work.kind) + max(0, working - self.tensors),
            gathered=gathered_bytes(self.held, work, layout) + whole_gradients(self.held, layout),
            saving=STATE_BYTES * saved if work.saves_async else 0,
        )
        lengths = pass_lengths(shape, work.row_tokens or shape.context, work.recompute)
        self.moments = rank_moments(layout, pipeline_rank, work.micro_batches, lengths)
        self.has_last = layout.num_stages - 1 in layout.stages_of(pipeline_rank)

    def at(self, moment: Moment) -> Memory:
        per_token = sum(self._kept(*part) for part in moment.held) + self._kept_longer(moment)
        kept = ceil(self.work.tokens / self.spread * per_token)
        casts = self._casts(moment)
        gradients = self.always.gradients - self._late_gradients(moment)
        now = replace(self.always, casts=casts, activations=kept, gradients=gradients)
        if moment.kind == "F":
            return self._in_loss(now, moment.stage)
        return self._in_block(now, moment)

    def _in_loss(self, now: Memory, stage: int) -> Memory:
        if stage != self.layout.num_stages - 1:
            return now
        loss, head = _loss(self.shape, self.work, self.layout)
        return replace(
            now, loss=loss, casts=now.casts + head, working=left_over(self.held, self.work, self.layout)
        )

    def _in_block(self, now: Memory, moment: Moment) -> Memory:
        """In the first block of the stage that is taken back."""
        full = self.work.recomputed_of(self.table[moment.stage])
        again = made_again_per_token(self.shape, self.work, self.kinds, any_full=full > 0)
        again = ceil(self.work.tokens / self.spread * again)
        copy = 0
        if rejoins(self.layout) or self.shape.adapter is not None:
            copy = one_copy(self.shape, self.work, self.layout, self.kinds)
        if self.work.recompute != "none":
            copy += max(
                kept_copies(self.shape, self.work, self.layout, not routed, routed) for routed in self.kinds
            )
        head = head_gradient_bytes(replace(self.shape, vocab=ceil(self.shape.vocab / self.layout.tensor)))
        return replace(
            now,
            activations=now.activations + again,
            casts=now.casts + copy,
            working=self.tensors,
            loss=head if moment.stage == self.layout.num_stages - 1 else 0,
            gathered=now.gathered + block_bytes(self.held, self.work, self.layout),
        )

    def _kept(self, stage: int, count: int) -> int:
        """Of so many micro-batches on a stage, per token."""
        layers, full = self.table[stage], self.work.recomputed_of(self.table[stage])
        kept = kept_per_token(self.shape, self.work, layers)
        rest = range(layers.start + full, layers.stop)
        routed = self._num_routed(rest)
        for count_of, is_routed in ((len(rest) - routed, False), (routed, True)):
            whole = (self.layout.tensor - 1) * whole_rows_bytes(self.shape, self.work, routed=is_routed)
            kept += count_of * (_received(self.shape, self.work, self.layout, routed=is_routed) + whole)
        if self.layout.expert > 1:
            kept += self.layout.tensor * routed * exchanged_rows_bytes(self.shape, self.work)
        if self.layout.pipeline > 1:
            kept += self.layout.tensor * angle_bytes(self.shape)
            kept += given_bytes(self.shape, self.work, layers) if stage else 0
        is_last = stage == self.layout.num_stages - 1
        return count * (
            kept + (ends_per_token(self.shape) if is_last else self.work.size * self.shape.hidden)
        )

    def _kept_longer(self, moment: Moment) -> int:
        """Per token, of recomputed layers of micro-batches whose weights wait: beyond what they kept."""
        more = 0
        for (stage, _), waiting in zip(moment.held, moment.waiting, strict=True):
            layers = self.table[stage]
            again = len(layers) if self.work.recompute == "selective" else self.work.recomputed_of(layers)
            routed = self._num_routed(layers[:again])
            longer = (again - routed) * self._longer(routed=False) + routed * self._longer(routed=True)
            more += waiting * longer
            if self.work.recompute != "none":  # what was given and the angles go with the backward pass
                done = max(0, waiting - (moment.kind == "B" and stage == moment.stage))
                more -= done * self.work.size * self.shape.hidden * (stage < self.layout.num_stages - 1)
                more -= done * self.layout.tensor * angle_bytes(self.shape)
        return more

    def _longer(self, *, routed: bool) -> int:
        return kept_longer(self.shape, self.work, self.layout.tensor, routed=routed)

    def _casts(self, moment: Moment) -> int:
        """Copies of matrices that autograd keeps of each micro-batch on its way, if nothing is made again."""
        if self.work.recompute != "none" and self.work.recompute_layers is None:
            return 0
        dense = routed = 0
        for stage, count in moment.held:
            layers = self.table[stage]
            rest = range(layers.start + self.work.recomputed_of(layers), layers.stop)
            with_experts = self._num_routed(rest)
            dense, routed = dense + count * (len(rest) - with_experts), routed + count * with_experts
        return kept_copies(self.shape, self.work, self.layout, dense, routed)

    def _late_gradients(self, moment: Moment) -> int:
        """Bytes of gradients of the layers whose stages nothing was taken back of yet in this step."""
        late = [layer for stage, _ in moment.held if stage not in moment.begun for layer in self.table[stage]]
        routed = self._num_routed(late)
        return sum(
            4 * round(count * layer_learned(self.shape, self.layout, routed=is_routed))
            for is_routed, count in ((False, len(late) - routed), (True, routed))
            if count
        )

    def _num_routed(self, layers: Sequence[int]) -> int:
        return sum(layer >= num_dense_layers(self.shape) for layer in layers)


def layout_memory(shape: ModelShape, work: Workload, layout: Layout) -> list[Memory]:
    """By pipeline rank."""
    return [rank_memory(shape, work, layout, rank) for rank in range(layout.pipeline)]


def rank_activation_bytes(shape: ModelShape, work: Workload, layout: Layout) -> int:
    """Activations on the rank that holds most of them."""
    if layout.world == 1:
        return activation_bytes(shape, work)
    found = 0
    for place in range(layout.pipeline):
        rank = _Rank(shape, work, layout, place)
        for moment in rank.moments:
            found = max(found, rank.at(moment).activations)
    return found


def _received(shape: ModelShape, work: Workload, layout: Layout, *, routed: bool) -> int:
    """Of one layer and own token: what other ranks sent and autograd keeps. With tensor the inputs of
    attention and feed-forward, whole along the sequence; with context keys and values of all tokens, in
    place of the rank's own."""
    kept = received_by_tensor(shape, work, layout.tensor, routed=routed)
    if layout.context_kind != "gather" or layout.context == 1:
        return kept
    width = 2 * shape.kv_heads * shape.head_dim
    own = shape.kv_heads * shape.head_dim
    if shape.mla_kv_rank:
        width = shape.heads * (shape.mla_nope_dim + shape.mla_rope_dim + shape.mla_v_dim)
        own = 0
    if work.recompute == "selective":  # which keeps the rank's own, too
        return kept + layout.context * work.size * width
    # The joined projections (of which the values are a part) go, once rotated and gathered.
    joined = 0 if shape.mla_kv_rank else (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return kept + work.size * (layout.context * width - own - joined)


def _second_table(shape: ModelShape, layout: Layout, pipeline_rank: int) -> int:
    """Parameters of a tied embedding that the last stage holds too; the first one saves it."""
    stages = layout.stages_of(pipeline_rank)
    if not shape.tie_embeddings or layout.num_stages - 1 not in stages or layout.num_stages == 1:
        return 0
    return ceil(shape.vocab / layout.tensor) * shape.hidden // (layout.shard * layout.context)


def _loss(shape: ModelShape, work: Workload, layout: Layout) -> tuple[int, int]:
    """Bytes (in the loss, of the head's cast) for the rank's tokens and part of the head; a head of classes
    is whole."""
    part = replace(shape, vocab=ceil(shape.vocab / layout.tensor))
    tokens = ceil(work.tokens / layout.context)
    learns = shape.adapter is None or shape.labels > 0
    cast = 2 * head_rows(part) * shape.hidden if work.dtype == "bf16" and learns else 0
    return loss_bytes(part, replace(work, tokens=tokens)), cast
