"""The labels of a classification: the recipe's, or those of the training rows, by number."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bessemer.data.task.samples import Sample
from bessemer.data.task.unusable import Unusable
from bessemer.errors import DataError

_MOST = 10_000  # labels: more is a column of texts or ids


@dataclass
class Classes:
    names: list[str]
    _seen: frozenset[str]  # in training
    _counts: dict[str, Counter[str]] = field(default_factory=dict)

    @staticmethod
    def of(named: Sequence[str] | None, training: Iterable[str]) -> "Classes":
        seen = frozenset(training)
        names = list(dict.fromkeys(named)) if named is not None else sorted(seen, key=_in_order)
        if not 2 <= len(names) <= _MOST:
            raise DataError(
                "finetune.data: labels that are none",
                found=f"{len(names):,} different labels: {', '.join(names[:3])}",
                wanted=f"2 to {_MOST:,}",
                fix="name the column of the labels in finetune.data.label",
            )
        return Classes(names, seen)

    def number(self, sample: Sample, split: str) -> int:
        """Counts it too. Unusable where nothing could be learnt of this label."""
        label = sample.label or ""
        if label not in self.names:
            if label in self._seen or split == "train":
                raise Unusable("label.unknown", f"{label!r} is not in finetune.data.labels")
            raise Unusable("label.unseen", f"{label!r}, which no training row has")
        if label not in self._seen:
            raise Unusable("label.unseen", f"{label!r}, which no training row has")
        self._counts.setdefault(split, Counter())[label] += 1
        return self.names.index(label)

    def to_json(self) -> dict[str, Any]:
        counts = {
            split: [self._counts.get(split, Counter())[name] for name in self.names]
            for split in ("train", "validation")
        }
        return {"labels": self.names, "label_counts": counts}


def _in_order(name: str) -> tuple[int, int, str]:
    """Numbers by their size, before other names."""
    is_number = name.isascii() and name.isdigit()
    return (0, int(name), name) if is_number else (1, 0, name)
