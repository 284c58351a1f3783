"""A layout: how many ranks share the work along each axis, and what each of them holds.

Ranks are numbered pipeline-major: (pipeline, replicate, shard, context, tensor), tensor fastest, so that
the axes which speak most are neighbours. `expert` divides replicate x shard x context and adds no rank.
Words: DESIGN.md; grammar of the text: planner/layout.py.
"""

from dataclasses import asdict, dataclass, fields
from functools import cache
from math import ceil
from typing import Any

from bessemer.formulas.parameters import head_rows
from bessemer.formulas.shape import ModelShape

AXES = ("replicate", "shard", "tensor", "pipeline", "context", "expert")
SCHEDULES = ("1f1b", "interleaved", "zbv", "dualpipev")
CONTEXT_KINDS = ("gather", "ulysses", "ring")
V_SHAPED = ("zbv", "dualpipev")  # rank p holds stages p and 2P - 1 - p


@dataclass(frozen=True)
class Layout:
    """Degrees on every axis, and how the pipeline, the shards and the rows are handled."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    schedule: str = "1f1b"  # of a pipeline
    interleave: int = 1  # stages on each rank of an interleaved pipeline
    reshard: bool = True  # free gathered weights after the forward pass (ZeRO-3); False: ZeRO-2
    context_kind: str = "gather"
    split: tuple[int, ...] | None = None  # layers of each pipeline stage; None: balanced

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.replicate * self.shard * self.tensor * self.pipeline * self.context

    @property
    def data(self) -> int:
        """Ranks that read different rows."""
        return self.replicate * self.shard

    @property
    def repeats_weights(self) -> bool:
        """Whether ranks that read different rows hold the same weights, and nobody shards any."""
        return self.replicate > 1 and self.shard * self.context * self.expert * self.pipeline == 1

    @property
    def stages_per_rank(self) -> int:
        if self.pipeline == 1:
            return 1
        return 2 if self.schedule in V_SHAPED else self.interleave

    @property
    def num_stages(self) -> int:
        return self.pipeline * self.stages_per_rank

    def stages_of(self, pipeline_rank: int) -> list[int]:
        """Numbers of the stages that a rank of the pipeline holds, in order."""
        if self.schedule in V_SHAPED and self.pipeline > 1:
            return [pipeline_rank, self.num_stages - 1 - pipeline_rank]
        return [pipeline_rank + self.pipeline * turn for turn in range(self.stages_per_rank)]

    def rank_of_stage(self, stage: int) -> int:
        """The pipeline rank that holds a stage."""
        if self.schedule in V_SHAPED and self.pipeline > 1 and stage >= self.pipeline:
            return self.num_stages - 1 - stage
        return stage % self.pipeline

    def __str__(self) -> str:
        """The words that differ from one process, as in a recipe; "replicate=1" for one process."""
        words = [f"{axis}={degree}" for axis in AXES if (degree := getattr(self, axis)) > 1]
        if self.pipeline > 1 and self.schedule != "1f1b":
            words.append(f"schedule={self.schedule}")
        if self.pipeline > 1 and self.interleave > 1:
            words.append(f"interleave={self.interleave}")
        if not self.reshard:
            words.append("reshard=no")
        if self.context > 1 and self.context_kind != "gather":
            words.append(f"context_kind={self.context_kind}")
        if self.split is not None:
            words.append("split=" + "+".join(map(str, self.split)))
        return ",".join(words) or "replicate=1"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Layout":
        known = {field.name for field in fields(Layout)}
        given = {name: value for name, value in values.items() if name in known}
        if given.get("split") is not None:
            given["split"] = tuple(given["split"])
        return Layout(**given)


ONE_PROCESS = Layout()


def split_evenly(size: int, parts: int) -> list[range]:
    """Consecutive ranges that differ by at most one, the longer ones first."""
    short, longer = divmod(size, parts)
    ends = [short * part + min(part, longer) for part in range(parts + 1)]
    return [range(ends[part], ends[part + 1]) for part in range(parts)]


def layers_of_stages(shape: ModelShape, layout: Layout) -> list[range]:
    """The layers of each pipeline stage: those of `split`, or a balance in which the embedding weighs
    little and the head what its matmul weighs, in layers."""
    if layout.split is not None:
        ends = [sum(layout.split[:stage]) for stage in range(layout.num_stages + 1)]
        return [range(ends[stage], ends[stage + 1]) for stage in range(layout.num_stages)]
    return list(_balanced(shape.layers, _head_in_layers(shape), layout.num_stages))


def num_micro_batches(layout: Layout, batch_rows: int, micro_batch: int) -> int:
    """Of a step on each rank: where rows do not divide, short ranks run rows that weigh nothing."""
    return ceil(ceil(batch_rows / layout.data) / micro_batch)


@cache
def _balanced(layers: int, head: float, stages: int) -> tuple[range, ...]:
    """At least one layer a stage, and the heaviest stage as light as can be, the last with the head, which
    weighs as much as so many layers."""
    assert stages <= layers, f"{stages} stages of {layers} layers"
    if stages == 1:
        return (range(layers),)
    most = layers - stages + 1
    # A layer more on the last stage lightens the others; until it would itself be the heaviest.
    last = 1
    while last < most and last + 1 + head <= len(split_evenly(layers - last, stages - 1)[0]):
        last += 1
    rest = layers - last
    return (*split_evenly(rest, stages - 1), range(rest, layers))


def _head_in_layers(shape: ModelShape) -> float:
    """Matmul work of the head over that of one layer."""
    attention = 2 * shape.hidden * (shape.heads + shape.kv_heads) * shape.head_dim
    ffn = shape.experts_per_token * shape.expert_ffn + shape.shared_ffn if shape.experts else shape.ffn
    return head_rows(shape) * shape.hidden / (attention + 3 * shape.hidden * ffn)
