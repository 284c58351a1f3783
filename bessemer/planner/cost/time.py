"""The time of a step, part by part, of many layouts at once.

    step = (micro-batches x busiest rank + bubble + exposed gradients and weights + optimizer + overhead)
           x slowest of n devices

The busiest rank of a pipeline is the one with most layers, or the last, which has the head. Each exchange
counts twice: what shows in the step, and what is hidden behind compute (which contention makes longer).
Cost: 100,000 layouts in under a second; the same code for one published run.
Fitted and held against published runs by benchmarks/planner_fit.py; errors per source in docs/planner.md.
"""

from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import numpy as np

from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates, Floats
from bessemer.planner.cost.data_exchange import travel
from bessemer.planner.cost.exchange import Links, all_to_all_s, gather_s, links_of, send_s
from bessemer.planner.cost.pipeline import (
    DUALPIPEV,
    ZBV,
    Passes,
    Stage,
    bubble_s,
    stage_layers,
    v_shaped_layers,
)
from bessemer.planner.cost.profile import Profile, columns_of
from bessemer.planner.cost.work import Dims, Work, dims_of, layer_work, whole_rows
from bessemer.planner.machine.cluster import Cluster

Column = Any
NARROW = (PRECISIONS.index("fp8"), PRECISIONS.index("mxfp8"), PRECISIONS.index("nvfp4"))
# DualPipe's exchanges have 20 of an H800's 132 processors to themselves: compute does with the others
# (arXiv:2412.19437, 3.2.2).
_TWO_WAY_SLOWER = 132.0 / 112.0 - 1.0


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step, one column per part; exchanges as far as they show. `hidden` is not in the total."""

    matmul_s: Floats
    attention_s: Floats
    vector_s: Floats
    recompute_s: Floats
    tensor_s: Floats
    context_s: Floats
    expert_s: Floats
    pipeline_s: Floats
    bubble_s: Floats
    data_s: Floats
    optimizer_s: Floats
    overhead_s: Floats  # launching, small kernels, data and logs, and waiting for the slowest device
    hidden_s: Floats  # exchanges behind compute
    busiest_s: Floats  # forward and backward of one micro-batch on the busiest rank; not a part either
    low: Floats  # relative band: at least total x (1 - low)
    high: Floats  # at most total x (1 + high)

    @property
    def compute_s(self) -> Floats:
        return self.matmul_s + self.attention_s + self.vector_s + self.recompute_s

    @property
    def exposed_s(self) -> Floats:
        """All exchanges that show, without the bubble."""
        return self.tensor_s + self.context_s + self.expert_s + self.pipeline_s + self.data_s

    @property
    def total_s(self) -> Floats:
        return self.compute_s + self.exposed_s + self.bubble_s + self.optimizer_s + self.overhead_s

    def parts(self, number: int) -> dict[str, float]:
        """The parts of one layout, in seconds; they add up to its total."""
        names = [field.name for field in fields(self) if field.name not in _NOT_PARTS]
        return {name: float(getattr(self, name)[number]) for name in names}


_NOT_PARTS = ("hidden_s", "busiest_s", "low", "high")


def step_times(
    shape: ModelShape,
    context: int,
    candidates: Candidates,
    cluster: Cluster,
    stack: str,
    profile: Profile | None = None,
) -> StepTimes:
    """Of every layout in `candidates`, on rows of `context` tokens. `profile`: measured, for all of them.

    KeyError: unknown stack. ValueError: the catalogue has no peak of the device.
    """
    if profile is None:
        lists = columns_of(stack, cluster, set(np.unique(candidates.precision).tolist()))
        columns = {name: np.array(values)[candidates.precision] for name, values in lists.items()}
    else:
        columns = {f.name: getattr(profile, f.name) for f in fields(Profile) if f.name != "basis"}
    return cost(dims_of(shape, context), candidates, links_of(cluster), SimpleNamespace(**columns))


def cost(dims: Dims, candidates: Candidates, links: Links, profile: Any) -> StepTimes:
    """As `step_times`, from columns; `dims`, `links` and `profile` may differ from layout to layout."""
    layout = _floats(candidates, dims)
    work = layer_work(dims, layout, profile)
    layer = _layer(dims, layout, links, profile, work)
    stage = _busiest(dims, layout, profile, work, layer)
    sends_s = _sends(dims, layout, links, profile)
    others_s = np.maximum(stage.whole_s - stage.busiest_s, 0.0) + 2.0 * (layout.pipeline - 1.0) * sends_s
    steps, passes = layout.micro_batches, _passes(dims, layout, work)
    waits_s = bubble_s(others_s, layout.pipeline, layout.interleave, layout.schedule, steps, passes)
    in_step = np.maximum(steps - layout.pipeline, 0.0)  # before, ranks only fill
    zero_bubble = (layout.pipeline > 1.0) & (layout.schedule == ZBV)
    # Where a head makes one rank the busiest, the others have the time.
    lockstep_s = np.maximum((1.0 + passes.lockstep) * stage.usual_s - stage.busiest_s, 0.0)
    waits_s = waits_s + np.where(zero_bubble, in_step * lockstep_s, 0.0)
    weights = travel(dims, layout, links, profile, stage)
    data_s = weights.shown_s
    optimizer_s = weights.local * profile.optimizer_bytes / (profile.vector_gb_per_s * 1e9)
    on_rank, heads = steps * stage.layers, steps * stage.heads
    pipeline_s = steps * 2.0 * sends_s * layout.interleave * (1.0 - profile.pipeline_overlap)
    total_s = steps * stage.busiest_s + waits_s + pipeline_s + data_s + optimizer_s + profile.step_s
    # The slowest of n devices, whose times spread by `jitter`, rules.
    slower_s = total_s * profile.jitter * np.sqrt(2.0 * np.log(np.maximum(layout.world, 1.0)))
    small_s = on_rank * (work.overhead_s + layer.launch_s) + steps * profile.micro_batch_s + profile.step_s
    low, high = _bands(profile, layout)
    parts = {
        "matmul_s": on_rank * work.matmul_s + heads * work.head_matmul_s,
        "attention_s": on_rank * work.attention_s,
        "vector_s": on_rank * work.vector_s + heads * work.head_vector_s,
        "recompute_s": on_rank * work.recompute_s,
        "tensor_s": on_rank * layer.tensor_s,
        "context_s": on_rank * layer.context_s,
        "expert_s": on_rank * layer.expert_s,
        "pipeline_s": pipeline_s,
        "bubble_s": waits_s,
        "data_s": data_s,
        "optimizer_s": optimizer_s,
        "overhead_s": small_s + slower_s,
        "hidden_s": on_rank * layer.hidden_s + weights.hidden_s,
        "busiest_s": stage.busiest_s,
        "low": low,
        "high": high,
    }
    rows = (len(candidates),)
    return StepTimes(**{name: np.broadcast_to(np.asarray(x, np.float64), rows) for name, x in parts.items()})


@dataclass(frozen=True)
class _Layer:
    """Seconds of a mean layer and micro-batch beside its work: exchanges that show, and those that hide."""

    tensor_s: Column
    context_s: Column
    expert_s: Column
    launch_s: Column  # in which the device waits for the host
    hidden_s: Column
    total_s: Column  # with the work


def _layer(dims: Dims, layout: Any, links: Links, profile: Any, work: Work) -> _Layer:
    tensor_s, tensor_hidden_s = _tensor(dims, layout, links, profile, work)
    context_s, context_hidden_s = _context(dims, layout, links, profile, work)
    expert_s, expert_hidden_s = _expert(dims, layout, links, profile, work)
    device_s = work.layer_s + tensor_s + context_s + expert_s
    # The longer of device and host, and a little more where they are alike.
    total_s = (device_s**4 + work.host_s**4) ** 0.25
    hidden_s = tensor_hidden_s + context_hidden_s + expert_hidden_s
    return _Layer(tensor_s, context_s, expert_s, total_s - device_s, hidden_s, total_s)


def _busiest(dims: Dims, layout: Any, profile: Any, work: Work, layer: _Layer) -> Stage:
    """The rank with most layers, or the last, which has the head; layers of later tokens count as layers."""
    all_layers, heads = dims.layers + dims.later_layers, 1.0 + dims.later_layers
    head_s = heads * work.head_s
    most, last = stage_layers(all_layers, head_s / layer.total_s, layout.pipeline, profile.balanced)
    shaped = (profile.balanced > 0) & (layout.schedule == ZBV) & (layout.pipeline > 1)
    first, others = v_shaped_layers(all_layers, heads * _head_in_layers(dims), layout.pipeline)
    most, last = np.where(shaped, others, most), np.where(shaped, first, last)
    with_head = last * layer.total_s + head_s >= most * layer.total_s
    layers, heads_here = np.where(with_head, last, most), np.where(with_head, heads, 0.0)
    busiest_s = layers * layer.total_s + heads_here * work.head_s + profile.micro_batch_s
    whole_s = all_layers * layer.total_s + head_s + layout.pipeline * profile.micro_batch_s
    usual_s = most * layer.total_s + profile.micro_batch_s
    return Stage(layers, heads_here, busiest_s, usual_s, whole_s)


def _head_in_layers(dims: Dims) -> Column:
    """As the trainer weighs it when it splits layers into stages: formulas/layout.py."""
    experts = dims.chosen * dims.expert_weights + dims.shared_weights
    ffn = np.where(dims.experts > 0, experts, dims.ffn_weights)
    return dims.head_weights / (dims.attention_split + dims.attention_whole + ffn)


def _passes(dims: Dims, layout: Any, work: Work) -> Passes:
    """Of a mean layer."""
    computed_s = work.layer_s - work.overhead_s
    equal_order = (dims.equal_order > 0) & (layout.full + layout.selective == 0)
    matmul, again = work.matmul_s / computed_s, work.recompute_s / computed_s
    return Passes.of(matmul, again, dims.products, dims.waiting, equal_order)


def _floats(candidates: Candidates, dims: Dims) -> SimpleNamespace:
    """Columns as floats, with what follows from them."""
    names = ("replicate", "shard", "tensor", "pipeline", "context", "expert", "interleave", "micro_batches")
    columns = {name: getattr(candidates, name).astype(np.float64) for name in names}
    columns["zero"], columns["schedule"] = candidates.zero, candidates.schedule
    columns["tokens"] = candidates.micro_batch * dims.row_tokens / columns["context"]
    columns["full"] = 1.0 * (candidates.recompute == RECOMPUTE.index("full"))
    columns["selective"] = 1.0 * (candidates.recompute == RECOMPUTE.index("selective"))
    columns["eight"] = 1.0 * np.isin(candidates.precision, NARROW)
    columns["size"] = np.where(candidates.precision == PRECISIONS.index("fp32"), 4.0, 2.0)
    columns["world"] = candidates.world.astype(np.float64)
    return SimpleNamespace(**columns)


def _tensor(dims: Dims, layout: Any, links: Links, profile: Any, work: Work) -> tuple[Column, Column]:
    """Four gathers and four scatters of hidden states per layer, two more of each where it is run again."""
    state_bytes = layout.size * layout.tokens * dims.hidden
    one_s = gather_s(state_bytes, layout.tensor, 1.0, links, profile)
    # Experts are not divided by tensor ranks where they have an axis of their own: tokens go to them instead.
    share = dims.routed_layers / dims.layers * ((layout.expert > 1) & (profile.expert_tensor == 0))
    number = (8.0 + 4.0 * layout.full) * (1.0 - 0.5 * share)
    return _split(number * one_s, profile.tensor_overlap * work.matmul_s, profile, profile.tensor_overlap)


def _context(dims: Dims, layout: Any, links: Links, profile: Any, work: Work) -> tuple[Column, Column]:
    """Keys and values travel, and their gradients; once more where a layer is run again."""
    all_bytes = layout.size * layout.tokens * layout.context * dims.keys_values / layout.tensor
    one_s = gather_s(all_bytes, layout.context, layout.tensor, links, profile)
    number = profile.context_travels + layout.full
    return _split(number * one_s, work.attention_s, profile, profile.context_overlap)


def _expert(dims: Dims, layout: Any, links: Links, profile: Any, work: Work) -> tuple[Column, Column]:
    """Dispatch and combination, forward and backward; once more of each where a layer is run again."""
    share = dims.routed_layers / dims.layers
    # Tensor ranks that divide an expert's width each need all of its rows, and exchange with their like.
    rows = whole_rows(layout, profile)
    token_bytes = layout.size * layout.tokens / layout.tensor * dims.expert_hidden * rows
    one_s = all_to_all_s(token_bytes, dims.chosen, dims.expert_groups, layout.expert, rows, links, profile)
    all_s = share * (4.0 + 2.0 * layout.full) * one_s * profile.imbalance
    # DualPipe runs another micro-batch's compute meanwhile: that is what it is for (arXiv:2412.19437, 3.2.1).
    two_way = (layout.schedule == DUALPIPEV) & (layout.pipeline > 1.0)
    overlap = np.where(two_way, np.maximum(profile.expert_overlap, 0.9), profile.expert_overlap)
    slower_s = (two_way & (layout.expert > 1.0)) * share * _TWO_WAY_SLOWER * work.layer_s
    return all_s * (1.0 - overlap) + slower_s, all_s * overlap


def _split(all_s: Column, room_s: Column, profile: Any, share: Column) -> tuple[Column, Column]:
    """(shown, hidden): at most `share` of it hides, and no more than there is compute to hide behind."""
    hidden_s = np.minimum(share * all_s, room_s)
    return all_s - hidden_s + profile.contention * hidden_s, hidden_s


def _sends(dims: Dims, layout: Any, links: Links, profile: Any) -> Column:
    """One hidden state to the next rank of the pipeline, each tensor rank a part of it (2104.04473, 4.1)."""
    stride = layout.world / layout.pipeline
    one_s = send_s(layout.size * layout.tokens * dims.hidden / layout.tensor, stride, links, profile)
    return np.where(layout.pipeline > 1.0, one_s, 0.0)


def _bands(profile: Any, layout: Any) -> tuple[Column, Column]:
    """The profile's, wider where nobody published: beyond 16,384 devices."""
    far = 0.1 * np.maximum(np.log2(layout.world / 16384.0), 0.0)
    return np.minimum(profile.low + far, 0.8), profile.high + 1.5 * far
