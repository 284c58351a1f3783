"""How many of the injected near-duplicates a whole build refused, and how many of its refusals were right.

    python data_duplicates.py RECIPE STORE        JSON on stdout; the recipe was built into STORE, rules off

The source "copies" holds documents of the other sources with 2 % of their words edited, under their names.
Recall is the share of copies that were refused, of those whose original stayed: where the original went too,
as a near-duplicate of a third, its copy may be all that is left of it. `pairs`: the share of all pairs of
which not both stayed.
Precision is that of all rows refused by dedup.minhash, natural near-duplicates too: the share that truly has
SAME or more of its 5-grams of words in common (Jaccard) with the row that stayed for it, counted as sets of
strings, of NUM_PAIRS pairs drawn at random. Other thresholds are tried on the same files.
"""

import json
import random
import re
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bessemer.data.factory.columns import read_batches, read_texts
from bessemer.data.factory.decide import VALIDATION, Deciding, Decisions, _duplicate_keys, decide
from bessemer.data.factory.duplicates import near_duplicates
from bessemer.data.factory.keys import PartFiles, part_files
from bessemer.data.factory.settings import shared_settings, stage_settings
from bessemer.data.sources.cutting import cut
from bessemer.data.sources.documents import source_inputs
from bessemer.log import Console
from bessemer.recipe.schema import Recipe

SAME, NUM_PAIRS, THRESHOLDS = 0.70, 4_000, (0.70, 0.75, 0.80)
_MEMORY_BYTES = 1 << 29


def main() -> None:
    path, store = Path(sys.argv[1]), Path(sys.argv[2])
    recipe = Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    manifest = json.loads(next(store.glob("*/manifest.json")).read_text(encoding="utf-8"))
    refused = [source["refused"].get("dedup.minhash", 0) for source in manifest["sources"]]
    parts = _parts(recipe, path.parent, store)
    with tempfile.TemporaryDirectory(dir=store) as folder:
        decisions = _before(recipe, parts, Path(folder))
        originals = _originals(recipe, parts)
        by_threshold = {
            threshold: _judged(parts, decisions, Path(folder), threshold, originals)
            for threshold in sorted({*THRESHOLDS, recipe.data.clean.similarity})
        }
    own = by_threshold[recipe.data.clean.similarity]
    # The build's own decisions: what is judged here is what it did.
    assert own["refused"] == sum(refused), (own, refused)
    thresholds = {str(threshold): row for threshold, row in by_threshold.items()}
    result = {"similarity": recipe.data.clean.similarity, "same": SAME, **own, "thresholds": thresholds}
    print(json.dumps(result))


def _parts(recipe: Recipe, base: Path, store: Path) -> list[PartFiles]:
    """Where the build left each part's files."""
    stages, found = store.resolve() / "stages", []
    shared = shared_settings(recipe, base, stages, Console(quiet=True))
    for number, source in enumerate(recipe.data.source):
        settings = stage_settings(recipe, source, base, shared)
        found += [
            part_files(number, source, part, settings, stages)
            for part in cut(source, source_inputs(source, base))
        ]
    return found


def _before(recipe: Recipe, parts: Sequence[PartFiles], folder: Path) -> Decisions:
    """What was decided before near-duplicates were looked for."""
    clean = recipe.data.clean.model_copy(update={"dedup": "exact", "decontaminate": []})
    how = Deciding(recipe.data.source, clean, 0.0, recipe.tokenizer.vocab, folder, _MEMORY_BYTES)
    return decide(parts, how)


def _judged(
    parts: Sequence[PartFiles],
    decisions: Decisions,
    folder: Path,
    threshold: float,
    originals: dict[int, int],
) -> dict[str, Any]:
    rows = _duplicate_keys(parts, decisions, "minhash", ("bands", "sketch"))
    batches = list(near_duplicates(rows, folder, _MEMORY_BYTES, threshold))
    pairs = [
        pair
        for batch in batches
        for pair in zip(batch["number"].to_pylist(), batch["stays"].to_pylist(), strict=True)
    ]
    refused = np.concatenate(decisions.fates) > VALIDATION
    refused[[number for number, _ in pairs]] = True
    stayed = [copy for copy, original in originals.items() if not refused[original]]
    drawn = random.Random(5).sample(pairs, min(NUM_PAIRS, len(pairs)))
    texts = _texts(parts, decisions, {number for pair in drawn for number in pair})
    shares = np.array([_jaccard(texts[one], texts[two]) for one, two in drawn])
    return {
        "refused": len(pairs),
        "copies": len(originals),
        "originals_stayed": len(stayed),
        "recall": float(np.mean(refused[stayed])),
        "pairs": float(np.mean([refused[one] or refused[two] for one, two in originals.items()])),
        "precision": float((shares >= SAME).mean()),
        "share_at_least": {
            str(least): float((shares >= least).mean()) for least in (0.5, 0.65, 0.7, 0.75, 0.8)
        },
    }


def _originals(recipe: Recipe, parts: Sequence[PartFiles]) -> dict[int, int]:
    """The row of each copy, and that of which it is one. A copy's id: source, and place or id in it."""
    rows: dict[str, int] = {}
    copies: dict[str, int] = {}
    number = 0
    for part in parts:
        name = recipe.data.source[part.source].name
        for batch in read_batches(part.files["read"], ["id"]):
            for one in batch["id"].to_pylist():
                if name == "copies":
                    copies[one] = number
                else:  # a file's name is its place
                    rows[one if name == "man" else f"{name}:{int(Path(one).stem)}"] = number
                number += 1
    return {copies[name]: rows[name] for name in copies}


def _texts(parts: Sequence[PartFiles], decisions: Decisions, wanted: set[int]) -> dict[int, str]:
    found, number = {}, 0
    for part in parts:
        for batch in read_texts(part.files["read"], part.files["clean"]):
            for row in range(batch.num_rows):
                if number + row in wanted:
                    found[number + row] = batch["text"][row].as_py() or ""
            number += batch.num_rows
    assert number == decisions.begins[-1], (number, decisions.begins[-1])
    return found


def _jaccard(one: str, two: str) -> float:
    first, second = _grams(one), _grams(two)
    return len(first & second) / max(1, len(first | second))


def _grams(text: str) -> set[tuple[str, ...]]:
    words = re.sub(r"[\W_]+", " ", text.lower()).split()
    return {tuple(words[place : place + 5]) for place in range(max(1, len(words) - 4))}


if __name__ == "__main__":
    main()
