"""A stage's adapters as a folder that `peft` loads: a few MB beside a base that others have already.

Weights and configuration: checkpoint/peft.py. PEFT does not check what base it loads them onto; which one
they were made for, with its hash, stands in `base.json`, and in the model card. The receipt compares logits
with PEFT's own model where peft is installed and the base is a Hugging Face folder; where not, it says so.
Both read the exported files and that folder: how either was rounded is no difference between the two.
A base in 4 or 8 bits is no part of the export: whoever loads it chooses how to keep the base.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bessemer.checkpoint.base import Base, check_base
from bessemer.checkpoint.folder import chosen
from bessemer.checkpoint.huggingface import load_into
from bessemer.checkpoint.peft import CONFIG, WEIGHTS, partly_joined, peft_config, peft_tensors
from bessemer.checkpoint.peft_start import BASE, load_peft
from bessemer.checkpoint.tensors import CheckpointTensors
from bessemer.durable import guard_write, write_json, write_text
from bessemer.errors import RecipeError
from bessemer.export.card import model_card
from bessemer.export.merge import Text, differences, held_out
from bessemer.export.parity import TOLERANCE, why_not
from bessemer.export.publish import earlier_receipt, file_hash, is_done, publish
from bessemer.export.tokenizer import write_tokenizer
from bessemer.export.weights import dtype_name, parse_dtype
from bessemer.formulas.shape import ModelShape
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.pieces import whole_pieces
from bessemer.rundir import read_object

_OURS = (CONFIG, WEIGHTS, BASE, "README.md", "tokenizer.json", "tokenizer_config.json")
_RECEIPT = "parity.json"
_SCHEMA = "bessemer.adapter-receipt/1"


@dataclass(frozen=True)
class _Source:
    """What is exported: a checkpoint of a stage of adapters, and what it stands on."""

    stage: Path
    info: dict[str, Any]  # stage.json
    checkpoint: Path
    base: Base
    base_folder: str | None  # a Hugging Face folder with the base

    @property
    def shape(self) -> ModelShape:
        return ModelShape.from_json(self.info["shape"])


def export_peft(
    stage: Path, out: Path, *, step: int | None, dtype: str | None, console: Console
) -> dict[str, Any]:
    """Write the adapters of the newest checkpoint of `stage` (or that of `step`) to `out`; the receipt."""
    wanted = None if dtype is None else parse_dtype(dtype)
    earlier = earlier_receipt(out, _RECEIPT, _SCHEMA, _OURS.__contains__)
    source, manifest = _source(stage, step, console.line)
    receipt = {
        "schema": _SCHEMA,
        "stage": stage.name,
        "step": manifest.step,
        "checkpoint": f"{stage.name}/checkpoints/{source.checkpoint.name}",
        "checkpoint_hash": file_hash(source.checkpoint / "manifest.json"),
        "evaluation_hash": file_hash(stage.parent / "evaluate" / "results.json"),
        "base": source.base_folder,
        "base_hash": source.base.hash,
        "dtype": dtype_name(wanted or torch.float32),
        "weights": "adapters bit for bit as in the checkpoint"
        if wanted in (None, torch.float32)
        else "rounded",
    }
    if earlier is not None and is_done(out, receipt, earlier):
        return {**earlier, "out": str(out), "already_done": True}
    publish(out, partial(_build, source, wanted, receipt))
    return {**receipt, "out": str(out), "already_done": False}


def _source(stage: Path, step: int | None, say: Callable[[str], None]) -> tuple[_Source, Any]:
    checkpoint, manifest = chosen(stage, step, say)
    info = read_object(stage / "stage.json") or {}
    shape = ModelShape.from_json(info["shape"]) if "shape" in info else None
    if shape is None or shape.adapter is None:
        raise RecipeError(
            f"{stage.name} has no adapters",
            found="a stage that trained all its weights",
            wanted='a stage of finetune.method = "lora" or "qlora"',
            fix="export it with --format hf",
        )
    base = Base.of(stage, info["origin"])
    if base.shape().vocab != shape.vocab:
        raise RecipeError(
            "PEFT would load these adapters onto a base of another size",
            found=f"{shape.vocab} rows of embedding, {base.shape().vocab} in {base.path}",
            wanted="adapters for the base as it is",
            fix="export the merged model with --format hf",
        )
    joined = partly_joined(shape)
    if joined is not None:
        raise RecipeError(
            "PEFT has no form for these adapters",
            found=f"DoRA on a part of {joined}, which is one matrix in the {shape.family} family's files",
            wanted="magnitudes for all of its rows, or for none",
            fix="export the merged model with --format hf, or train with all parts in finetune.lora.targets",
        )
    return _Source(stage, info, checkpoint, base, _base_folder(base)), manifest


def _base_folder(base: Base) -> str | None:
    """The base as transformers loads it: the folder itself, or our export of that checkpoint, if there is."""
    if base.checkpoint is None:
        return str(base.folder)
    exported = base.folder.parent / "export" / "hf"
    made_from = (read_object(exported / _RECEIPT) or {}).get("checkpoint_hash")
    return str(exported) if made_from == file_hash(base.checkpoint / "manifest.json") else None


def _build(source: _Source, dtype: torch.dtype | None, receipt: dict[str, Any], building: Path) -> None:
    """Fill the folder, add proof and files to the receipt, and write it last."""
    shape = source.shape
    building.mkdir(parents=True)
    with CheckpointTensors(source.checkpoint, "model") as own:
        tensors = {
            name: tensor.to(dtype or tensor.dtype).contiguous()
            for name, tensor in peft_tensors(shape, own.read)
        }
    guard_write(building / WEIGHTS, partial(save_file, tensors, building / WEIGHTS, {"format": "pt"}))
    write_json(building / CONFIG, peft_config(shape, source.base_folder))
    write_json(building / BASE, _base_of(source))
    special = write_tokenizer(source.stage / source.info["tokenizer"], shape, building)
    receipt |= _proof(source, building)
    write_text(building / "README.md", model_card(source.stage, shape, special, receipt))
    receipt["files"] = {file.name: file.stat().st_size for file in sorted(building.iterdir())}
    write_json(building / _RECEIPT, receipt)


def _base_of(source: _Source) -> dict[str, Any]:
    """What the adapters were made for, in a form that outlives its path."""
    base = source.base
    return {
        "kind": base.kind,
        "hash": base.hash,  # xxh3-128: checkpoint/base.py says of what
        "path": str(base.path),
        "family": source.shape.family,
        "parameters_kept_in": source.shape.adapter.base if source.shape.adapter else "float",
    }


def _proof(source: _Source, folder: Path) -> dict[str, Any]:
    """Our logits against PEFT's, both in fp32 and on the base in full precision."""
    reason = why_not(source.shape, "transformers") or why_not(source.shape, "peft")
    if source.base_folder is None:
        reason = "the base is not there as a Hugging Face folder: `bessemer export` of its run makes one"
    if source.shape.labels:
        reason = "a classifier: its last token's scores are compared where it is merged (--format hf)"
    if reason is not None:
        return {"max_absolute_logit_difference": None, "reason": reason, "tolerance": TOLERANCE}
    shape, text = source.shape, held_out(source.stage, source.shape)
    text = replace(text, starts_BT=torch.zeros_like(text.starts_BT))  # as PEFT's model sees a row
    assert shape.adapter is not None
    plain = replace(shape, adapter=replace(shape.adapter, base="float"))
    check_base(source.base)
    ours = _logits(Path(str(source.base_folder)), folder, plain, text)
    theirs, version = _of_peft(str(source.base_folder), folder, text)
    found = differences(ours, theirs)
    largest = found["max_absolute_logit_difference"]
    assert largest <= TOLERANCE, f"exported adapters differ from ours by {largest} in {folder}"
    return {**found, "tolerance": TOLERANCE, "text": text.kind, "compute": "float32, CPU", "peft": version}


@torch.inference_mode()
def _logits(base: Path, folder: Path, shape: ModelShape, text: Text) -> torch.Tensor:
    with torch.device("meta"):
        model = Decoder(shape, torch.float32)
    model.to_empty(device="cpu")
    load_into(model, base, replace(shape, adapter=None))
    load_peft(model, folder, shape, whole_pieces(model))
    return model.logits(model(text.tokens_BT, text.starts_BT))


@torch.inference_mode()
def _of_peft(base: str, folder: Path, text: Text) -> tuple[torch.Tensor, str]:
    import peft
    import transformers

    transformers.utils.logging.disable_progress_bar()
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.24 by a name that it gives up in 6.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        model = peft.PeftModel.from_pretrained(plain, folder).eval()
    return model(text.tokens_BT).logits, str(peft.__version__)
