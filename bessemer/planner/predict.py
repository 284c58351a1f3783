"""What a run will take: memory, time, energy, money, carbon, each with a band and its basis.

measured: from a measurement of this very thing; modelled: a formula on measured ceilings; assumed: a
formula on catalogue peaks or on typical shares. A value that rests on something unknown is None.
MFU: model FLOPs, causal attention, over the dense peak of the catalogue; on a CPU, which has no such
peak, over its measured matmul ceiling.
"""

from dataclasses import replace

from bessemer.energy.accounting import facility
from bessemer.energy.accounting.facility import (
    around_device,
    grid_region,
    power_usage_effectiveness,
    prices,
)
from bessemer.energy.power import assumed_accelerator_board, assumed_cpu_power
from bessemer.energy.quantity import Quantity, exactly
from bessemer.formulas.adapters import trained_params
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.goodput import Reliability
from bessemer.formulas.layout import Layout
from bessemer.formulas.memory.parts import STATE_BYTES, Memory, Workload
from bessemer.formulas.memory.rank import layout_memory
from bessemer.formulas.memory.rollout import teacher_memory, with_rounds
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import GIB
from bessemer.planner.calibrated import step_time as calibrated
from bessemer.planner.compiling import as_run, eager, runs_compiled
from bessemer.planner.machine.cluster import check_devices, reliability_of
from bessemer.planner.machine.facts import Facts
from bessemer.planner.machine.planned import cluster_of, listed_device
from bessemer.planner.plan import UNKNOWN, Estimate, StagePlan
from bessemer.planner.sampling import round_time, sampling_hours
from bessemer.planner.search.costed import rank_needs
from bessemer.planner.speed import peak_tflops, recomputed_share, step_time, training_speed
from bessemer.planner.step import Step, stage_step
from bessemer.recipe.schema import Recipe

_COPY_SHARE = 0.85  # of the memory


def devices_of(layout: Layout, facts: Facts) -> Facts:
    """Facts for a layout: ranks share the cores of a CPU, and have an accelerator each."""
    if facts.kind == "cpu" or facts.devices > 1:
        return facts
    check_devices(layout.world, "the layout")
    return replace(facts, devices=layout.world)


def predict(recipe: Recipe, shape: ModelShape, stage: StagePlan, facts: Facts) -> dict[str, Estimate]:
    """All predicted quantities of one stage, under the names of the `plan` document."""
    facts = devices_of(stage.layout, facts)
    known, step = predict_step(recipe, shape, stage, facts)
    flops, peak = train_flops_per_token(shape, stage.context), peak_tflops(facts, stage.dtype)
    step_s = known.best
    if peak and facts.kind != "cpu":  # whose peak is a measurement, which a quieter hour may beat
        step_s = _not_below(step_s, flops * stage.batch_tokens / facts.devices / peak / 1e12)
    tokens_per_s = step_s.inverse(stage.batch_tokens)
    tflops = tokens_per_s.times(flops / facts.devices / 1e12)
    saved_s = step_s.times(stage.save_every).value
    if stage.save_every == longest_interval(stage.steps):
        # Five saves of a run that is shorter than that take seconds, whatever share of it they are.
        best = failures_of(recipe, shape, facts, stage.async_save)
        saved_s = None if best is None or saved_s is None else max(saved_s, best.interval_s)
    goodput = goodput_of(recipe, shape, facts, stage.async_save, saved_s)
    hours, sampled = step_s.times(stage.steps / 3600.0), dict[str, Estimate]()
    if stage.objective.rollouts is not None:
        sampled["sampling_time_s"] = round_time(shape, stage, facts, tflops)
        hours = hours.plus(sampling_hours(stage, sampled["sampling_time_s"]))
    if goodput.value is not None:
        hours = hours.multiplied(goodput.inverse())
    device_hours = hours.times(facts.devices)
    drawn = step.kw_per_device if step else None
    kwh = device_hours.multiplied(drawn or kw_per_device(recipe, facts))
    bill = prices(recipe, listed_device(facts))
    return {
        "memory_gib": _memory(shape, stage, facts),
        "step_time_s": step_s,
        **sampled,
        "tokens_per_s": tokens_per_s,
        "tflops_per_device": tflops,
        "mfu": tflops.times(1.0 / peak) if peak else UNKNOWN,
        "hours": hours,
        "device_hours": device_hours,
        "usd": _estimate(bill.usd(_quantity(device_hours), _quantity(kwh))),
        "kwh": kwh,
        "kg_co2e": kwh.multiplied(kg_per_kwh(recipe)),
        "goodput": goodput,
    }


def predict_step(
    recipe: Recipe, shape: ModelShape, stage: StagePlan, facts: Facts
) -> tuple[calibrated.StepTime, Step | None]:
    """The time of a step as it will be run here, and its parts where the cost model knows the device."""
    facts = devices_of(stage.layout, facts)
    stage = as_run(shape, stage, facts)
    step = stage_step(shape, stage, cluster_of(recipe, facts))
    formula = step.estimate if step else _by_share(shape, stage, facts)
    return calibrated.step_time(shape, stage, facts, formula), step


def _not_below(step_s: Estimate, least_s: float) -> Estimate:
    """A band whose low end is what the hardware can do at its peak: no step is faster."""
    if step_s.value is None or step_s.low is None or step_s.low >= least_s:
        return step_s
    return replace(step_s, low=min(least_s, step_s.value))


def _by_share(shape: ModelShape, stage: StagePlan, facts: Facts) -> Estimate:
    speed = training_speed(shape, facts, stage.dtype, stage.recompute, recomputed_share(shape, stage))
    compiled = step_time(shape, stage.batch_tokens, speed, facts)
    return compiled if stage.compile or facts.kind != "cpu" else eager(compiled)


def kw_per_device(recipe: Recipe, facts: Facts) -> Estimate:
    """At the meter of the building, PUE included."""
    device = listed_device(facts)
    if facts.kind == "cpu":
        watts = assumed_cpu_power(facts.cores, facts.cores)
    elif device is not None and device.tdp_w:
        around_w = around_device(recipe, device, facts.devices)
        watts = assumed_accelerator_board(device.tdp_w).plus(around_w)
    else:
        return UNKNOWN
    pue, _ = power_usage_effectiveness(recipe.cluster.pue, grid_region(recipe), facts.devices)
    band = watts.times(pue / 1000.0)
    return Estimate(band.value, band.low, band.high, "assumed")


def usd_per_device_hour(recipe: Recipe, facts: Facts) -> Estimate:
    """Of own machines with its electricity. RecipeError where two prices are named: the account at the end
    of the run would refuse them."""
    kwh = _quantity(kw_per_device(recipe, facts))
    return _estimate(prices(recipe, listed_device(facts)).usd(exactly(1.0), kwh))


def kg_per_kwh(recipe: Recipe) -> Estimate:
    return _estimate(facility.kg_per_kwh(grid_region(recipe)))


def workload(stage: StagePlan, facts: Facts, *, compiled: bool) -> Workload:
    tokens = stage.micro_batch * stage.context
    return Workload(
        tokens,
        stage.dtype,
        stage.recompute,
        compiled,
        facts.kind,
        stage.recompute_layers,
        stage.micro_batches,
        row_tokens=stage.context,
        saves_async=stage.async_save and facts.kind == "cpu",
    )


def rank_memories(shape: ModelShape, stage: StagePlan, facts: Facts, *, compiled: bool) -> list[Memory]:
    """Of each place in the pipeline; one for a process that trains alone. The first may ask a teacher."""
    steps = _step_memories(shape, stage, facts, compiled=compiled)
    asking = _asking(stage, facts)
    if asking is not None and asking.total > steps[0].total:
        steps[0] = asking
    return steps


def _step_memories(shape: ModelShape, stage: StagePlan, facts: Facts, *, compiled: bool) -> list[Memory]:
    """Of steps, and of rounds of answers between them."""
    work = workload(stage, facts, compiled=compiled)
    return [
        with_rounds(memory, shape, work, stage.layout, stage.objective, stage.context)
        for memory in layout_memory(shape, work, stage.layout)
    ]


def _asking(stage: StagePlan, facts: Facts) -> Memory | None:
    """Of the process that asks a teacher about the examples before training. None: nobody is asked then."""
    return teacher_memory(stage.objective, workload(stage, facts, compiled=False), stage.context)


def device_bytes(shape: ModelShape, stage: StagePlan, facts: Facts) -> int:
    """Predicted peak of one device: of its rank, or on a CPU of all ranks that share its memory."""
    memories = _step_memories(shape, stage, facts, compiled=runs_compiled(shape, stage, facts))
    asking = _asking(stage, facts)
    before = 0 if asking is None else asking.total
    if facts.kind != "cpu":
        return max(before, *(memory.total for memory in memories))
    whole = sum(memory.total - memory.saving for memory in memories)
    whole *= stage.layout.world // stage.layout.pipeline
    # Of the ranks that have the same weights one saves them: together they hold one copy of the state.
    learned = trained_params(shape, total_params(shape))
    saving = STATE_BYTES * learned if stage.async_save else 0
    return max(before, (whole + saving) // facts.devices)


def needed_bytes(shape: ModelShape, stage: StagePlan, facts: Facts) -> int:
    """What one device must have. Of an accelerator that is more than it is predicted to hold, as in the
    search of layouts: room for fragments, and for what is no tensor."""
    if facts.kind == "cpu":
        return device_bytes(shape, stage, facts)
    memories = _step_memories(shape, stage, facts, compiled=runs_compiled(shape, stage, facts))
    asking = _asking(stage, facts)
    return int(max(map(rank_needs, memories if asking is None else [*memories, asking])))


def copy_fits(shape: ModelShape, stage: StagePlan, facts: Facts) -> bool:
    """Whether a CPU's memory also holds a copy of what a checkpoint has; an accelerator's host does."""
    if facts.kind != "cpu" or facts.memory_bytes is None:
        return True
    saving = replace(stage, async_save=True)
    return device_bytes(shape, saving, facts) <= _COPY_SHARE * facts.memory_bytes


def _memory(shape: ModelShape, stage: StagePlan, facts: Facts) -> Estimate:
    """The fullest rank. On more devices it depends on a layout: unknown without one.

    high: of an accelerator what it must have, with the worst fragments seen and all that is no tensor; of a
    CPU what eager code takes.
    """
    if facts.devices > 1 and stage.layout.world == 1:
        return UNKNOWN
    memories = rank_memories(shape, stage, facts, compiled=runs_compiled(shape, stage, facts))
    fullest = max(memories, key=lambda memory: memory.total)
    value = fullest.total
    if facts.kind != "cpu":
        needed = max(map(rank_needs, memories))
        return Estimate(value / GIB, 0.95 * value / GIB, needed / GIB, "modelled")
    high = 1.1 * max(memory.total for memory in rank_memories(shape, stage, facts, compiled=False))
    return Estimate(value / GIB, 0.85 * value / GIB, high / GIB, "modelled")


def goodput_of(
    recipe: Recipe,
    shape: ModelShape,
    facts: Facts,
    asynchronous: bool | None = None,
    interval_s: float | None = None,
) -> Estimate:
    """Share of the time that failures and saving leave, on accelerators.

    asynchronous: `async_save` of the stage; None: what the recipe asks, before there is a stage.
    interval_s: from one checkpoint to the next; None: as often as is best.
    """
    if asynchronous is None:
        asynchronous = recipe.pretrain.async_save is not False  # "auto": yes, where the host has the copy
    found = failures_of(recipe, shape, facts, asynchronous, interval_s)
    if found is None:
        return UNKNOWN
    return Estimate(found.goodput.value, found.goodput.low, found.goodput.high, "assumed")


def longest_interval(steps: int) -> int:
    """Steps from one save to the next, so that a run saves five times."""
    return max(1, steps // 5)


def failures_of(
    recipe: Recipe, shape: ModelShape, facts: Facts, asynchronous: bool, interval_s: float | None = None
) -> Reliability | None:
    """None: a CPU, of which no failures are published."""
    if facts.kind == "cpu":
        return None
    cluster = cluster_of(recipe, facts)
    return reliability_of(total_params(shape), cluster, asynchronous=asynchronous, interval_s=interval_s)


def _quantity(estimate: Estimate) -> Quantity:
    return Quantity(estimate.value, estimate.low, estimate.high, estimate.basis)


def _estimate(quantity: Quantity) -> Estimate:
    return Estimate(quantity.value, quantity.low, quantity.high, quantity.basis)
