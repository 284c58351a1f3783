"""What the other choices would give: the front over time, money and energy, against the chosen layout.

Candidates are ranked by mixtures of time and energy, from all time to all energy, and the first that fit
of each are gone over exactly: the corners of the front. Fewer devices are tried with the best layouts'
data ranks halved and quartered: they take longer and lose less to exchanges and failures.
"""

from dataclasses import dataclass

import numpy as np

from bessemer.planner.cost.candidates import Candidates
from bessemer.planner.search.choose import Search
from bessemer.planner.search.costed import Field
from bessemer.planner.search.exact import Exact, exact
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import micro_batches_of

_WEIGHTS = (0.75, 0.5, 0.25, 0.0)  # of time; the rest of energy
_EACH = 3  # gone over of each mixture
_LEAST = 0.01  # relative difference that is worth a line
_PARTS_OF_CLUSTER = (2, 4)
_TRIED_ON_PART, _TRIED_EXACTLY = 200, 3  # the latter of different schedules


@dataclass(frozen=True)
class Point:
    """One choice that no other beats in time, money and energy at once."""

    exact: Exact
    sentence: str


def front(search: Search) -> list[Point]:
    """The chosen layout first, then what takes less of something, from fast to slow."""
    best = search.best
    others = [found for _, found in search.ranked[1:]]
    others += _by_mixtures(search) + _on_part_of_the_cluster(search)
    kept: list[Exact] = []
    for found in sorted(others, key=lambda one: one.hours):
        if _is_gain(found, best) and not any(_beats(one, found) for one in kept):
            kept.append(found)
    points = [Point(best, "chosen")]
    return points + [Point(found, sentence(found, best)) for found in kept]


def sentence(found: Exact, best: Exact) -> str:
    """ "12 % less energy for 3 % more time"."""
    words = [
        (name, getattr(found, key) / getattr(best, key) - 1.0)
        for name, key in (("time", "hours"), ("energy", "kwh"), ("money", "usd"))
        if getattr(found, key) and getattr(best, key)
    ]
    less = [f"{-change:.0%} less {name}" for name, change in words if change <= -_LEAST / 2]
    more = [_more(name, change) for name, change in words if change >= _LEAST / 2]
    text = " and ".join(less) + (f" for {' and '.join(more)}" if more else "")
    share = found.devices / best.devices
    return text if share == 1 else f"{_FRACTIONS.get(share, f'{share:.0%}')} of the devices: {text}"


_FRACTIONS = {0.5: "half", 0.25: "a quarter"}


def _more(name: str, change: float) -> str:
    return f"{change:.0%} more {name}" if change < 0.5 else f"{1 + change:.1f}× the {name}"


def _by_mixtures(search: Search) -> list[Exact]:
    field = search.field
    if field.kwh is None:
        return []
    time, energy = field.step_s / search.best.step_s, field.kwh / (search.best.kwh or 1.0)
    places: set[int] = set()
    for weight in _WEIGHTS:
        places |= set(field.best(weight * time + (1.0 - weight) * energy, _EACH).tolist())
    places -= {place for place, _ in search.ranked}
    return _gone_over(field, sorted(places))


def _on_part_of_the_cluster(search: Search) -> list[Exact]:
    found = []
    fitting = np.flatnonzero(search.field.needed_bytes <= search.field.usable_bytes)
    quick = fitting[np.argsort(search.field.step_s[fitting], kind="stable")][:_TRIED_ON_PART]
    for part in _PARTS_OF_CLUSTER:
        if search.question.cluster.devices % part:
            continue
        question = search.question.on(search.question.cluster.devices // part)
        candidates = on_fewer(question, search.field.candidates.take(quick), part)
        if len(candidates):
            field = Field(question, candidates)
            key = field.step_s if field.kwh is None else field.kwh * field.step_s
            tried = _gone_over(field, field.best(key, _TRIED_EXACTLY, group=candidates.schedule).tolist())
            found += sorted(tried, key=lambda one: one.hours * (one.kwh or 1.0))[:1]
    return found


def on_fewer(question: Question, candidates: Candidates, part: int) -> Candidates:
    """The same with a part of the ranks that read rows, each of which reads so many more."""
    whole_copies = candidates.replicate % part == 0
    whole_shards = candidates.shard % part == 0
    replicate = np.where(whole_copies, candidates.replicate // part, candidates.replicate)
    shard = np.where(whole_copies, candidates.shard, candidates.shard // part)
    data = replicate * np.maximum(shard, 1)
    count = micro_batches_of(question.batch_rows, data, candidates.micro_batch)
    zero = np.where(shard * candidates.context > 1, candidates.zero, 0)
    changed = {"replicate": replicate, "shard": shard, "micro_batches": count, "zero": zero}
    found = Candidates(**{**vars(candidates), **changed})
    divides = (data * candidates.context) % candidates.expert == 0
    grouped = (candidates.interleave < 2) | (count % candidates.pipeline == 0)
    return found.take((whole_copies | whole_shards) & divides & grouped)


def _gone_over(field: Field, places: list[int]) -> list[Exact]:
    found = [exact(field, place) for place in places]
    return [one for one in found if one.needed_bytes <= field.usable_bytes]


def _is_gain(found: Exact, best: Exact) -> bool:
    """Less of something by more than nothing."""
    return any(
        getattr(found, key) < (1.0 - _LEAST) * getattr(best, key)
        for key in ("hours", "kwh", "usd")
        if getattr(found, key) and getattr(best, key)
    )


def _beats(one: Exact, other: Exact) -> bool:
    """As good in all, to within what is worth a line."""
    return all(
        getattr(one, key) <= (1.0 + _LEAST / 2) * getattr(other, key)
        for key in ("hours", "kwh", "usd")
        if getattr(one, key) and getattr(other, key)
    )
