"""The best layout of processes on this machine's CPU: each is gone over whole, rank by rank.

A CPU has no catalogue row and no links: what a layout takes here comes from `bessemer doctor --calibrate`
(planner/calibrated/) and the runs since. The numbers of processes are those that were started, or, where we
start them, those that were calibrated. All are taken to share this machine's cores and memory, also where
they were started on several machines, whose network was not measured.

Not calibrated, or with a model that the calibration does not cover, nothing is known of exchanges: then whole
copies where they fit, else shards. Two processes with copies made 1.05 times the tokens of one with two
threads, with shards 0.77 (docs/log.md, two CPUs).
Cost: 3 to 12 ms a layout; two processes have 12 of a dense model, and of one with experts 16, eight 251.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from bessemer.errors import RecipeError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.calibrated.step_time import step_seconds
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
_GAIN_OF_PROCESSES = 0.10  # of starting several where none were
_START_S = 4.0  # that each of them imports, before its first step: 3.8 to 4.0 of its core, Xeon with AMX


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

    ranked: what fits, the chosen one first and the others by their time. too_large: what does not fit as the
    recipe has it, of which some is in `ranked` with everything recomputed.
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
    asked = _Asked(recipe, section, shape, decided, facts)
    timed = asked.is_covered()
    counts = [world] if world is not None else _calibrated_counts(facts) if timed else [1]
    if max(counts) == 1 or (world is None and decided.objective.rollouts is not None):
        return None
    layouts = [each for count in counts for each in (asked.layouts(count) if timed else _plain(count))]
    fitting, too_large = asked.by_memory(layouts)
    if not fitting:
        return None
    return _ranked(asked, fitting, too_large) if timed else _untimed(fitting, too_large, facts)


@dataclass(frozen=True)
class _Asked:
    """What is the same for all layouts."""

    recipe: Recipe
    section: Optimization
    shape: ModelShape
    decided: Decided
    facts: Facts

    def is_covered(self) -> bool:
        """Whether steps of this model in this compute type are among what was calibrated."""
        decided = self.decided
        alone = StagePlan(1, decided.context, decided.batch_rows, 1, decided.lr, dtype=decided.dtype)
        return step_seconds(self.shape, alone, self.facts) is not None

    def layouts(self, count: int) -> list[Layout]:
        """All of so many processes that the model and the rows allow."""
        if count == 1:
            return [ONE_PROCESS]
        here = replace(cluster_of(self.recipe, self.facts), devices=count, per_node=count, link_domain=count)
        question = question_of(self.section, self.shape, self.decided, here, "time")
        rows = least(question, structures(question)[0])
        found = [layout_of(question, rows, place) for place in range(len(rows))]
        return [*found, *(replace(each, reshard=False) for each in found if _can_keep(each))]

    def by_memory(self, layouts: list[Layout]) -> tuple[list[StagePlan], list[StagePlan]]:
        """What fits, with everything recomputed where it does not fit without, and what does not."""
        sections = [self.section]
        if "recompute" not in self.section.model_fields_set and self.section.activation_memory is None:
            sections.append(self.section.model_copy(update={"recompute": "full"}))
        fitting: list[StagePlan] = []
        too_large: list[StagePlan] = []
        for section in sections:
            left: list[StagePlan] = []
            for stage in self._stages(section, layouts):
                (fitting if fits(self.shape, stage, self.facts) else left).append(stage)
            too_large += left
            layouts = [stage.layout for stage in left]
        return fitting, too_large

    def _stages(self, section: Optimization, layouts: list[Layout]) -> Iterator[StagePlan]:
        """The stage under each layout that can run it."""
        for layout in layouts:
            decided = replace(self.decided, layout=layout)
            with suppress(RecipeError):
                check_adapter_stages(self.shape, layout)
                yield stage_plan(self.recipe, section, self.shape, decided, self.facts, Rules("pretrain"))


def _calibrated_counts(facts: Facts) -> list[int]:
    """Numbers of processes whose speeds together were measured, with the threads that they would have."""
    if facts.calibration is None or facts.threads is not None:
        return [1]
    measured = {(row.processes, row.threads) for row in facts.calibration.speeds}
    return [1, *sorted(n for n, threads in measured if n > 1 and threads == max(1, facts.cores // n))]


def _plain(count: int) -> list[Layout]:
    """Those to choose from where nothing can be timed."""
    return [Layout(replicate=count), Layout(shard=count)]


def _can_keep(layout: Layout) -> bool:
    """Whether gathered weights may stay for the backward pass; a pipeline's do in any case."""
    return layout.pipeline == 1 and layout.shard * layout.context > 1


def _ranked(asked: _Asked, stages: list[StagePlan], too_large: list[StagePlan]) -> ChosenProcesses:
    times = [predict_step(asked.recipe, asked.shape, stage, asked.facts)[0].best.value for stage in stages]
    ways = sorted(map(Way, stages, times), key=lambda way: way.step_s or 0.0)
    first = _plainest(ways)
    return ChosenProcesses(_rule(first, ways), [first, *(way for way in ways if way is not first)], too_large)


def _untimed(stages: list[StagePlan], too_large: list[StagePlan], facts: Facts) -> ChosenProcesses:
    """stages: copies before shards, and what is recomputed last."""
    first = stages[0]
    kind = "shards, as copies do not fit" if first.layout.shard > 1 else "whole copies, which fit"
    why = f"of this model nothing was calibrated in {first.dtype}"
    if facts.calibration is None:
        why = "`bessemer doctor --calibrate` compares all layouts"
    return ChosenProcesses(f"{kind}; {why}", [Way(first, None)], too_large)


def _plainest(ways: list[Way]) -> Way:
    """Of those that are about as fast as the fastest. ways: by their time."""
    least_s = ways[0].step_s or 0.0

    def is_near(way: Way) -> bool:
        more_s = (way.step_s or 0.0) - least_s
        if way.layout.world > 1:
            return more_s <= _GAIN * least_s
        return more_s <= _GAIN_OF_PROCESSES * least_s or more_s * way.stage.steps <= _START_S

    def simplicity(way: Way) -> tuple[int, int, bool]:
        return way.layout.world, complexity(way.layout), way.stage.recompute != "none"

    return min(filter(is_near, ways), key=simplicity)


def _rule(first: Way, ways: list[Way]) -> str:
    if first is ways[0]:
        return f"the fastest of {len(ways)}: {first.step_s:.3g} s a step, as calibrated"
    several = ways[0].layout.world if first.layout.world == 1 else 1
    reason = f"for starting {several} processes" if several > 1 else "to take it over a plainer one"
    return (
        f"{first.step_s:.3g} s a step, as calibrated; the fastest of {len(ways)} takes "
        f"{ways[0].step_s:.3g} s ({ways[0].layout}), too little less {reason}"
    )
