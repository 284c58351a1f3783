"""Carbon of a training as the model card has it: Hugging Face's `co2_eq_emissions`, in the front matter.

Grams, with the source saying how they were come by, and what is not among them. Nothing is written where
carbon is not known. The hub reads it there, and from no other file.
Format: huggingface.co/docs/hub/model-cards-co2.
"""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

_LEFT_OUT = "preparing data, evaluation and export not among them"


def co2_front_matter(document: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    """Lines of YAML. document: of `account`; stages: those whose work is in the model, the last its own."""
    rows = [document["stages"][name] for name in stages]
    grams = [None if row["kg_co2e"] is None else 1000.0 * row["kg_co2e"] for row in rows]
    known = [value for value in grams if value is not None]
    if not rows or len(known) < len(rows):
        return []
    scope = document["scope"]
    bases = "/".join(sorted({row["energy_j"]["basis"] for row in rows}))
    how = f"{bases} joules, {scope['facility']}; {rows[-1]['carbon_from']}"
    texts = {
        "source": f"bessemer energy: {how}; {_LEFT_OUT}",
        "training_type": "pre-training" if stages[-1].startswith("pretrain") else "fine-tuning",
        "geographical_location": scope["location"],
        "hardware_used": scope["hardware"],
    }
    lines = [f"  {key}: {json.dumps(text, ensure_ascii=False)}" for key, text in texts.items() if text]
    return ["co2_eq_emissions:", f"  emissions: {_plain(sum(known))}", *lines]


def _plain(value: float) -> str:
    """Four digits, and never 1e-05: in YAML 1.1 that is a text."""
    return format(Decimal(f"{value:.4g}"), "f")
