"""The planner's facts of this machine: device, memory, measured ceilings, and the model to begin from."""

import json
from pathlib import Path

import torch

from bessemer.errors import DataError
from bessemer.formulas.huggingface import shape_from_config
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import find, machine
from bessemer.measure.ceiling import ceilings, device_name
from bessemer.planner.facts import Facts
from bessemer.recipe.schema import Recipe

_DEFAULT_CONTEXT = 1024


def gather(
    recipe: Recipe,
    base: Path,
    device: torch.device,
    *,
    train_tokens: int | None = None,
    vocab: int | None = None,
    special_ids: tuple[int | None, int | None] = (None, None),
) -> Facts:
    """Facts for one process on `device`. Measures its ceilings where none are stored (2 s).

    train_tokens, vocab, special_ids (BOS, EOS): of the prepared data, once there is any.
    """
    name, here = device_name(device), machine()
    known = find(name)
    return Facts(
        device=known.name if known and device.type != "cpu" else name,
        kind="cpu" if device.type == "cpu" else (known.kind if known else "gpu"),
        cores=here.cores,
        memory_bytes=memory_available(device),
        ceilings=ceilings(device),
        train_tokens=train_tokens,
        vocab=vocab,
        bos_id=special_ids[0],
        eos_id=special_ids[1],
        source_shape=source_shape(recipe, base),
    )


def memory_available(device: torch.device) -> int | None:
    """Bytes that a run could take now; None where the device does not tell."""
    if device.type == "cpu":
        return machine().memory_available_bytes
    ask = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    return int(ask(device)[0]) if ask else None


def source_shape(recipe: Recipe, base: Path) -> ModelShape | None:
    """The shape that `model.from` names: a Hugging Face directory, or its config.json."""
    if recipe.model.from_ is None:
        return None
    path = base / recipe.model.from_
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"model.from: cannot read {file}",
            found=str(error),
            wanted="a Hugging Face directory with a config.json, or that file",
            fix="check model.from; relative paths start from the recipe's folder",
        ) from error
    if "context" in recipe.model.model_fields_set:
        return shape_from_config(config, context=recipe.model.context)
    longest = config.get("max_position_embeddings")
    return shape_from_config(config, context=min(_DEFAULT_CONTEXT, longest or _DEFAULT_CONTEXT))
