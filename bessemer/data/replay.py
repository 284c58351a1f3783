"""Continued pre-training without forgetting: which earlier data a recipe replays, in which shares.

What a run learned from is the prepared data that its stage.json names. A share of the rows of the new run
comes from there, each of its sources as often as at the end of that run, and what that run itself replayed.
Nothing is built or copied: the earlier data is read where it lies, so its folder must stay.
Of the share: 5 % kept a model of English text from forgetting while it learned other English, 25 % while it
learned German (arXiv:2403.08763); the rate was warmed up again in both.
"""

from pathlib import Path
from typing import Any

import xxhash

from bessemer.data.kept import open_told
from bessemer.data.mixture import Mixing
from bessemer.data.prepared import Prepared, PreparedTask, Replayed, open_prepared
from bessemer.errors import DataError, RecipeError
from bessemer.recipe.schema import Recipe
from bessemer.rundir import read_object


def find_replayed(recipe: Recipe, base: Path) -> Replayed:
    """What data.replay names, before anything is built of the own sources. base: the recipe's folder."""
    assert recipe.data.replay is not None, "nothing to replay"
    path = base / Path(recipe.data.replay.run).expanduser()
    stage = path / "pretrain" if (path / "pretrain" / "stage.json").is_file() else path
    info = read_object(stage / "stage.json")
    if info is None and not (path / "manifest.json").is_file():
        raise _nothing(path, "neither stage.json nor manifest.json")
    found = open_prepared(path) if info is None else open_told(info["data"])
    if isinstance(found, PreparedTask):
        raise _nothing(path, "examples of a task")
    weights = _weights(found, info)
    if not any(weights):
        raise _nothing(path, "no token to train on")
    named = recipe.tokenizer.path
    if named is None or _digest(base / named) != found.manifest["tokenizer"]["xxh3_128"]:
        raise _other_tokenizer(found, "one to be learnt" if named is None else named)
    return Replayed(found, weights)


def check_alike(replayed: Replayed, own: Prepared) -> None:
    """The same tokens begin and end documents in both, which a file beside a tokenizer decides."""
    if replayed.data.manifest["tokenizer"] != own.manifest["tokenizer"]:
        raise _other_tokenizer(replayed.data, f"other special tokens: {own.manifest['tokenizer']}")


def _weights(found: Prepared, info: dict[str, Any] | None) -> tuple[float, ...]:
    """As at the end of the run that read it; of data alone by size."""
    if info is None:
        return tuple(float(len(stream.tokens)) for _, stream in found.named_streams("train"))
    last = Mixing.from_json(info["mixture"]).kept[-1]
    weights = last.weights_left([0] * len(last.weights))
    assert len(weights) == len(found.named_streams("train")), (weights, found.folder)
    return tuple(weights)


def _digest(tokenizer: Path) -> str | None:
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    return xxhash.xxh3_128_hexdigest(file.read_bytes()) if file.is_file() else None


def _other_tokenizer(found: Prepared, named: str) -> RecipeError:
    return RecipeError(
        "data.replay was made with another tokenizer than the recipe has",
        found=named,
        wanted="one tokenizer: that of the model which is trained on",
        fix=f"set tokenizer.path={found.tokenizer_path}",
    )


def _nothing(path: Path, found: str) -> DataError:
    return DataError(
        f"data.replay: {path} holds no data of pre-training",
        found=found,
        wanted="a run that bessemer pre-trained, or a folder that `bessemer data build` printed",
        fix="check data.replay.run; a relative path starts from the recipe's folder",
    )
