"""A stage's model as a folder that transformers, vLLM and llama.cpp's converter load.

Built under a temporary name beside the target and renamed when whole, so a killed export leaves
nothing that looks like a model, and the next one sweeps what it left (publish.py). A folder that holds
anything we did not write is never replaced. Exporting the same checkpoint again changes nothing and
says so.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from bessemer.checkpoint.load import load_model
from bessemer.durable import cannot_write, write_json, write_text
from bessemer.errors import RecipeError
from bessemer.export.card import model_card
from bessemer.export.parity import parity
from bessemer.export.publish import building_folder, replace, sweep
from bessemer.export.tokenizer import write_tokenizer
from bessemer.export.weights import dtype_name, parse_dtype, stored_dtype, write_weights
from bessemer.formulas.huggingface import config_from_shape
from bessemer.formulas.shape import ModelShape
from bessemer.log import Console

_OURS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md")
_RECEIPT = "parity.json"
_SCHEMA = "bessemer.export-receipt/1"


@dataclass(frozen=True)
class _Source:
    """What is exported: a checkpoint of a stage."""

    stage: Path
    shape: ModelShape
    checkpoint: Path
    tokenizer: Path


def export_huggingface(
    stage: Path, out: Path, *, step: int | None, dtype: str | None, console: Console
) -> dict[str, Any]:
    """Write the newest checkpoint of `stage` (or that of `step`) to `out`; returns the receipt.

    dtype None keeps every weight bit for bit in its stored type.
    """
    wanted = None if dtype is None else parse_dtype(dtype)
    try:
        sweep(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    previous = _previous_receipt(out)
    loaded = load_model(stage, step, console.line)
    stored = stored_dtype(loaded.folder)
    written = stored if wanted is None else wanted
    exact = "bit for bit as in the checkpoint"
    receipt = {
        "schema": _SCHEMA,
        "stage": stage.name,
        "step": loaded.step,
        "checkpoint": f"{stage.name}/checkpoints/{loaded.folder.name}",
        "checkpoint_hash": _hash(loaded.folder / "manifest.json"),
        "evaluation_hash": _hash(stage.parent / "evaluate" / "results.json"),
        "dtype": dtype_name(written),
        "weights": exact if written == stored else f"rounded from {dtype_name(stored)}",
    }
    if previous is not None and receipt.items() <= previous.items() and _is_whole(out, previous):
        return {**previous, "out": str(out), "already_done": True}
    source = _Source(stage, loaded.shape, loaded.folder, loaded.tokenizer_path)
    del loaded  # the proof loads the exported files instead: never two copies of ours at once
    building = building_folder(out)
    try:
        _build(source, building, wanted, receipt)
        replace(building, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {**receipt, "out": str(out), "already_done": False}


def _build(source: _Source, building: Path, dtype: torch.dtype | None, receipt: dict[str, Any]) -> None:
    """Fill the folder, add proof and files to the receipt, and write it last."""
    # First, as it refuses a shape that has no Hugging Face form before gigabytes are written.
    config = config_from_shape(source.shape, torch_dtype=receipt["dtype"])
    building.mkdir(parents=True)
    special = write_tokenizer(source.tokenizer, source.shape, building)
    pad = special["pad"]["id"] if special["pad"] else None
    ids = {"bos_token_id": source.shape.bos_id, "eos_token_id": source.shape.eos_id, "pad_token_id": pad}
    write_json(building / "config.json", {**config, "pad_token_id": pad})
    write_json(building / "generation_config.json", {"_from_model_config": True, "do_sample": False, **ids})
    write_weights(source.checkpoint, source.shape, building, dtype)
    receipt |= parity(building)
    write_text(building / "README.md", model_card(source.stage, source.shape, special, receipt))
    receipt["files"] = {file.name: file.stat().st_size for file in sorted(building.iterdir())}
    write_json(building / _RECEIPT, receipt)


def _previous_receipt(out: Path) -> dict[str, Any] | None:
    """The receipt of an export of ours at `out`; None where there is nothing. Else RecipeError."""
    if out.is_dir():
        entries = sorted(entry.name for entry in out.iterdir())
        foreign = [name for name in entries if not _is_ours(name)]
        if not entries:
            return None
        if not foreign and _RECEIPT in entries:
            receipt = json.loads((out / _RECEIPT).read_text())
            if isinstance(receipt, dict) and receipt.get("schema") == _SCHEMA:
                return receipt
        found = f"it holds {', '.join((foreign or entries)[:5])}"
    elif out.exists():
        found = "a file"
    else:
        return None
    raise RecipeError(
        f"{out} is not an export of ours, so it is not replaced",
        found=found,
        wanted="a folder that does not exist yet, is empty, or holds an earlier export and nothing else",
        fix="choose another folder with --out DIR",
    )


def _is_ours(name: str) -> bool:
    weights = name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))
    return name in _OURS or name == _RECEIPT or weights


def _is_whole(out: Path, receipt: dict[str, Any]) -> bool:
    files: dict[str, int] = receipt.get("files") or {}
    return bool(files) and all(
        (out / name).is_file() and (out / name).stat().st_size == size for name, size in files.items()
    )


def _hash(path: Path) -> str | None:
    return xxhash.xxh3_128_hexdigest(path.read_bytes()) if path.is_file() else None
