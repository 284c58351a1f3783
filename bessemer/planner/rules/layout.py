"""Which layouts a model and a batch allow: each rule tells what is wrong and the nearest layout without it.

Rules are in an order in which mending one does not break an earlier one, so that mending them in turn
ends at a layout that works.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.layout import V_SHAPED, Layout, layers_of_stages, num_micro_batches
from bessemer.formulas.shape import ModelShape


@dataclass(frozen=True)
class Complaint:
    problem: str
    found: str
    wanted: str
    mended: Layout  # nearest layout of which this does not hold


def first_complaint(layout: Layout, shape: ModelShape, tokens: int) -> Complaint | None:
    """None: the model can be split so. tokens: in a row."""
    rules = (_schedule, _tensor, _expert_model, _stages, _split, _context_kind, _context, _expert)
    return next((found for rule in rules if (found := rule(layout, shape, tokens))), None)


def nearest_layout(layout: Layout, shape: ModelShape, tokens: int) -> Layout:
    """Mended until nothing is wrong with it."""
    for _ in range(20):
        complaint = first_complaint(layout, shape, tokens)
        if complaint is None:
            return layout
        layout = complaint.mended
    raise AssertionError(f"mending does not end: {layout}")


def filling_layout(layout: Layout, devices: int, shape: ModelShape | None = None, tokens: int = 0) -> Layout:
    """The nearest one with so many ranks: the shards are more or fewer, or each other degree is the nearest
    that divides what the ones before it leave.

    shape, tokens: where they are known, `layout` is one that the model allows, and so is what comes of it.
    """
    rest = layout.world // layout.shard
    if devices % rest == 0:
        near = replace(layout, shard=devices // rest)
    else:
        near = _filling(layout, devices, lambda one: not shape or first_complaint(one, shape, tokens) is None)
    return near if shape is None else nearest_layout(near, shape, tokens)  # experts are on the shards' ranks


def _filling(layout: Layout, devices: int, is_allowed: Callable[[Layout], bool]) -> Layout:
    """By axis after axis, with one rank on those that are still to come: what is allowed stays so."""
    near = replace(layout, replicate=1, shard=1, tensor=1, pipeline=1, context=1, expert=1, split=None)
    for axis in ("tensor", "context", "pipeline", "replicate"):
        degree = getattr(layout, axis)
        sizes = (size for size in range(1, 2 * degree + 1) if devices % (near.world * size) == 0)
        choices: list[dict[str, Any]] = [{axis: size} for size in sizes]
        ways = {choice[axis]: way for choice in choices if is_allowed(way := replace(near, **choice))}
        near = ways[_nearest(degree, 2 * degree, ways.__contains__)]
    near = replace(near, shard=devices // near.world, expert=layout.expert)
    if near.pipeline == layout.pipeline:
        near = replace(near, split=layout.split)
    if near.pipeline == 1:
        near = replace(near, schedule="1f1b", interleave=1)
    return replace(near, context_kind="gather") if near.context == 1 else near


def check_micro_batches(layout: Layout, batch_rows: int, micro_batch: int, section: str) -> None:
    """RecipeError when the pipeline's schedule cannot run that many micro-batches."""
    count = num_micro_batches(layout, batch_rows, micro_batch)
    if allows(layout, count):
        return
    raise RecipeError(
        f"the {layout.schedule} pipeline cannot run {count} micro-batches",
        found=f'"{layout}": {batch_rows} rows a step over {layout.data} ranks that read rows, '
        f"{micro_batch} in a micro-batch",
        wanted=f"a multiple of {layout.pipeline} micro-batches, or fewer than that",
        fix=_micro_batch_fix(layout, batch_rows, micro_batch, section),
    )


def allows(layout: Layout, micro_batches: int) -> bool:
    """Whether the schedule runs with so many micro-batches a step.

    Interleaved, they go in groups of as many as there are ranks, and a last group that is not full makes
    ranks wait for each other (arXiv:2104.04473, section 2.2; as in Megatron). The other schedules of
    formulas/schedule.py run with any number; torch's own 1F1B and DualPipeV would want one for each stage.
    """
    if layout.pipeline == 1 or layout.schedule != "interleaved":
        return True
    return micro_batches <= layout.pipeline or micro_batches % layout.pipeline == 0


def _micro_batch_fix(layout: Layout, rows: int, micro_batch: int, section: str) -> str:
    """The nearest size that works, rather one that fills the pipeline. One micro-batch always works."""
    counts = {size: num_micro_batches(layout, rows, size) for size in range(1, -(-rows // layout.data) + 1)}
    sizes = [size for size, count in counts.items() if allows(layout, count)]
    best = min(sizes, key=lambda size: (counts[size] < layout.pipeline, abs(size - micro_batch), size))
    return f"set {section}.micro_batch={best}, or schedule=1f1b"


def _schedule(layout: Layout, shape: ModelShape, tokens: int) -> Complaint | None:
    """What DualPipeV adds to ZBV is the overlap of one micro-batch's exchange of experts with another's
    computation; without it the two are one schedule under two names."""
    if layout.schedule != "dualpipev":
        return None
    return Complaint(
        "schedule=dualpipev is not built in this version",
        "schedule=dualpipev",
        "schedule=zbv, which has the same stages on the same ranks, or another",
        replace(layout, schedule="zbv"),
    )


def _tensor(layout: Layout, shape: ModelShape, tokens: int) -> Complaint | None:
    """Heads are never cut. Widths need not divide: uneven parts are fine, empty ones are not."""
    heads = (
        {"heads": shape.heads} if shape.mla_kv_rank else {"heads": shape.heads, "kv_heads": shape.kv_heads}
    )
    widths = {"ffn": shape.ffn, "expert_ffn": shape.expert_ffn, "shared_ffn": shape.shared_ffn,
              "vocab": shape.vocab}  # fmt: skip
    if shape.experts and shape.dense_layers == 0:
        del widths["ffn"]
    widths["context"] = tokens // layout.context  # between blocks the sequence is split

    def wrong(degree: int) -> list[str]:
        cut = [name for name, count in heads.items() if count % degree]
        return cut + [name for name, width in widths.items() if 0 < width < degree]

    found = wrong(layout.tensor)
    if not found:
        return None
    name, size = found[0], {**heads, **widths}[found[0]]
    divide = name in heads
    return Complaint(
        f"tensor does not divide {name}" if divide else f"tensor is larger than {name}",
        f"tensor={layout.tensor}, model.{name} = {size}",
        "a divisor of " + " and ".join(f"{key} = {value}" for key, value in heads.items())
        if divide
        else f"at most {size}",
        replace(layout, tensor=_nearest(layout.tensor, shape.heads, lambda degree: not wrong(degree))),
    )


def _expert_model(layout: Layout, shape: ModelShape, tokens: int) -> Complaint | None:
    if layout.expert == 1 or shape.experts:
        return None
    found, wanted = f"expert={layout.expert}, model without experts", "expert only with model.experts"
    return Complaint("expert has no effect on a dense model", found, wanted, replace(layout, expert=1))


def _stages(layout: Layout, shape: ModelShape, tokens: int) -> Complaint | None:
    """Every stage holds a layer."""
    if layout.num_stages <= shape.layers:
        return None
    interleave = min(layout.interleave, shape.layers // layout.pipeline)
    if layout.schedule == "interleaved" and interleave >= 2:
        mended = replace(layout, interleave=interleave, split=None)
    else:
        on_a_rank = 2 if layout.schedule in V_SHAPED and shape.layers >= 4 else 1
        schedule = layout.schedule if on_a_rank == 2 else "1f1b"
        pipeline = min(layout.pipeline, shape.layers // on_a_rank)
        mended = replace(layout, pipeline=pipeline, schedule=schedule, interleave=1, split=None)
    found = f"{layout.num_stages} stages, {shape.layers} layers"
    return Complaint("more pipeline stages than layers", found, "a layer or more on each stage", mended)


def _split(layout: Layout, shape: ModelShape, tokens: int) -> Complaint | None:
    split, stages = layout.split, layout.num_stages
    if split is None or (len(split) == stages and sum(split) == shape.layers):
        return None
    balance = tuple(map(len, layers_of_stages(shape, replace(layout, split=None))))
    return Complaint(
        "split does not give every layer to a stage",
        f"{len(split)} stages with {sum(split)} layers, model of {shape.layers} on {stages} stages",
        f"{stages} numbers with the sum {shape.layers}",
        replace(layout, split=balance),
    )


def _context_kind(layout: Layout, shape: ModelShape, tokens: int) -> Complaint | None:
    if layout.context == 1 or layout.context_kind != "ring":
        return None
    found, wanted = "context_kind=ring", "context_kind=gather or ulysses"
    problem = "ring attention is not built in this version"
    return Complaint(problem, found, wanted, replace(layout, context_kind="gather"))


def _context(layout: Layout, shape: ModelShape, tokens: int) -> Complaint | None:
    """Gather: a rank has a piece of the first half of the row and one of the second, so that the work is
    even under a causal mask. Ulysses: a rank has whole heads, after an exchange (arXiv:2309.14509)."""
    if layout.context == 1:
        return None
    ulysses = layout.context_kind == "ulysses"

    def fits(degree: int) -> bool:
        if not ulysses:
            return tokens % (2 * degree) == 0 or degree == 1
        kv_heads = shape.heads if shape.mla_kv_rank else shape.kv_heads
        return not (tokens % degree or math.gcd(shape.heads, kv_heads) % (layout.tensor * degree))

    if fits(layout.context):
        return None
    degree = _nearest(layout.context, tokens, fits)
    mended = replace(layout, context=degree, context_kind=layout.context_kind if degree > 1 else "gather")
    if ulysses:
        found = f"context={layout.context}, tensor={layout.tensor}, heads = {shape.heads}, "
        found += f"kv_heads = {shape.kv_heads}, {tokens} tokens in a row"
        wanted = "a context that divides the row, and tensor x context that divides heads and kv_heads"
    else:
        found = f"context={layout.context}, {tokens} tokens in a row"
        wanted = "rows of a multiple of 2 x context tokens: a rank has two pieces of a row"
    return Complaint("context does not divide the row or the heads", found, wanted, mended)


def _expert(layout: Layout, shape: ModelShape, tokens: int) -> Complaint | None:
    ranks = layout.data * layout.context
    common = math.gcd(ranks, shape.experts) if shape.experts else 1
    if common % layout.expert == 0:
        return None
    return Complaint(
        "expert does not divide the ranks or the experts",
        f"expert={layout.expert}, replicate x shard x context = {ranks}, model.experts = {shape.experts}",
        f"a divisor of both: {', '.join(str(size) for size in range(1, common + 1) if common % size == 0)}",
        replace(layout, expert=_nearest(layout.expert, common, lambda degree: common % degree == 0)),
    )


def _nearest(degree: int, limit: int, fits: Callable[[int], bool]) -> int:
    """The degree that fits and is nearest to the given one, rather the smaller. 1 always fits."""
    return min(filter(fits, range(1, limit + 1)), key=lambda size: (abs(size - degree), size))
