"""A stage's model as a folder that transformers, vLLM and llama.cpp's converter load.

Built under a temporary name beside the target and renamed when whole, so a killed export leaves
nothing that looks like a model, and the next one sweeps what it left (publish.py). A folder that holds
anything we did not write is never replaced. Exporting the same checkpoint again changes nothing and
says so. Adapters are merged into the weights that they were made for (merge.py).
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bessemer.checkpoint.load import load_model
from bessemer.durable import write_json, write_text
from bessemer.export.card import model_card
from bessemer.export.merge import merge_proof, write_merged
from bessemer.export.parity import parity
from bessemer.export.publish import earlier_receipt, file_hash, is_done, publish
from bessemer.export.tokenizer import write_tokenizer
from bessemer.export.weights import dtype_name, parse_dtype, stored_dtype, write_weights
from bessemer.formulas.huggingface.config import config_from_shape
from bessemer.formulas.huggingface.labels import label_keys
from bessemer.formulas.objective import Objective
from bessemer.formulas.shape import ModelShape
from bessemer.log import Console
from bessemer.rundir import read_object

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
    previous = earlier_receipt(out, _RECEIPT, _SCHEMA, _is_ours)
    loaded = load_model(stage, step, console.line)
    stored = stored_dtype(loaded.folder)
    written = stored if wanted is None else wanted
    told = "bit for bit as in the checkpoint" if written == stored else f"rounded from {dtype_name(stored)}"
    if loaded.shape.adapter is not None:
        told = "adapters merged in float32" + ("" if written == torch.float32 else ", then rounded")
    receipt = {
        "schema": _SCHEMA,
        "stage": stage.name,
        "step": loaded.step,
        "checkpoint": f"{stage.name}/checkpoints/{loaded.folder.name}",
        "checkpoint_hash": file_hash(loaded.folder / "manifest.json"),
        "evaluation_hash": file_hash(stage.parent / "evaluate" / "results.json"),
        "dtype": dtype_name(written),
        "weights": told,
    }
    if previous is not None and is_done(out, receipt, previous):
        return {**previous, "out": str(out), "already_done": True}
    source = _Source(stage, loaded.shape, loaded.folder, loaded.tokenizer_path)
    del loaded  # the proof loads the exported files instead: never two copies of ours at once
    publish(out, partial(_build, source, dtype=wanted, receipt=receipt))
    return {**receipt, "out": str(out), "already_done": False}


def _build(source: _Source, building: Path, dtype: torch.dtype | None, receipt: dict[str, Any]) -> None:
    """Fill the folder, add proof and files to the receipt, and write it last."""
    # First, as it refuses a shape that has no Hugging Face form before gigabytes are written.
    shape = replace(source.shape, adapter=None)
    config = config_from_shape(shape, torch_dtype=receipt["dtype"])
    building.mkdir(parents=True)
    special = write_tokenizer(source.tokenizer, shape, building)
    pad = special["pad"]["id"] if special["pad"] else None
    if source.shape.labels and pad == source.shape.eos_id:
        pad = None  # transformers would take a text's own end for padding, and read the token before it
    ids = {"bos_token_id": shape.bos_id, "eos_token_id": shape.eos_id, "pad_token_id": pad}
    if source.shape.labels > 1:
        config |= label_keys(source.shape.labels, _label_names(source.stage))
    write_json(building / "config.json", {**config, "pad_token_id": pad})
    closing = special["turn_end"]
    stops: Any = shape.eos_id
    if closing is not None and closing["id"] != shape.eos_id:  # an answer ends with either
        stops = [closing["id"], shape.eos_id]
    write_json(
        building / "generation_config.json",
        {"_from_model_config": True, "do_sample": False, **ids, "eos_token_id": stops},
    )
    if source.shape.adapter is None:
        write_weights(source.checkpoint, shape, building, dtype)
    else:
        write_merged(source.stage, source.checkpoint, shape, building, dtype or torch.float32)
        exact = receipt["dtype"] == "float32"
        receipt |= merge_proof(source.stage, source.checkpoint, source.shape, building, exact=exact)
    receipt |= parity(building)
    write_text(building / "README.md", model_card(source.stage, shape, special, receipt))
    receipt["files"] = {file.name: file.stat().st_size for file in sorted(building.iterdir())}
    write_json(building / _RECEIPT, receipt)


def _label_names(stage: Path) -> tuple[str, ...]:
    """Of a classifier."""
    plan = (read_object(stage / "stage.json") or {}).get("plan") or {}
    return Objective.from_json(plan.get("objective")).labels


def _is_ours(name: str) -> bool:
    weights = name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))
    return name in _OURS or name == _RECEIPT or weights
