"""Which stages a source goes through, and the settings of each: what is asked for, and no more.

Evaluation sets and labelled examples are read once, here, and lie in the store for the workers.
"""

from pathlib import Path
from typing import Any

from bessemer.data.clean.code import load_plugin
from bessemer.data.clean.grams import EvalGrams
from bessemer.data.clean.quality_training import train_quality
from bessemer.data.clean.rules import SETS, Rule, chosen_rules
from bessemer.data.sources.inputs import find_inputs
from bessemer.log import Console
from bessemer.recipe.schema import Clean, Recipe, Source

_SEED = 0  # of the quality classifier: the same examples give the same one


def shared_settings(recipe: Recipe, base: Path, stages: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Of the stages that compare with something: the same for all sources."""
    clean, settings = recipe.data.clean, {}
    chosen = [rule.name for source in recipe.data.source for rule in source_rules(source, clean)]
    # Refuses a threshold of a rule that is on nowhere.
    chosen_rules(list(dict.fromkeys(chosen)), clean.thresholds)
    if clean.decontaminate:
        settings["contamination"] = _grams(clean, base, stages, console)
    if clean.quality is not None:
        settings["quality"] = _quality(clean.quality, base, stages)
    return settings


def stage_settings(
    recipe: Recipe, source: Source, base: Path, shared: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """In the order of the stages. Ready tokens have no text that anything could be done to."""
    clean = recipe.data.clean
    if source.kind == "tokens":
        return {"read": {}, "clean": {"text": "off", "pii": "off", "c4": False, "plugin": None}}
    plugin = None
    if clean.code is not None:
        found = load_plugin(clean.code, base, allowed=True)  # else the build would not have come here
        plugin = {"name": clean.code, "base": str(base), "hash": found.hash, "source": source.name}
    rules, spoken = source_rules(source, clean), source_languages(source, clean)
    settings: dict[str, dict[str, Any]] = {
        "read": {},
        "clean": {
            "text": "off" if clean.text == "off" else "code" if source.kind == "code" else "text",
            "pii": clean.pii,
            "c4": any(rule in SETS["c4"] for rule in chosen_rules([rule.name for rule in rules], {})),
            "plugin": plugin,
        },
    }
    if spoken is not None or rules:
        settings["language"] = {}
    if rules:
        settings["signals"] = {}
    if clean.dedup == "minhash":
        settings["minhash"] = {}
    return {**settings, **shared}


def source_rules(source: Source, clean: Clean) -> list[Rule]:
    """Those of prose are none for code: nine tenths of it would fail them."""
    wanted = source.rules
    if wanted is None:
        wanted = "off" if source.kind in ("code", "tokens") else clean.rules
    names = {rule.name for rule in chosen_rules(wanted, {})}
    return chosen_rules(wanted, {name: value for name, value in clean.thresholds.items() if name in names})


def source_languages(source: Source, clean: Clean) -> list[str] | None:
    """None: any."""
    if source.language is not None:
        return source.language or None
    return None if source.kind in ("code", "tokens") else clean.language


def _grams(clean: Clean, base: Path, stages: Path, console: Console) -> dict[str, Any]:
    found = [
        entry for path in clean.decontaminate for entry in find_inputs("data.clean.decontaminate", path, base)
    ]
    grams = EvalGrams.load([entry.path.resolve() for entry in found], base)
    path = stages / "grams" / f"{grams.hash}.npz"
    if not path.exists():
        console.line(f"data: {grams.summary()}")
        grams.save(path)
    return {"file": str(path), "hash": grams.hash}


def _quality(examples: str, base: Path, stages: Path) -> dict[str, Any]:
    model = train_quality(base / examples, _SEED)
    path = stages / "quality" / f"{model.hash}.safetensors"
    model.save(path)
    return {"file": str(path), "hash": model.hash}
