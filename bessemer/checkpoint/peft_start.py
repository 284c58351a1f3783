"""Adapters that somebody has trained already, in PEFT's form, as the first weights of a stage of adapters.

The base is the local folder that `adapter_config.json` names; where our own export says what base it was made
for (`base.json`), another one is refused by its hash. Rank, scale, kind and matrices must be those of the
recipe: adapters of another size would have to be cut or filled up, which is another model. Checked before
anything is written.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from bessemer.checkpoint.base import Base, base_hash
from bessemer.checkpoint.peft import CONFIG, WEIGHTS, own_tensors, peft_config, peft_scales, peft_shapes
from bessemer.errors import CheckpointError, DataError, RecipeError
from bessemer.formulas.huggingface.keys import read_json
from bessemer.formulas.shape import ModelShape
from bessemer.model.packed import places
from bessemer.model.pieces import Pieces
from bessemer.rundir import read_object

BASE = "base.json"
# Key of PEFT's configuration, what it means where it is left out, and the key of a recipe that answers to it.
_SETTINGS = (
    ("use_rslora", False, "finetune.lora.rslora"),
    ("use_dora", False, "finetune.lora.dora"),
)
# Of what is 8 where it is left out, and modules may have of their own: the key, that of the patterns, ours.
_SCALES = (
    ("r", "rank_pattern", "finetune.lora.rank"),
    ("lora_alpha", "alpha_pattern", "finetune.lora.alpha"),
)
_PLAIN = (("peft_type", "LORA"), ("bias", "none"), ("fan_in_fan_out", False), ("lora_bias", False))
_MERGE = "merge them with peft's merge_and_unload(), and go on from that model"
# First values of PEFT's that come out of the base, or pack it: it is another one afterwards than is named.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def peft_base(folder: Path) -> Path:
    """The Hugging Face folder that the adapters in `folder` were made for."""
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    base = Path(named) if isinstance(named, str) else None
    if base is None or not (base / "config.json").is_file():
        raise DataError(
            f"the base of the adapters in {folder} is not here",
            found=f"base_model_name_or_path = {named!r}",
            wanted="a local folder with config.json and weights: nothing is fetched",
            fix=f"fetch the base, and write its folder into {folder / CONFIG}",
        )
    wanted = (read_object(folder / BASE) or {}).get("hash")
    if wanted is not None:
        _check_hash(folder, base, str(wanted))
    return base.resolve()


def check_peft(folder: Path, shape: ModelShape) -> None:
    """RecipeError unless the adapters in `folder` are those of `shape`, which the recipe asks for."""
    config = read_json(folder / CONFIG)
    for key, value in _PLAIN:
        if config.get(key, value) != value:
            raise _unfit(folder, f"{key} = {config[key]!r}", f"{key} = {value!r}", "export it again without")
    _check_base_is_whole(folder, config)
    wanted = peft_config(shape, None)
    for key, default, ours in _SETTINGS:
        found = config.get(key, default)
        if found != wanted[key]:
            fix = f"set {ours}={str(found).lower()}"
            raise _unfit(folder, f"{key} = {found!r}", f"{key} = {wanted[key]!r}, as the recipe says", fix)
    _check_scales(folder, config, shape)
    expected, stored = peft_shapes(shape), _stored(folder)
    different = sorted(name for name in expected.keys() | stored if expected.get(name) != stored.get(name))
    if different:
        name = different[0]
        found = f"{name} of shape {stored.get(name)}, {len(different)} tensors that differ"
        raise _unfit(folder, found, f"shape {expected.get(name)}", "set finetune.lora.targets to its modules")


def load_peft(model: nn.Module, folder: Path, shape: ModelShape, pieces: Pieces) -> None:
    """Into the adapters of a model, what this rank holds of them."""
    found = own_tensors(shape, load_file(folder / WEIGHTS))
    with torch.no_grad():
        for name, held in places(model, pieces).items():
            for place in held if name in found else ():
                place.take_from(found[name])


def _check_scales(folder: Path, config: dict[str, Any], shape: ModelShape) -> None:
    """RecipeError unless rank and alpha of every module are the recipe's, in whichever words."""
    try:
        found = peft_scales(config, shape)
    except re.error as error:
        wanted_text = "regular expressions, as PEFT takes them"
        raise _unfit(folder, f"the pattern {error.pattern!r}: {error}", wanted_text, _MERGE) from error
    ours = peft_config(shape, None)
    wanted = peft_scales(ours, shape)
    for place, (key, pattern, setting) in enumerate(_SCALES):
        differ = [name for name in wanted if found[name][place] != wanted[name][place]]
        if not differ:
            continue
        factors = {found[name][place] / wanted[name][place] for name in wanted}
        fix = f"set {setting}={ours[key] * factors.pop():g}" if len(factors) == 1 else _MERGE
        said, meant = f"{key} = {config.get(key, 8)!r}", f"{key} = {ours[key]!r}, as the recipe says"
        if config.get(pattern):
            name = differ[0]
            said = f"{pattern} = {config[pattern]!r}: {found[name][place]:g} for {name}"
            meant = f"{wanted[name][place]:g}: one for all modules, as the recipe says"
            fix = fix if fix == _MERGE else f"{fix}, or {_MERGE}"
        raise _unfit(folder, said, meant, fix)


def _check_hash(folder: Path, base: Path, wanted: str) -> None:
    kind = (read_object(folder / BASE) or {}).get("kind")
    if kind != "huggingface":  # made for a checkpoint of ours, of which the base is an export: no common hash
        return
    found = base_hash(Base(folder, "huggingface", base))
    if found != wanted:
        raise CheckpointError(
            f"the adapters in {folder} are for another model",
            found=f"{base} with hash {found}",
            wanted=f"{wanted}, which they were made for",
            fix=f"name the right base in {folder / CONFIG}",
        )


def _check_base_is_whole(folder: Path, config: dict[str, Any]) -> None:
    begun = config.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.lower().startswith(_CHANGED_BASE):
        raise _unfit(
            folder,
            f"init_lora_weights = {begun!r}: the base that they were trained beside is not the one they name",
            "adapters for the base as it is",
            "merge them into the base that they were trained beside, or, where peft can, save them with "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…)",
        )


def _stored(folder: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"cannot read the adapters in {folder}",
            found=str(error),
            wanted=f"{WEIGHTS}; pickled ones (adapter_model.bin) are not read, as pickle can run code",
            fix="save them with peft's save_pretrained(…)",
        ) from error


def _unfit(folder: Path, found: str, wanted: str, fix: str) -> RecipeError:
    problem = f"the adapters in {folder} are not what the recipe asks for"
    return RecipeError(problem, found=found, wanted=wanted, fix=fix)
