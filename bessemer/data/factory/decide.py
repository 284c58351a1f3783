"""Where each row goes: held out, trained on, or refused by the first rule that applies, or an error.

Everything is decided from columns of a few bytes a row; no text is read. The order is fixed, so that each
row ends in exactly one place and the sums add up:

    limit                                                              beyond the rows asked for
    error · empty · language · the rules in their order · quality      the row alone
    held out or not                                                    by hash (holdout.py)
    dedup.exact · dedup.minhash                                        a held-out one stays, else the first
    contaminated                                                       holds 13 words of an evaluation set
    leak                                                               holds a passage that is held out

In memory: one byte a row, and what is held out. Duplicates are found on disk (duplicates.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bessemer.data import holdout
from bessemer.data.clean.rules import first_refused
from bessemer.data.factory.columns import read_columns
from bessemer.data.factory.duplicates import exact_duplicates, near_duplicates
from bessemer.data.factory.keys import PartFiles
from bessemer.data.factory.settings import source_languages, source_rules
from bessemer.recipe.schema import Clean, Source

Fates = np.ndarray[tuple[int], np.dtype[np.uint8]]
TRAIN, VALIDATION = 0, 1
SPLITS = {"train": TRAIN, "validation": VALIDATION}


@dataclass
class Decisions:
    """`fates[k][row]` of part k: TRAIN, VALIDATION, or the number of a name."""

    names: list[str] = field(default_factory=lambda: ["train", "validation"])
    errors: set[int] = field(default_factory=set)  # which of the names are errors, not refusals
    fates: list[Fates] = field(default_factory=list)
    stays: dict[int, int] = field(default_factory=dict)  # of a few duplicates: which row stayed for it

    def code(self, name: str, *, is_error: bool = False) -> int:
        """The number of a name. An error and a rule of the same name are two."""
        for code in range(2, len(self.names)):
            if self.names[code] == name and (code in self.errors) == is_error:
                return code
        self.names.append(name)
        code = len(self.names) - 1
        assert code < 256, f"{code} reasons"
        if is_error:
            self.errors.add(code)
        return code

    @property
    def begins(self) -> np.ndarray:
        """The number of the first row of each part, over all parts; and one past the last."""
        return np.cumsum([0, *map(len, self.fates)])


@dataclass(frozen=True)
class Deciding:
    sources: Sequence[Source]
    clean: Clean
    validation: float
    vocab: int  # of the ready tokenizer, or as the recipe says: ready tokens must fit
    folder: Path  # for what does not fit into memory
    memory_bytes: int


def decide(parts: Sequence[PartFiles], how: Deciding) -> Decisions:
    decisions = Decisions()
    seen = [0] * len(how.sources)
    for part in parts:
        fates = _alone(part, how, decisions, seen[part.source])
        seen[part.source] += len(fates)
        decisions.fates.append(fates)
    _hold_out(parts, how, decisions)
    if how.clean.dedup != "off":
        rows = _duplicate_keys(parts, decisions, "clean", ("high", "low"))
        found = exact_duplicates(rows, how.folder, how.memory_bytes)
        _refuse_numbers(decisions, found, "dedup.exact")
    if how.clean.dedup == "minhash":
        rows = _duplicate_keys(parts, decisions, "minhash", ("bands", "sketch"))
        found = near_duplicates(rows, how.folder, how.memory_bytes, how.clean.similarity)
        _refuse_numbers(decisions, found, "dedup.minhash")
    if how.clean.decontaminate:
        _refuse_contaminated(parts, decisions)
    _refuse_leaks(parts, decisions)
    return decisions


def _alone(part: PartFiles, how: Deciding, decisions: Decisions, before: int) -> Fates:
    """What each row of a part says by itself. TRAIN: nothing against it yet.

    before: rows of the source in earlier parts.
    """
    source = how.sources[part.source]
    read = read_columns(part.files["read"], ["error"])
    cleaned = read_columns(part.files["clean"], ["error", "dropped", "high", "low", "max_token"])
    error = pc.coalesce(read["error"], cleaned["error"])
    fates = np.zeros(len(error), dtype=np.uint8)
    if source.limit is not None:
        _refuse(fates, np.arange(before, before + len(fates)) >= source.limit, decisions, "limit")
    if source.kind == "tokens":
        beyond = _numpy(cleaned["max_token"]) >= how.vocab
        error = pc.if_else(pa.array(beyond), pc.coalesce(error, pa.scalar("not_tokens")), error)
    for name in pc.unique(error).to_pylist():
        if name is not None:
            is_it = _numpy(pc.fill_null(pc.equal(error, name), False))
            _refuse(fates, is_it, decisions, name, is_error=True)
    _refuse(fates, _numpy(cleaned["dropped"]), decisions, "code")
    nothing = (_numpy(cleaned["high"]) == 0) & (_numpy(cleaned["low"]) == 0)
    _refuse(fates, nothing, decisions, "empty")
    if source.kind != "tokens":
        _measured(part, how, decisions, fates)
    return fates


def _measured(part: PartFiles, how: Deciding, decisions: Decisions, fates: Fates) -> None:
    source = how.sources[part.source]
    spoken, rules = source_languages(source, how.clean), source_rules(source, how.clean)
    if spoken is not None:
        found = read_columns(part.files["language"])
        known = pc.is_in(found["language"].cast(pa.string()), pa.array(spoken, pa.string()))
        sure = _numpy(found["score"]) >= how.clean.language_score
        _refuse(fates, ~(_numpy(known) & sure), decisions, "language")
    if rules:
        batch = read_columns(part.files["signals"]).to_batches()
        columns = batch[0] if batch else None
        first = first_refused(columns, rules) if columns is not None else np.zeros(0, dtype=np.int64)
        for number, rule in enumerate(rules):
            _refuse(fates, first == number, decisions, rule.name)
    if how.clean.quality is not None:
        quality = _numpy(read_columns(part.files["quality"])["quality"])
        _refuse(fates, quality < how.clean.quality_score, decisions, "quality")


def _refuse(
    fates: Fates, where: np.ndarray, decisions: Decisions, name: str, *, is_error: bool = False
) -> None:
    """What nothing was said against before."""
    where = where & (fates <= VALIDATION)
    if where.any():
        fates[where] = decisions.code(name, is_error=is_error)


def _hold_out(parts: Sequence[PartFiles], how: Deciding, decisions: Decisions) -> None:
    lowest, highest = (1 << 64) - 1, 0
    for hashes, fates in _holdouts(parts, decisions):
        eligible = hashes[fates == TRAIN]
        if len(eligible):
            lowest, highest = min(lowest, int(eligible.min())), max(highest, int(eligible.max()))
    border = holdout.border(how.validation, lowest, highest)
    for hashes, fates in _holdouts(parts, decisions):
        fates[(fates == TRAIN) & (hashes < np.uint64(border))] = VALIDATION


def _holdouts(parts: Sequence[PartFiles], decisions: Decisions) -> Iterator[tuple[np.ndarray, Fates]]:
    for part, fates in zip(parts, decisions.fates, strict=True):
        yield _numpy(read_columns(part.files["clean"], ["holdout"])["holdout"]), fates


def _duplicate_keys(
    parts: Sequence[PartFiles], decisions: Decisions, stage: str, columns: tuple[str, ...]
) -> Iterator[pa.RecordBatch]:
    """number, priority and the columns of the rows that are left."""
    begins = decisions.begins
    for part, fates, begin in zip(parts, decisions.fates, begins[:-1].tolist(), strict=True):
        left = np.flatnonzero(fates <= VALIDATION)
        table = read_columns(part.files[stage], columns)
        for batch in table.take(pa.array(left)).combine_chunks().to_batches():
            priority = np.where(fates[left] == VALIDATION, 0, 1).astype(np.int8)
            arrays = [pa.array(left + begin, pa.int64()), pa.array(priority), *batch.columns]
            yield pa.record_batch(arrays, names=["number", "priority", *columns])


def _refuse_numbers(decisions: Decisions, found: Iterable[pa.RecordBatch], name: str) -> None:
    """`found`: the row to refuse, and the one that stays."""
    begins = decisions.begins
    for batch in found:
        numbers, stays = _numpy(batch["number"]), _numpy(batch["stays"])
        if not len(numbers):
            continue
        code = decisions.code(name)
        parts = np.searchsorted(begins, numbers, "right") - 1
        for part in np.unique(parts).tolist():
            decisions.fates[part][numbers[parts == part] - begins[part]] = code
        room = max(0, 10_000 - len(decisions.stays))
        decisions.stays.update(zip(numbers[:room].tolist(), stays[:room].tolist(), strict=True))


def _refuse_contaminated(parts: Sequence[PartFiles], decisions: Decisions) -> None:
    for part, fates in zip(parts, decisions.fates, strict=True):
        _refuse(fates, _numpy(read_columns(part.files["contamination"], ["hits"])["hits"]) > 0, decisions,
                "contaminated")  # fmt: skip


def _refuse_leaks(parts: Sequence[PartFiles], decisions: Decisions) -> None:
    """Training documents that hold a held-out passage, or all of a held-out document."""
    columns = ["passages", "holdout", "high"]
    secret: list[np.ndarray] = []
    whole: list[np.ndarray] = []
    for part, fates in zip(parts, decisions.fates, strict=True):
        if not (fates == VALIDATION).any():
            continue
        table = read_columns(part.files["clean"], columns)
        held = table.filter(pa.array(fates == VALIDATION))
        secret.append(_numpy(pc.list_flatten(held["passages"])))
        whole.append(_numpy(held["high"]))
    if not whole:
        return
    leaks = holdout.Leaks(np.concatenate(secret), np.concatenate(whole))
    for number, (part, fates) in enumerate(zip(parts, decisions.fates, strict=True)):
        table = read_columns(part.files["clean"], columns)
        rows = np.flatnonzero(fates == TRAIN)
        left = table.take(pa.array(rows)).combine_chunks()
        lengths = _numpy(pc.list_value_length(left["passages"]))
        flat = _numpy(pc.list_flatten(left["passages"]))
        leaks.add(number, rows, lengths, flat, _numpy(left["holdout"]), _numpy(left["high"]))
    for number, rows in leaks.found():
        decisions.fates[number][rows] = decisions.code("leak")


def _numpy(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values
