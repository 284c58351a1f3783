"""The best layout of processes on this machine's CPU, each gone over whole, as there are only some dozens.

A CPU has no catalogue row and no links: what a layout takes here comes from `bessemer doctor --calibrate`
(planner/calibrated/) and the runs since. The numbers of processes are those that were started, or, where we
start them, those that were calibrated. Of several machines each is taken to be like this one, and the network
between them like its memory.

Not calibrated, nothing is known of exchanges: then whole copies where they fit, else shards. Two processes
with copies made 1.05 times the tokens of one with two threads, with shards 0.77 (docs/log.md, two CPUs).
Cost: 3 to 10 ms a layout; two processes have 12 of a dense model.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from bessemer.errors import RecipeError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.limits import fits
from bessemer.planner.machine.facts import Facts
from bessemer.planner.machine.planned import cluster_of
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import predict_step
from bessemer.planner.rules.adapter import check_adapter_stages
from bessemer.planner.search.choose import complexity, question_of
from bessemer.planner.search.space import layout_of, least, structures
from bessemer.planner.stage import Decided, Rules, stage_plan
from bessemer.recipe.schema import Optimization, Recipe

# Predictions are within 15 % of a step, differences between two layouts within less. What gains no more than
# this is not taken over a plainer layout, and a choice does not change with each run that teaches.
_GAIN = 0.05
_GAIN_OF_PROCESSES = 0.10  # of starting several where one was asked for


@dataclass(frozen=True)
class Way:
    """A layout with the stage that it makes. step_s: None where nothing is calibrated."""

    stage: StagePlan
    step_s: float | None

    @property
    def layout(self) -> Layout:
        return self.stage.layout


@dataclass(frozen=True)
class ChosenProcesses:
    """What a stage gets, as `Chosen` of accelerators. rule: why, in one sentence.

    ranked: what fits, the chosen one first and the others by their time.
    """

    rule: str
    ranked: list[Way]
    too_large: list[StagePlan]

    @property
    def layout(self) -> Layout:
        return self.ranked[0].layout

    def section(self, section: Optimization) -> Optimization:
        """The recipe's section with what was chosen beside the layout; its micro-batch follows again."""
        recompute = self.ranked[0].stage.recompute
        if section.activation_memory is not None or recompute == section.recompute:
            return section
        return section.model_copy(update={"recompute": recompute})


def choose_processes(
    recipe: Recipe,
    section: Optimization,
    shape: ModelShape,
    decided: Decided,
    facts: Facts,
    world: int | None,
) -> ChosenProcesses | None:
    """world: processes that were started; None: we start them. Returns None where there is no choice, or
    where nothing fits, for the refusal to be of what was asked."""
    counts = [world] if world is not None else _calibrated_counts(facts)
    if max(counts) == 1 or (world is None and decided.objective.rollouts is not None):
        return None
    layouts = [each for count in counts for each in _layouts(recipe, section, shape, decided, facts, count)]
    sections = [section]
    if "recompute" not in section.model_fields_set and section.activation_memory is None:
        sections.append(section.model_copy(update={"recompute": "full"}))
    too_large: list[StagePlan] = []
    for each in sections:
        fitting: list[StagePlan] = []
        for stage in _stages(recipe, each, shape, decided, facts, layouts):
            (fitting if fits(shape, stage, facts) else too_large).append(stage)
        if fitting:
            return _ranked(recipe, shape, fitting, too_large, facts)
    return None


def _calibrated_counts(facts: Facts) -> list[int]:
    """Numbers of processes whose speeds together were measured, with the threads that they would have."""
    if facts.calibration is None or facts.threads is not None:
        return [1]
    measured = {(row.processes, row.threads) for row in facts.calibration.speeds}
    return [1, *sorted(n for n, threads in measured if n > 1 and threads == max(1, facts.cores // n))]


def _layouts(
    recipe: Recipe, section: Optimization, shape: ModelShape, decided: Decided, facts: Facts, count: int
) -> list[Layout]:
    """All of so many processes that the model and the rows allow; not calibrated, those to choose from."""
    if count == 1:
        return [ONE_PROCESS]
    if facts.calibration is None:
        return [Layout(replicate=count), Layout(shard=count)]
    here = replace(cluster_of(recipe, facts), devices=count, per_node=count, link_domain=count)
    question = question_of(section, shape, decided, here, "time")
    rows = least(question, structures(question)[0])
    found = [layout_of(question, rows, place) for place in range(len(rows))]
    return [*found, *(replace(each, reshard=False) for each in found if _can_keep(each))]


def _can_keep(layout: Layout) -> bool:
    """Whether gathered weights may stay for the backward pass; a pipeline's do in any case."""
    return layout.pipeline == 1 and layout.shard * layout.context > 1


def _stages(
    recipe: Recipe,
    section: Optimization,
    shape: ModelShape,
    decided: Decided,
    facts: Facts,
    layouts: list[Layout],
) -> Iterator[StagePlan]:
    """The stage under each layout that can run it."""
    for layout in layouts:
        with suppress(RecipeError):
            check_adapter_stages(shape, layout)
            yield stage_plan(
                recipe, section, shape, replace(decided, layout=layout), facts, Rules("pretrain")
            )


def _ranked(
    recipe: Recipe, shape: ModelShape, stages: list[StagePlan], too_large: list[StagePlan], facts: Facts
) -> ChosenProcesses:
    times = [predict_step(recipe, shape, stage, facts)[0] for stage in stages]
    if not all(each.calibrated for each in times):
        return _untimed(stages, too_large)
    ways = [Way(stage, each.best.value) for stage, each in zip(stages, times, strict=True)]
    ways.sort(key=lambda way: way.step_s or 0.0)
    first = _plainest(ways)
    return ChosenProcesses(_rule(first, ways), [first, *(way for way in ways if way is not first)], too_large)


def _untimed(stages: list[StagePlan], too_large: list[StagePlan]) -> ChosenProcesses:
    """One process, or copies, or shards: nothing was calibrated, or not what the model consists of."""
    data = [stage for stage in stages if stage.layout.data == stage.layout.world and stage.layout.expert == 1]
    first = min(data, key=lambda stage: (stage.layout.world, stage.layout.shard, not stage.layout.reshard))
    kind = "shards, as copies do not fit" if first.layout.shard > 1 else "whole copies, which fit"
    rule = f"{kind}; `bessemer doctor --calibrate` compares all layouts"
    return ChosenProcesses(rule, [Way(first, None)], too_large)


def _plainest(ways: list[Way]) -> Way:
    """Of those that are about as fast as the fastest. ways: by their time."""
    least_s = ways[0].step_s or 0.0

    def is_near(way: Way) -> bool:
        gain = _GAIN_OF_PROCESSES if way.layout.world == 1 else _GAIN
        return (way.step_s or 0.0) <= least_s * (1.0 + gain)

    return min(filter(is_near, ways), key=lambda way: (way.layout.world, complexity(way.layout)))


def _rule(first: Way, ways: list[Way]) -> str:
    if first is ways[0]:
        return f"the fastest of {len(ways)}: {first.step_s:.3g} s a step, as calibrated"
    return (
        f"{first.step_s:.3g} s a step, as calibrated; the fastest of {len(ways)} takes "
        f"{ways[0].step_s:.3g} s ({ways[0].layout}), too little less for what it needs beside"
    )
