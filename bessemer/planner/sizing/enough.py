"""Have I enough data? What a run reads of it, how often, and what repeating costs.

With prepared data the figures are exact, from its manifest; before that they are estimates from the sizes
of files (data_estimate.py). Each source is read as often as the mixture says, so a small one with a large
weight is told by name. What epochs are worth: formulas/scaling/repeated.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bessemer.data.listing import Listing
from bessemer.data.mixture import Mixture, planned_stages
from bessemer.formulas.scaling.repeated import (
    FEW_EPOCHS,
    MANY_EPOCHS,
    added_loss,
    effective_tokens,
    effective_tokens_band,
)
from bessemer.planner.plan import UNKNOWN, Estimate, Plan
from bessemer.planner.sizing.data_estimate import build_estimate, source_estimate, total
from bessemer.recipe.schema import Recipe


@dataclass(frozen=True)
class Read:
    """What the run reads of a source. epochs: times each of its tokens is read."""

    name: str
    tokens: Estimate
    tokens_read: int
    epochs: Estimate
    effective_tokens: Estimate


def enough_of_prepared(recipe: Recipe, plan: Plan, manifest: dict[str, Any]) -> dict[str, Any]:
    """The `data` of a plan from the data itself."""
    tokens = [
        (source["name"], _exactly(source["splits"]["train"]["tokens"])) for source in manifest["sources"]
    ]
    size = sum(file["bytes"] for file in manifest.get("files", {}).values())
    hours = sum(manifest.get("timings_s", {}).values()) / 3600.0
    document = _document(recipe, plan, tokens)
    return {
        **document,
        "prepared": manifest["hash"],
        "disk_bytes": asdict(_exactly(size)),
        "final_bytes": asdict(_exactly(size)),
        "build_hours": asdict(_exactly(hours)),
        "uncounted": [],
    }


def enough_of_listed(
    recipe: Recipe, plan: Plan, listings: Sequence[Listing], cores: int
) -> dict[str, Any] | None:
    """The `data` of a plan before the data is built; None where no source has a file on this machine."""
    pairs = list(zip(recipe.data.source, listings, strict=True))
    sources = [source_estimate(recipe, source, listing) for source, listing in pairs]
    if not any(source.tokens.value for source in sources):
        return None
    build = build_estimate(recipe, sources, cores)
    return {
        **_document(recipe, plan, [(source.name, source.tokens) for source in sources]),
        "prepared": None,
        "disk_bytes": asdict(build.disk_bytes),
        "final_bytes": asdict(build.final_bytes),
        "build_hours": asdict(build.hours),
        "cores": cores,
        "files": sum(source.num_files for source in sources),
        "file_bytes": round(sum(source.file_bytes for source in sources)),
        "uncounted": [
            {"name": source.name, "reason": listing.unknown or "no such file"}
            for source, listing in pairs
            if listing.unknown or not listing.files
        ],
        "sampled": [source.name for source, listing in pairs if listing.sampled or not listing.complete],
    }


def _document(recipe: Recipe, plan: Plan, sources: Sequence[tuple[str, Estimate]]) -> dict[str, Any]:
    stage = plan.pretrain
    replayed = 0.0 if recipe.data.replay is None else recipe.data.replay.share
    all_rows = stage.steps * stage.batch_rows
    needed = round((1.0 - replayed) * all_rows) * stage.context
    reads, missing = _reads(recipe, sources, needed // stage.context, stage.context)
    tokens = total([tokens for _, tokens in sources])
    # A source of which nothing is read adds nothing to what there is for this run.
    there = total([read.tokens for read in reads if read.tokens_read]) if reads else tokens
    worth = total([read.effective_tokens for read in reads if read.tokens_read])
    return {
        "tokens_needed": needed,
        "tokens_replayed": all_rows * stage.context - needed,
        "tokens": asdict(tokens),
        "epochs": asdict(there.inverse(needed - missing)),
        "effective_tokens": asdict(worth),
        "lost_share": asdict(_lost(worth, needed - missing)),
        "added_loss": _added_loss(plan, there, worth, needed - missing),
        "tokens_missing": missing,
        "sources": [asdict(read) for read in reads],
    }


def _reads(
    recipe: Recipe, sources: Sequence[tuple[str, Estimate]], num_rows: int, context: int
) -> tuple[list[Read], int]:
    """What is read of each source; and how many tokens cannot be, as sources may be read only so often."""
    counts = [round(tokens.value or 0.0) for _, tokens in sources]
    if not any(counts):
        return [], 0
    data_rows = [-(-count // context) for count in counts]
    mixture = Mixture(planned_stages(recipe.data, counts, data_rows, context))
    end = num_rows if mixture.end is None else min(num_rows, mixture.end)
    rows = mixture.counts(end).tolist()
    reads = []
    for (name, tokens), read, whole in zip(sources, rows, data_rows, strict=True):
        # The last row of a source is seldom full: by rows, so that one epoch is 1.
        trained = round(read / whole * (tokens.value or 0.0)) if whole else 0
        reads.append(Read(name, tokens, trained, tokens.inverse(trained), _worth(tokens, trained)))
    return reads, (num_rows - end) * context


def _worth(tokens: Estimate, trained: int) -> Estimate:
    if not tokens.value or not tokens.low or not tokens.high:
        return UNKNOWN
    value = effective_tokens(tokens.value, trained)
    low, high = effective_tokens_band(tokens.low, trained)[0], effective_tokens_band(tokens.high, trained)[1]
    return Estimate(value, min(low, value), max(high, value), "modelled")


def _lost(worth: Estimate, trained: int) -> Estimate:
    """Which share of the tokens trained on teaches nothing new."""
    if worth.value is None or worth.low is None or worth.high is None or not trained:
        return UNKNOWN
    value, low, high = (max(0.0, 1.0 - end / trained) for end in (worth.value, worth.high, worth.low))
    return Estimate(value, low, high, worth.basis)


def _added_loss(plan: Plan, there: Estimate, worth: Estimate, trained: int) -> float | None:
    """As a share of the loss that as many fresh tokens would lead to."""
    if not there.value or not worth.value or not trained:
        return None
    return max(0.0, added_loss(plan.params, there.value, trained, min(worth.value, trained)))


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value, "measured")


def advice(document: dict[str, Any]) -> str:
    """In a few words, for people."""
    epochs = document["epochs"]["value"]
    if document["tokens_missing"]:
        return "too little: every source may be read only so often, and training would be refused"
    if epochs is None:
        return "not known"
    if epochs <= 1.0:
        return "enough: nothing is read twice"
    if epochs <= FEW_EPOCHS:
        return "enough: repeating so little costs next to nothing"
    if epochs <= MANY_EPOCHS:
        return "few: more data would teach more than more epochs of this"
    return "far too little: this often repeated, nothing more is learnt"
