"""The best layout of a cluster for a model: all candidates by columns, the finalists exactly.

1. Every structure and way to run it (space.py), with step time and energy in columns (costed.py).
2. Down the list by what the recipe prefers, memory decides which can be taken at all.
3. The first of them are gone over rank by rank and schedule by schedule (exact.py); their order is final.
What lies beside the best is kept for `bessemer plan`: the front over time, money and energy (pareto.py),
and why the others were not chosen (rejected.py), both made only when they are asked for.
Cost: 0.7 to 1.2 s for 1,024 devices, the whole command; docs/planner.md has the figures.
"""

from dataclasses import dataclass

import numpy as np

from bessemer.errors import RecipeError
from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cost.candidates import Candidates, Floats, Ints
from bessemer.planner.machine.cluster import Cluster
from bessemer.planner.search.costed import Field, run_hours
from bessemer.planner.search.exact import Exact, exact
from bessemer.planner.search.nowhere import fits_nowhere
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import Impossible, least, structures, ways
from bessemer.planner.stage import Decided
from bessemer.planner.step import costed_by_profile
from bessemer.recipe.schema import Optimization
from bessemer.units import format_count

_ALIKE = 2  # finalists that differ in shards, micro-batch or recomputation alone
_WIDENED = (12, 48, 192)  # finalists that fit by columns, until some do exactly
_SAME = 0.001  # relative: a difference that says nothing; then the simpler layout


@dataclass(frozen=True)
class Search:
    """Everything that was looked at."""

    question: Question
    field: Field
    ranked: list[tuple[int, Exact]]  # finalists that fit, best first: (number in the field, exactly)
    impossible: Impossible
    too_large: int  # structures that fit in no way: not in the field

    @property
    def best(self) -> Exact:
        return self.ranked[0][1]

    @property
    def looked_at(self) -> int:
        return len(self.field)


@dataclass(frozen=True)
class Chosen:
    """What a stage gets. rule: why, in one sentence."""

    layout: Layout
    micro_batch: int
    recompute: str
    rule: str
    search: Search

    def section(self, section: Optimization) -> Optimization:
        """The recipe's section with what was chosen, so that nothing chooses again."""
        changes: dict[str, int | str] = {"micro_batch": self.micro_batch}
        if section.activation_memory is None:
            changes["recompute"] = self.recompute
        return section.model_copy(update=changes)


def choose_layout(
    section: Optimization,
    shape: ModelShape,
    decided: Decided,
    cluster: Cluster,
    prefer: str = "time",
) -> Chosen:
    """The best layout of a stage whose rows and compute type are decided. Raises as `search` does.

    What the recipe itself says of micro-batch and recomputation stays.
    """
    if not costed_by_profile(cluster, decided.dtype):
        raise RecipeError(
            "no layout can be chosen for this device",
            found=f"no peak of {cluster.device.name} in {decided.dtype} is known",
            wanted="a device whose compute and memory speed are known",
            fix="give parallel.layout, or describe the device in a cluster file",
        )
    found = search(question_of(section, shape, decided, cluster, prefer))
    best = found.best
    rule = f"{_PREFERRED[prefer]} of {format_count(found.looked_at)} candidates"
    return Chosen(best.layout, best.micro_batch, best.recompute, rule, found)


_PREFERRED = {"time": "the fastest", "energy": "the least energy", "cost": "the cheapest"}


def question_of(
    section: Optimization, shape: ModelShape, decided: Decided, cluster: Cluster, prefer: str
) -> Question:
    """What is left open for the search."""
    recompute = section.recompute if "recompute" in section.model_fields_set else None
    if section.activation_memory is not None:
        recompute = "full"  # of as many layers as it takes: what fits with all of them can be made to
    return Question(
        shape,
        decided.context,
        decided.batch_rows,
        decided.steps,
        decided.dtype,
        cluster,
        prefer,
        None if section.micro_batch == "auto" else section.micro_batch,
        recompute,
        compiles=section.compile is not False,
        must_compile=section.compile is True,
        saves_async=section.async_save is not False,
        objective=decided.objective,
    )


def search(question: Question) -> Search:
    """RefusedError when nothing fits, RecipeError when nothing can be split so at all."""
    columns, impossible = structures(question)
    fewest = Field(question, least(question, columns))
    possible = fewest.fit(np.arange(len(fewest)))
    if not possible.any():
        raise fits_nowhere(question, fewest, impossible)
    field = Field(question, ways(question, {name: column[possible] for name, column in columns.items()}))
    if len(field) == 0:
        raise _no_micro_batch(question)
    ranked = _finalists(question, field)
    if not ranked:
        raise fits_nowhere(question, fewest, impossible)
    return Search(question, field, _in_order(question, ranked), impossible, int((~possible).sum()))


def _finalists(question: Question, field: Field) -> list[tuple[int, Exact]]:
    """Gone over exactly, and as they fit: the best by columns, further down where those do not."""
    key, split = preference(question, field), _split(field.candidates)
    ranked: list[tuple[int, Exact]] = []
    seen: set[int] = set()
    for wanted in _WIDENED:
        for place in field.best(key, wanted, group=split, each=_ALIKE).tolist():
            found = exact(field, place) if place not in seen else None
            seen.add(place)
            if found is not None and found.needed_bytes <= field.usable_bytes:
                ranked.append((place, found))
        if ranked:
            break
    return ranked


def _split(rows: Candidates) -> Ints:
    """A number for what finalists are to differ in: they shall not be one layout in ten ways."""
    number = rows.tensor
    for word in (rows.pipeline, rows.context, rows.expert, rows.schedule, rows.interleave):
        number = number * (int(word.max(initial=0)) + 1) + word
    return number


def preference(question: Question, field: Field) -> Floats:
    """What is to be as small as possible."""
    wanted = _counted(question)
    if wanted == "time":
        return field.step_s
    if field.kwh is None:
        raise RecipeError(
            f'energy.prefer = "{question.prefer}" needs the power of the device',
            found=f"no power limit of {question.cluster.device.name} is known",
            wanted="a device with tdp_w",
            fix="describe it in a cluster file, or remove energy.prefer",
        )
    if wanted == "energy":
        return field.kwh
    return np.asarray(question.usd(run_hours(question, field.step_s), field.kwh))


def taken(question: Question, found: Exact) -> float:
    amounts = {"time": found.step_s, "energy": found.kwh, "cost": found.usd}
    return amounts[_counted(question)] or 0.0


def _counted(question: Question) -> str:
    """The preference; rent goes with time, as a whole cluster is paid for, and electricity does not."""
    rented = question.prefer == "cost" and not question.cluster.usd_per_kwh
    return "time" if rented else question.prefer


def complexity(layout: Layout) -> int:
    """Of two that are as good, the one with fewer axes and plainer words."""
    axes = sum(degree > 1 for degree in (layout.tensor, layout.pipeline, layout.context, layout.expert))
    return 2 * axes + (layout.schedule != "1f1b") + (layout.replicate > 1) + (not layout.reshard)


def _in_order(question: Question, ranked: list[tuple[int, Exact]]) -> list[tuple[int, Exact]]:
    """By what is preferred; first among those that are as good as the best, the plainest."""
    ranked = sorted(ranked, key=lambda pair: taken(question, pair[1]))
    limit = taken(question, ranked[0][1]) * (1.0 + _SAME)
    plainest = min(
        (pair for pair in ranked if taken(question, pair[1]) <= limit),
        key=lambda pair: (complexity(pair[1].layout), pair[1].recompute != "none"),
    )
    return [plainest, *(pair for pair in ranked if pair is not plainest)]


def _no_micro_batch(question: Question) -> RecipeError:
    return RecipeError(
        "no layout can run this micro-batch",
        found=f"micro_batch = {question.micro_batch}, {question.batch_rows} rows a step on "
        f"{question.cluster.devices} devices",
        wanted="a micro-batch that a rank's share of the rows holds",
        fix="leave micro_batch to the planner, or set a smaller one",
    )
