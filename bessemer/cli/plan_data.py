"""What `bessemer plan` says of the data: have I enough, and what does preparing it take?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.data.listing import Place, gathered_base, list_sources, remembered
from bessemer.formulas.scaling.repeated import MANY_EPOCHS
from bessemer.hardware import machine
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Plan
from bessemer.planner.sizing.enough import advice, enough_of_listed, enough_of_prepared
from bessemer.recipe.schema import Recipe
from bessemer.units import format_count, format_seconds


class KnownData:
    """The recipe's data as far as it can be seen at once: listed, and found in the store if it is there."""

    def __init__(self, recipe: Recipe, base: Path, store: Path) -> None:
        start = gathered_base(recipe, base, store)
        self._recipe = recipe
        self._listings = list_sources(recipe, start)
        self._manifest = remembered(store, recipe, Place(base, start), self._listings)

    def known(self, facts: Facts) -> Facts:
        """With what training will find, where the data is there: length and vocabulary follow from it."""
        if self._manifest is None:
            return facts
        tokenizer = self._manifest["tokenizer"]
        return replace(
            facts,
            train_tokens=self._manifest["splits"]["train"]["tokens"],
            vocab=tokenizer["vocab"],
            bos_id=tokenizer["bos_id"],
            eos_id=tokenizer["eos_id"],
        )

    def told(self, plan: Plan) -> dict[str, Any] | None:
        if self._manifest is not None:
            return enough_of_prepared(self._recipe, plan, self._manifest)
        return enough_of_listed(self._recipe, plan, self._listings, machine().cores)

    def missing(self) -> list[dict[str, Any]]:
        """Sources whose path no file matches."""
        pairs = zip(self._recipe.data.source, self._listings, strict=True)
        return [
            {"name": source.name, "path": source.path}
            for source, listing in pairs
            if not listing.unknown and not listing.files
        ]


def show_data(data: dict[str, Any]) -> str:
    there = "are prepared" if data["prepared"] else "are likely in these files"
    lines = [
        f"Data: {format_count(data['tokens_needed'])} tokens are read{_replayed(data)}; "
        f"{_band(data['tokens'], format_count)} {there}: {_band(data['epochs'], _times)} epochs",
        advice(data),
        *_cost(data),
        *_table(data["sources"]),
        *_missing(data),
        _building(data),
    ]
    return "\n".join(lines)


def show_missing(sources: list[dict[str, Any]]) -> str:
    """Where there is nothing else to say of the data."""
    found = ", ".join(f"{source['path']} (source {source['name']!r})" for source in sources)
    return f"Data: nothing is known of it, as no file matches {found}"


def _replayed(data: dict[str, Any]) -> str:
    tokens = data["tokens_replayed"]
    return f", and {format_count(tokens)} of earlier data" if tokens else ""


def _cost(data: dict[str, Any]) -> list[str]:
    lost, worth = data["lost_share"]["value"], data["effective_tokens"]
    if not lost or lost < 0.0005:
        return []
    added, epochs = data["added_loss"], data["epochs"]["value"]
    # Beyond, the law was fitted to those models only that it did not harm.
    loss = f", at about {100 * added:.1f} % more loss" if added is not None and epochs <= MANY_EPOCHS else ""
    return [
        f"they teach as much as {_band(worth, format_count)} fresh tokens: "
        f"{100 * lost:.0f} % less{loss} (law of repeated data, arXiv:2305.16264)"
    ]


def _table(sources: list[dict[str, Any]]) -> list[str]:
    if len(sources) < 2:
        return []
    rows = [
        [
            row["name"],
            _figure(row["tokens"]["value"], format_count),
            format_count(row["tokens_read"]),
            _figure(row["epochs"]["value"], _times),
            _figure(row["effective_tokens"]["value"], format_count),
        ]
        for row in sources
    ]
    return ["", *text_table(["Source", "tokens", "read", "epochs", "worth"], rows), ""]


def _missing(data: dict[str, Any]) -> list[str]:
    lines = [f"not counted: {row['name']}: {row['reason']}" for row in data["uncounted"]]
    lines += [f"{name}: so many files that only some were looked at" for name in data.get("sampled", [])]
    if data["tokens_missing"]:
        lines.append(f"{format_count(data['tokens_missing'])} tokens cannot be read: `epochs` allows no more")
    return lines


def _building(data: dict[str, Any]) -> str:
    if data["prepared"]:
        took = format_seconds(3600 * data["build_hours"]["value"])
        return f"it takes {_size(data['disk_bytes']['value'])} of disk, and took {took} to build"
    if data["build_hours"]["value"] is None:
        return "how long they take to prepare is not known"
    cores = data["cores"]
    return (
        f"preparing {_size(data['file_bytes'])} in {data['files']:,} file{'s' * (data['files'] != 1)} takes "
        f"{_band(data['disk_bytes'], _size)} of disk and {_band(data['build_hours'], _hours)} "
        f"on {cores} core{'s' * (cores != 1)}"
    )


def _band(estimate: dict[str, Any], form: Any) -> str:
    """The figure, and its band where it has one: 1.2B (0.5B to 1.6B)."""
    value, low, high = (estimate[end] for end in ("value", "low", "high"))
    if value is None:
        return "an unknown number of"
    if form(low) == form(high):
        return str(form(value))
    return f"{form(value)} ({form(low)} to {form(high)})"


def _figure(value: float | None, form: Any) -> str:
    return "unknown" if value is None else str(form(value))


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _hours(hours: float) -> str:
    return format_seconds(3600 * hours)


def _size(size: float) -> str:
    """Of a disk: GB is 1e9 bytes."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
