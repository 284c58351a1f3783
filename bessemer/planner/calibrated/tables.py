"""What `bessemer doctor --calibrate` measures, as it is stored: times of a step's parts, by size.

A table has the seconds of one part of a step on a grid of sizes; between the points both are taken in
logarithms, as times of matmuls and copies grow with powers of their sizes. A `Speeds` holds the tables of one
way to use the device (processes that compute at the same time, threads of each, compute type). Anchors are
small models of which whole steps were timed: what the parts leave out shows in them.
No torch here: `measure/calibrate.py` fills it, `planner/calibrated/step_time.py` reads it.
"""

import math
from bisect import bisect_right
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from itertools import product
from typing import Any

from bessemer.hardware import stored_document, usable_cores, write_document

FORMAT = 1  # of the file; another one is measured anew

# Parts of a step, their axes, and with which power the time grows beyond the largest size.
PARTS: dict[str, tuple[tuple[str, int], ...]] = {
    # One linear layer without its bias: forward, and the two products of its backward pass.
    "linear": (("tokens", 1), ("inputs", 1), ("outputs", 1)),
    # Queries, keys and values of a row's heads: rotation, attention, and back.
    "attention": (("row_heads", 1), ("tokens", 2), ("head_dim", 1)),
    "masked": (("row_heads", 1), ("tokens", 2), ("head_dim", 1)),  # attention by torch's kernel, with a mask
    "norm": (("elements", 1),),
    "swiglu": (("elements", 1),),
    "add": (("elements", 1),),  # a residual sum, forward and back
    "loss": (("logits", 1),),  # of a chunk, without its matmuls
    "cast": (("elements", 1),),  # a weight to the compute type and joined with others, its gradient back
    "accumulate": (("elements", 1),),  # a gradient onto the one before
    "embedding": (("tokens", 1), ("elements", 1)),  # elements of the table
    "routing": (("pairs", 1),),  # elements of (token, expert) pairs: routers, sorting, weighing
    "update": (("elements", 1),),  # norm, clipping and AdamW
    "call": (),  # one small operation with its gradient: Python and dispatch
}
# Sums in bf16 are apart: gloo adds that type slowly.
EXCHANGES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send", "reduce_scatter bf16")
ANCHOR_LAYOUTS = ("shard=2", "tensor=2", "context=2", "shard=2,expert=2")


@dataclass(frozen=True)
class Table:
    """Seconds on a grid: the last axis is the fastest."""

    axes: tuple[tuple[float, ...], ...]
    seconds: tuple[float, ...]
    powers: tuple[int, ...]

    def at(self, *sizes: float) -> float:
        """Seconds at these sizes. Beyond the grid: by `powers` above, by the first slope below."""
        assert len(sizes) == len(self.axes), (sizes, self.axes)
        places = [_place(axis, size) for axis, size in zip(self.axes, sizes, strict=True)]
        total = 0.0
        for corner in product((0, 1), repeat=len(places)):  # of the cell, each weighed by its nearness
            pairs = list(zip(corner, places, strict=True))
            weight = math.prod(share if up else 1.0 - share for up, (_, share) in pairs)
            if weight:
                total += weight * math.log(self._value([place + up for up, (place, _) in pairs]))
        beyond = math.prod(
            max(1.0, size / axis[-1]) ** power
            for axis, size, power in zip(self.axes, sizes, self.powers, strict=True)
        )
        return math.exp(total) * beyond

    def _value(self, index: list[int]) -> float:
        place = 0
        for axis, number in zip(self.axes, index, strict=True):
            place = place * len(axis) + min(number, len(axis) - 1)
        return self.seconds[place]


@dataclass(frozen=True)
class Anchor:
    """A step of a small model that was timed: one micro-batch, not compiled.

    layout: of two processes; "": each by itself. rows: of the whole step. experts: 0 of a dense model; with
    the router's first weights they do not get alike many tokens, and ranks wait for the fullest.
    """

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    rows: int
    context: int
    seconds: float
    layout: str = ""
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0


@dataclass(frozen=True)
class Speeds:
    """One way to use the device."""

    processes: int  # that compute at the same time, each with as many threads
    threads: int
    dtype: str
    tables: dict[str, Table]
    anchors: tuple[Anchor, ...] = ()

    def __hash__(self) -> int:  # so that what follows from it can be kept: its dict has no hash
        return hash((self.processes, self.threads, self.dtype, self.anchors))


@dataclass(frozen=True)
class Calibration:
    """Of one device of one machine."""

    device: str
    kind: str  # "cpu", or "gpu" and so on
    torch: str
    date: str
    cores: int
    speeds: tuple[Speeds, ...]
    exchanges: dict[str, Table] = field(default_factory=dict)  # by kind, between two processes or devices
    busy_share: float = 0.0  # of the cores, that others used meanwhile
    took_s: float = 0.0

    def __hash__(self) -> int:  # as of Speeds
        return hash((self.device, self.date, self.took_s))

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Calibration":
        rows = {name: value for name, value in values.items() if name != "format"}
        rows["speeds"] = tuple(speeds_of_json(row) for row in values["speeds"])
        rows["exchanges"] = {kind: table_of_json(row) for kind, row in values["exchanges"].items()}
        return Calibration(**rows)


def stored_calibration(device: str) -> Calibration | None:
    """Of this device, by the torch that is installed and with as many cores as there are now; None: there is
    none."""
    values = stored_document("calibration", device)
    if values is None or values.get("format") != FORMAT:
        return None
    if (values.get("torch"), values.get("cores")) != (installed_torch(), usable_cores()):
        return None
    try:
        return Calibration.from_json(values)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # edited by hand, or another version's: as if there were none


def store_calibration(calibration: Calibration) -> None:
    """WriteError where the cache folder cannot be written."""
    write_document("calibration", calibration.device, calibration.to_json())


def better_of(one: Calibration, other: Calibration) -> Calibration:
    """`one`, with the shorter time wherever both have timed the same: others can only have slowed it."""
    before = {(row.processes, row.threads, row.dtype): row for row in other.speeds}
    joined = tuple(
        _better_speeds(row, before.get((row.processes, row.threads, row.dtype))) for row in one.speeds
    )
    exchanges = {kind: _better(table, other.exchanges.get(kind)) for kind, table in one.exchanges.items()}
    return replace(one, speeds=joined, exchanges=exchanges, busy_share=min(one.busy_share, other.busy_share))


def installed_torch() -> str | None:
    """The version of torch, without importing it."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def table_of_json(row: dict[str, Any]) -> Table:
    axes = tuple(tuple(map(float, axis)) for axis in row["axes"])
    table = Table(axes, tuple(map(float, row["seconds"])), tuple(row["powers"]))
    if len(table.seconds) != math.prod(map(len, axes)) or min(table.seconds) <= 0:
        raise ValueError("a table whose size is not that of its grid")
    return table


def speeds_of_json(row: dict[str, Any]) -> Speeds:
    tables = {name: table_of_json(values) for name, values in row["tables"].items()}
    if missing := PARTS.keys() - tables.keys():
        raise ValueError(f"no table of {sorted(missing)}")
    anchors = tuple(Anchor(**values) for values in row["anchors"])
    return Speeds(row["processes"], row["threads"], row["dtype"], tables, anchors)


def _place(axis: tuple[float, ...], size: float) -> tuple[int, float]:
    """(number of the point below, share of the way to the next), in logarithms; below the grid it is < 0."""
    if len(axis) == 1 or size >= axis[-1]:
        return len(axis) - 1, 0.0
    number = max(0, bisect_right(axis, size) - 1)
    low, high = axis[number], axis[number + 1]
    return number, math.log(max(size, 1e-9) / low) / math.log(high / low)


def _better_speeds(one: Speeds, other: Speeds | None) -> Speeds:
    if other is None:
        return one
    tables = {name: _better(table, other.tables.get(name)) for name, table in one.tables.items()}
    before = {replace(anchor, seconds=0.0): anchor.seconds for anchor in other.anchors}
    anchors = tuple(
        replace(each, seconds=min(each.seconds, before.get(replace(each, seconds=0.0), each.seconds)))
        for each in one.anchors
    )
    return replace(one, tables=tables, anchors=anchors)


def _better(one: Table, other: Table | None) -> Table:
    if other is None or other.axes != one.axes:
        return one
    return replace(one, seconds=tuple(map(min, one.seconds, other.seconds)))
