"""The proof that an export computes what we trained: our logits against transformers', in fp32.

Both read the exported files, the decoder through its own reader, so names, shapes, rotary settings and
tied weights are all in the proof. Without transformers, or where the model is too large for this
machine twice, the receipt says so: null, never a guess.
"""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bessemer.checkpoint.huggingface import load_into, read_shape
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import count_params
from bessemer.model.decoder import Decoder
from bessemer.units import format_bytes

# Two fp32 programs that add in different orders differ by rounding: 1e-6 to 1e-5 on logits of order
# ten. A wrong rotary base, epsilon or transposed matrix shows up as 1e-1 and more.
TOLERANCE = 1e-3
_ROWS, _TOKENS = 2, 96


def parity(folder: Path) -> dict[str, Any]:
    """The receipt for an exported folder. Fails an assertion when the two models disagree."""
    shape = read_shape(folder)
    reason = why_not(shape)
    if reason is not None:
        return {"max_absolute_logit_difference": None, "reason": reason, "tolerance": TOLERANCE}
    ours, theirs, version = _logits(folder, shape)
    difference = float((ours - theirs).abs().max())
    assert difference <= TOLERANCE, f"exported model differs from ours by {difference} in {folder}"
    return {
        "max_absolute_logit_difference": difference,
        "tolerance": TOLERANCE,
        "largest_logit": float(theirs.abs().max()),
        "same_next_token": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        "tokens": _ROWS * min(_TOKENS, shape.context),
        "compute": "float32, CPU",
        "transformers": version,
    }


def why_not(shape: ModelShape, package: str = "transformers") -> str | None:
    """Why two models are not compared here. package: whose model one of them is; ours need none."""
    if package != "bessemer" and importlib.util.find_spec(package) is None:
        return f"{package} is not installed: `pip install {package}`, then export again"
    # Of all that is there: beside adapters, count_params counts only what learns.
    needed = 2.5 * 4 * count_params(replace(shape, adapter=None))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.5 * memory:
        return (
            f"the model twice in fp32 needs {format_bytes(needed)} of this machine's {format_bytes(memory)}"
        )
    return None


@torch.inference_mode()
def _logits(folder: Path, shape: ModelShape) -> tuple[torch.Tensor, torch.Tensor, str]:
    import transformers

    # Its bars would run through our own progress line.
    transformers.utils.logging.disable_progress_bar()
    size = (_ROWS, min(_TOKENS, shape.context))
    tokens_BT = torch.randint(0, shape.vocab, size, generator=torch.Generator().manual_seed(0))
    model = Decoder(shape, torch.float32)
    load_into(model, folder)
    ours = model.logits(model(tokens_BT))
    del model
    if not shape.labels:
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        return ours, reference(tokens_BT).logits, str(transformers.__version__)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    # It reads a row at its last token that is no padding; without padding it takes one row at a time.
    theirs = torch.cat([reference(tokens_T[None]).logits for tokens_T in tokens_BT])
    pad = reference.config.pad_token_id
    last = (tokens_BT != (-1 if pad is None else pad)).long().cumsum(1).argmax(1)
    return ours[torch.arange(_ROWS), last], theirs, str(transformers.__version__)
