"""Device-hours of whole published trainings, predicted from what a planner is told, beside those published.

    hours = tokens / (tokens of a step / step time) x devices / goodput

Tokens of a later stage with longer rows, where its report tells them, count by their FLOPs.

The layout is the row's where it has one with its batch; else the fastest that fits of a small search by the
cost model of the stack nearest to the source's (published/jobs.py): no figure of the row's own speed, and no
constant fitted to hours. Goodput is formulas/goodput.py's of so many devices; 1 where a source projected its
hours from the rate of one run.
Not in it: evaluation, runs that were thrown away, stages after pre-training. Cost: about 20 ms a row.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.layout import SCHEDULES
from bessemer.formulas.parameters import total_params
from bessemer.planner.cost import memory
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates
from bessemer.planner.cost.time import step_times
from bessemer.planner.machine.cluster import Cluster, catalogue_cluster, reliability_of
from bessemer.planner.published.conventions import memory_stack_of
from bessemer.planner.published.jobs import Asked, asked_of
from bessemer.planner.published.runs import PublishedRun

WITHIN = 0.15
_DEGREES = (1, 2, 4, 8, 16)  # of tensor (as far as a node goes), pipeline, and stages of a rank
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)  # rows
_MOST_UNEVEN = 1.15  # layers of the fullest stage over the mean
_SHARDED = ("fsdp", "llm-foundry", "deepspeed", "maxtext")  # no pipeline; weights may be sharded
_ONE, _INTERLEAVED = SCHEDULES.index("1f1b"), SCHEDULES.index("interleaved")


@dataclass(frozen=True)
class DeviceHours:
    """Of one run. `layout` is a candidate of length 1."""

    predicted: float
    actual: float
    tokens: float
    devices: int
    step_time_s: float
    goodput: float
    layout: Candidates
    projected: bool  # by its source, from the rate of one run: no training took them
    assumed: str
    note: str

    @property
    def error(self) -> float:
        """|predicted / actual - 1|: what "within 15 per cent" means."""
        return abs(self.predicted / self.actual - 1.0)


def device_hours(run: PublishedRun) -> DeviceHours | None:
    """None: no hours published, tokens, model or device not known, or no layout that fits was found."""
    asked = asked_of(run) if run.gpu_hours and run.job == "pretrain" else None
    if asked is None or not run.gpu_hours:
        return None
    cluster = run.cluster if run.cluster is not None else catalogue_cluster(asked.device, asked.devices)
    layout = asked.layout
    if layout is None:
        layout = fastest(asked, cluster, memory_stack_of(asked.stack, run.source, run.notes))
    if layout is None:
        return None
    step_s = float(step_times(asked.shape, asked.context, layout, cluster, asked.stack).total_s[0])
    projected = "derived from that" in run.notes
    reliability = reliability_of(total_params(asked.shape), cluster, asynchronous=True)
    goodput = 1.0 if projected else reliability.goodput.value
    step_tokens = asked.batch_rows * asked.context
    hours = _all_tokens(asked) / step_tokens * step_s * asked.devices / 3600.0 / goodput
    return DeviceHours(
        predicted=hours,
        actual=run.gpu_hours,
        tokens=asked.tokens,
        devices=asked.devices,
        step_time_s=step_s,
        goodput=goodput,
        layout=layout,
        projected=projected,
        assumed=asked.assumed,
        note="projected by the source from the rate of one run" if projected else asked.note,
    )


def _all_tokens(asked: Asked) -> float:
    """Those of longer rows as so many more of the usual ones: at the same FLOP/s."""
    usual = train_flops_per_token(asked.shape, asked.context)
    more = (stage.tokens * train_flops_per_token(asked.shape, stage.context) for stage in asked.longer)
    return asked.tokens + sum(more) / usual


def fastest(asked: Asked, cluster: Cluster, memory_stack: str) -> Candidates | None:
    """The layout with the shortest step of those that fit, of length 1; None: none fits."""
    tried = _tried(asked, cluster)
    if not tried:
        return None
    candidates = Candidates.of(tried)
    columns = memory.stage_bytes(asked.shape, asked.context, candidates, memory_stack)
    candidates = candidates.take(memory.fits(columns, asked.device))
    if not len(candidates):
        return None
    total_s = step_times(asked.shape, asked.context, candidates, cluster, asked.stack).total_s
    return candidates.take(np.array([int(np.argmin(total_s))]))


def _tried(asked: Asked, cluster: Cluster) -> list[dict[str, int]]:
    """Every layout of powers of two in which each rank reads whole rows."""
    rows: list[dict[str, int]] = []
    pipelines = (1,) if asked.stack in _SHARDED else _DEGREES
    for tensor, pipeline in product(_DEGREES, pipelines):
        ranks, heads = tensor * pipeline, asked.shape.heads
        if tensor > cluster.per_node or heads % tensor or asked.devices % ranks:
            continue
        data = asked.devices // ranks
        if data > asked.batch_rows:
            continue
        per_rank = -(-asked.batch_rows // data)  # rows that do not divide are filled up
        for stages, size in product(_DEGREES if pipeline > 1 else (1,), _MICRO_BATCHES):
            if per_rank % size or not _even(asked, pipeline, stages, per_rank // size):
                continue
            common = {"tensor": tensor, "pipeline": pipeline, "context": 1, "interleave": stages}
            common |= {"micro_batch": size, "micro_batches": per_rank // size}
            common |= {"schedule": _INTERLEAVED if stages > 1 else _ONE}
            common |= {"precision": PRECISIONS.index(asked.precision)}
            for expert, how, mode in product(
                _experts(asked, data), _sharing(asked, data), range(len(RECOMPUTE))
            ):
                rows.append({**common, "expert": expert, **how, "recompute": mode})
    return rows


def _even(asked: Asked, pipeline: int, stages: int, micro_batches: int) -> bool:
    """Stages that hold about as many layers each; interleaving goes round in full circles."""
    per_stage = asked.shape.layers / (pipeline * stages)
    if per_stage < 1.0 or -(-asked.shape.layers // (pipeline * stages)) > _MOST_UNEVEN * per_stage:
        return False
    return stages == 1 or micro_batches % pipeline == 0


def _experts(asked: Asked, data: int) -> list[int]:
    experts = asked.shape.experts
    degrees = [2**power for power in range(8)]
    return [ways for ways in degrees if ways == 1 or (experts and experts % ways == 0 and data % ways == 0)]


def _sharing(asked: Asked, data: int) -> list[dict[str, int]]:
    """Megatron shares the optimizer; the others shard weights over all data ranks, or over some (HSDP), as
    far as it is not known how they did."""
    if asked.stack not in _SHARDED:
        return [{"replicate": 1, "shard": data, "zero": 1}]
    shards = [shard for shard in (8, 64, data) if shard <= data and data % shard == 0]
    hows = [{"replicate": data // shard, "shard": shard, "zero": zero} for shard in shards for zero in (2, 3)]
    hows = [{"replicate": data, "shard": 1, "zero": 0}, *hows]
    return [how for how in hows if how["zero"] == asked.zero] or hows
