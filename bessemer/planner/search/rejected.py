"""Why the other layouts were not chosen: a few that stand for thousands, each with its reason in numbers.

Three kinds. What would be faster and does not fit: by the part of memory that is largest, with the cheapest
change that makes it fit, which was computed and not guessed. What fits and is slower: the best one of each
way that was not taken, with the part of the step that makes it so. What cannot be at all: by the rule.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bessemer.formulas.layout import SCHEDULES, Layout
from bessemer.hardware import GIB
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates, Ints
from bessemer.planner.search.choose import Search
from bessemer.planner.search.costed import memory_of, own_times
from bessemer.planner.search.exact import Exact, exact
from bessemer.units import format_bytes

_LOOKED_INTO = 400  # of what does not fit, the fastest: whose memory is taken apart
_FIXES = 8  # gone over exactly, until one fits
_STATE = ("weights", "gradients", "optimizer")
# What a change of each word costs in looking like the layout that was meant; fewest changes first.
_WORDS = ("micro_batch", "recompute", "zero", "schedule", "tensor", "pipeline", "context", "expert")
PART_WORDS = {
    "matmul_s": "matmuls take", "attention_s": "attention takes", "vector_s": "norms and activations take",
    "recompute_s": "recomputation takes", "tensor_s": "tensor exchanges show for",
    "context_s": "context exchanges show for", "expert_s": "expert exchanges show for",
    "pipeline_s": "sends show for", "bubble_s": "the bubble is", "data_s": "gradients and weights show for",
    "optimizer_s": "the optimizer takes", "overhead_s": "overhead is",
}  # fmt: skip


@dataclass(frozen=True)
class Rejected:
    """One layout that stands for `count` candidates."""

    layout: Layout | None
    micro_batch: int | None
    recompute: str | None
    reason: str
    count: int


def rejected(search: Search) -> list[Rejected]:
    """Most telling first."""
    rows = [*_too_large(search), *_slower(search), *_narrower(search), *_impossible(search)]
    seen: set[tuple[Layout | None, int | None, str | None]] = set()
    kept = []
    for row in rows:
        words = (row.layout, row.micro_batch, row.recompute)
        if words not in seen:
            seen.add(words)
            kept.append(row)
    return kept


def _too_large(search: Search) -> Iterator[Rejected]:
    """Faster than the best by columns, and more than a device holds."""
    field = search.field
    best = search.ranked[0][0]
    unfit = np.flatnonzero(field.asked & ~(field.needed_bytes <= field.usable_bytes))
    unfit = unfit[field.step_s[unfit] < field.step_s[best]]
    unfit = unfit[np.argsort(field.step_s[unfit], kind="stable")]
    if len(unfit) == 0:
        return
    memory = memory_of(search.question, field.candidates.take(unfit[:_LOOKED_INTO]))
    state = memory.weights + memory.gradients + memory.optimizer
    largest = np.argmax(np.stack([state, memory.activations, memory.logits, memory.buffers]), axis=0)
    for part in np.unique(largest):
        first = _nearest_miss(search, unfit[: len(largest)][largest == part])
        share = len(unfit) * float((largest == part).mean())
        row = too_large(search, first, max(1, round(share)))
        if row is not None:
            yield row


def _nearest_miss(search: Search, places: Ints) -> int:
    """Of those that do not fit, the one to tell of: fast, and not far beyond the memory."""
    field = search.field
    places = places[np.argsort(field.step_s[places], kind="stable")][:_LOOKED_INTO]
    field.fit(places)
    return int(places[np.argmin(field.step_s[places] * field.needed_bytes[places] ** 2)])


def too_large(search: Search, place: int, count: int) -> Rejected | None:
    """The reason of one that does not fit, with what would. None: gone over exactly, it does fit."""
    found = exact(search.field, place)
    if found.needed_bytes <= search.field.usable_bytes:
        return None
    reason = _memory_words(search, found)
    fix = cheapest_fix(search, place)
    if fix is not None:
        reason += f": {fix[0]}"
    return Rejected(found.layout, found.micro_batch, found.recompute, reason, count)


def _memory_words(search: Search, found: Exact) -> str:
    memory = found.memories[found.fullest]
    apart = (*_STATE, "allocator", "process")
    parts = {name: value for name, value in found.room.named(memory).items() if name not in apart}
    parts["weights, gradients and optimizer"] = sum(found.room.named(memory)[name] for name in _STATE)
    name, value = max(parts.items(), key=lambda pair: pair[1])
    where = f"pipeline rank {found.pipeline_ranks[found.fullest]}" if found.layout.pipeline > 1 else "a rank"
    usable = search.field.usable_bytes
    return (
        f"{where} needs {found.needed_bytes / GIB:.1f} of {usable / GIB:.1f} GiB; "
        f"{name} {'is' if name == 'logits' else 'are'} {format_bytes(value)} of it"
    )


def cheapest_fix(search: Search, place: int) -> tuple[str, Exact] | None:
    """The fewest words to change, and of those the fastest that fits, gone over exactly. None: none does."""
    field = search.field
    rows = field.candidates
    changes = changed_words(rows, place)
    places = np.arange(len(rows))
    for count in (1, 2, 3):
        near = places[changes == count]
        for candidate in field.best(field.step_s, _FIXES, near):
            found = exact(field, int(candidate))
            if found.needed_bytes <= field.usable_bytes:
                slower = found.step_s / search.best.step_s - 1.0
                pace = f", {slower:.0%} slower than the chosen one" if slower >= 0.005 else ""
                words = difference(rows, place, int(candidate))
                return f"{words} fits ({format_bytes(found.needed_bytes)}{pace})", found
    return None


def changed_words(rows: Candidates, place: int) -> Ints:
    """How many words of a layout each candidate has otherwise. Data ranks follow the other degrees; shards
    count where nothing else explains them."""
    changes = np.zeros(len(rows), np.int64)
    for word in _WORDS:
        column = getattr(rows, word)
        different = column != column[place]
        if word == "schedule":
            different = different | (rows.interleave != rows.interleave[place])
        changes += different
    same_data = rows.data == rows.data[place]
    own_shards = np.where(same_data, rows.shard != rows.shard[place], (rows.replicate > 1) != (
        rows.replicate[place] > 1
    ))  # fmt: skip
    return np.asarray(changes + own_shards)


def difference(rows: Candidates, place: int, other: int) -> str:
    """The words of `other` that `place` has otherwise."""
    words = []
    for word in (*_WORDS, "replicate"):
        value = int(getattr(rows, word)[other])
        if value == int(getattr(rows, word)[place]) and word != "schedule":
            continue
        if word == "schedule":
            pair = (value, int(rows.interleave[other]))
            if pair != (int(rows.schedule[place]), int(rows.interleave[place])):
                stages = f",interleave={pair[1]}" if SCHEDULES[value] == "interleaved" else ""
                words.append(f"schedule={SCHEDULES[value]}{stages}")
        elif word == "recompute":
            words.append(f"recompute={RECOMPUTE[value]}")
        elif word == "zero":
            if rows.pipeline[other] == 1 and value:
                words.append(f"reshard={'yes' if value == 3 else 'no'}")
        else:
            words.append(f"{word}={value}")
    return " and ".join(words) or f"shard={int(rows.shard[other])}"


def _slower(search: Search) -> Iterator[Rejected]:
    """The best of each way that the chosen layout did not take."""
    field, best = search.field, search.ranked[0][0]
    for mask in _ways(search):
        if mask[best] or not mask.any():
            continue
        among = np.flatnonzero(mask)
        fitting = [exact(field, int(place)) for place in field.best(field.step_s, 1, among)]
        if fitting and fitting[0].needed_bytes <= field.usable_bytes:
            one = fitting[0]
            yield Rejected(
                one.layout, one.micro_batch, one.recompute, slower_words(one, search.best), len(among)
            )
            continue
        row = too_large(search, _nearest_miss(search, among), len(among))
        if row is not None:
            yield row


def slower_words(found: Exact, best: Exact) -> str:
    """How much slower, and by which part most."""
    change = found.step_s / best.step_s - 1.0
    if change < 0.005:
        pace = "is as fast" if change > -0.005 else f"is {-change:.0%} faster"
        more = (found.kwh or 0.0) / (best.kwh or 1.0) - 1.0
        if more >= 0.005:
            return f"fits and {pace}, {more:.0%} more energy"
        return f"fits and {pace}; the chosen one is plainer or leaves more memory"
    worse = max(found.parts, key=lambda name: found.parts[name] - best.parts[name])
    return (
        f"fits, {change:.0%} slower: {PART_WORDS[worse]} {found.parts[worse]:.3g} s, "
        f"{best.parts[worse]:.3g} s in the chosen one"
    )


def _ways(search: Search) -> Iterator[np.ndarray]:
    rows = search.field.candidates
    yield (rows.tensor == 1) & (rows.pipeline == 1) & (rows.context == 1)
    yield rows.tensor == 1
    yield rows.pipeline == 1
    for schedule in ("1f1b", "interleaved", "zbv"):
        yield (rows.pipeline > 1) & (rows.schedule == SCHEDULES.index(schedule))
    for number in range(len(RECOMPUTE)):
        yield rows.recompute == number
    yield rows.context > 1
    yield rows.context == 1
    yield rows.replicate > 1
    if search.question.shape.experts:
        yield rows.expert == 1
        yield rows.expert > 1


def _narrower(search: Search) -> Iterator[Rejected]:
    """The chosen layout in fp8, which this version plans and does not train."""
    question, place = search.question, search.ranked[0][0]
    if question.cluster.device.fp8_dense_tflops is None or question.dtype != "bf16":
        return
    one = search.field.candidates.take(np.array([place]))
    narrow = Candidates(**{**vars(one), "precision": np.array([PRECISIONS.index("fp8")])})
    change = float(own_times(question, one).total_s[0] / own_times(question, narrow).total_s[0])
    best = search.best
    pace = f"would be {change:.2f}× as fast" if change > 1.005 else "would be no faster here"
    reason = f"precision=fp8 {pace}: it is not trained by this version"
    yield Rejected(best.layout, best.micro_batch, best.recompute, reason, len(search.field))


def _impossible(search: Search) -> Iterator[Rejected]:
    if search.too_large:
        usable = format_bytes(search.field.usable_bytes)
        reason = f"more than {usable} on a rank even with one-row micro-batches and everything recomputed"
        yield Rejected(None, None, None, reason, search.too_large)
    for problem, count in search.impossible.counts.items():
        layout, why = search.impossible.examples[problem]
        yield Rejected(layout, None, None, f"{problem}: {why}", count)
