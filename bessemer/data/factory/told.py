"""What a build tells of its sources: where each row went, how long, in which languages, and a few to look at.

rows_in = kept + all refused + all errors, always: manifest, reports and the command's own table are this.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bessemer.data.factory.columns import column_names, read_batches, read_columns, read_texts
from bessemer.data.factory.decide import VALIDATION, Decisions, Fates
from bessemer.data.factory.keys import PartFiles
from bessemer.durable import write_bytes
from bessemer.recipe.schema import Source

_SAMPLES = 4  # of each fate in each source
_SAMPLES_OF_A_PART = 2
_SAMPLE_LETTERS = 2_000


def told_sources(
    sources: Sequence[Source], parts: Sequence[PartFiles], decisions: Decisions
) -> list[dict[str, Any]]:
    """A row a source, as the manifest keeps it, but for what is only known when it is encoded."""
    counts = [_Counts() for _ in sources]
    for part, fates in zip(parts, decisions.fates, strict=True):
        counts[part.source].add(part, fates)
    return [
        {
            "name": source.name,
            "kind": source.kind,
            "licence": source.licence,
            **count.to_json(decisions),
        }
        for source, count in zip(sources, counts, strict=True)
    ]


class _Counts:
    """Of one source, part by part."""

    def __init__(self) -> None:
        self.fates = np.zeros(256, dtype=np.int64)
        self.fate_bytes = np.zeros(256, dtype=np.int64)
        self.bytes_in = self.words = 0  # words: of kept documents, as white space parts them
        self.lengths = np.zeros(32, dtype=np.int64)  # kept documents of 2**k bytes or more
        self.languages: Counter[str] = Counter()
        self.pii: Counter[str] = Counter()

    def add(self, part: PartFiles, fates: Fates) -> None:
        self.bytes_in += int(
            pc.sum(read_columns(part.files["read"], ["num_bytes"])["num_bytes"]).as_py() or 0
        )
        pii = [name for name in column_names(part.files["clean"]) if name.startswith("pii.")]
        cleaned = read_columns(part.files["clean"], ["size_bytes", "words", *pii])
        sizes = cleaned["size_bytes"].to_numpy()
        self.fates += np.bincount(fates, minlength=256)
        self.fate_bytes += np.bincount(fates, weights=sizes, minlength=256).astype(np.int64)
        kept = fates <= VALIDATION
        self.words += int(cleaned["words"].to_numpy()[kept].sum())
        bins = np.log2(np.maximum(sizes[kept], 1)).astype(np.int64)
        self.lengths += np.bincount(np.minimum(bins, 31), minlength=32)
        for name in pii:
            self.pii[name.removeprefix("pii.")] += int(cleaned[name].to_numpy()[kept].sum())
        if "language" in part.files:
            found = read_columns(part.files["language"], ["language"])["language"].filter(pa.array(kept))
            for row in pc.value_counts(found.cast(pa.string())).to_pylist():
                self.languages[row["values"]] += row["counts"]

    def to_json(self, decisions: Decisions) -> dict[str, Any]:
        named = {code: int(count) for code, count in enumerate(self.fates) if count and code > VALIDATION}
        kept = int(self.fates[: VALIDATION + 1].sum())
        refused = {decisions.names[code]: n for code, n in named.items() if code not in decisions.errors}
        errors = {decisions.names[code]: n for code, n in named.items() if code in decisions.errors}
        return {
            "rows_in": kept + sum(named.values()),
            "kept": kept,
            "refused": dict(sorted(refused.items())),
            "errors": dict(sorted(errors.items())),
            "bytes_in": self.bytes_in,
            "words": self.words,
            "kept_bytes": int(self.fate_bytes[: VALIDATION + 1].sum()),
            "refused_bytes": {
                decisions.names[code]: int(self.fate_bytes[code])
                for code in named
                if code not in decisions.errors
            },
            "languages": dict(self.languages.most_common()),
            "pii": dict(sorted(self.pii.items())),
            "lengths": {str(1 << power): int(count) for power, count in enumerate(self.lengths) if count},
        }


def write_samples(
    path: Path, sources: Sequence[Source], parts: Sequence[PartFiles], decisions: Decisions
) -> None:
    """A few rows of each fate of each source, the beginning of their texts: JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in _samples(sources, parts, decisions)]
    write_bytes(path, "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"))


def _samples(
    sources: Sequence[Source], parts: Sequence[PartFiles], decisions: Decisions
) -> Iterator[dict[str, Any]]:
    have: Counter[tuple[int, int]] = Counter()
    begins = decisions.begins
    for number, (part, fates) in enumerate(zip(parts, decisions.fates, strict=True)):
        hashes = read_columns(part.files["clean"], ["low"])["low"].to_numpy()
        chosen: list[int] = []
        for code in np.unique(fates).tolist():
            room = min(_SAMPLES - have[part.source, code], _SAMPLES_OF_A_PART)
            rows = np.flatnonzero(fates == code)
            chosen += rows[np.argsort(hashes[rows], kind="stable")][: max(0, room)].tolist()
            have[part.source, code] += max(0, min(room, len(rows)))
        for row, (name, origin, text) in zip(sorted(chosen), _rows(part, sorted(chosen)), strict=True):
            code = int(fates[row])
            yield {
                "source": sources[part.source].name,
                "fate": decisions.names[code],
                "is_error": code in decisions.errors,
                "id": name,
                "origin": origin,
                "same_as": _id_of(decisions.stays.get(row + int(begins[number])), parts, begins),
                "text": None if text is None else text[:_SAMPLE_LETTERS],
            }


def _rows(part: PartFiles, rows: Sequence[int]) -> Iterator[tuple[str, str | None, str | None]]:
    """(id, origin, text) of rows in ascending order."""
    waiting, begin = list(rows), 0
    if not waiting:
        return
    for batch in read_texts(part.files["read"], part.files["clean"], "id", "origin"):
        while waiting and waiting[0] < begin + batch.num_rows:
            row = waiting.pop(0) - begin
            yield batch["id"][row].as_py(), batch["origin"][row].as_py(), batch["text"][row].as_py()
        begin += batch.num_rows
        if not waiting:
            return


def _id_of(number: int | None, parts: Sequence[PartFiles], begins: np.ndarray) -> str | None:
    """The id of a row of all parts."""
    if number is None:
        return None
    part = int(np.searchsorted(begins, number, "right")) - 1
    row = number - int(begins[part])
    for batch in read_batches(parts[part].files["read"], ["id"]):
        if row < batch.num_rows:
            return str(batch["id"][row].as_py())
        row -= batch.num_rows
    raise AssertionError(f"row {number} is in no part")
