"""Carbon of a training as the model card has it: Hugging Face's `co2_eq_emissions`, in the front matter.

Grams, with the source saying how they were come by. Nothing is written where carbon is not known.
Format: huggingface.co/docs/hub/model-cards-co2.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def co2_front_matter(document: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    """Lines of YAML. document: of `account`; stages: those whose work is in the model, the last its own."""
    rows = [document["stages"][name] for name in stages]
    grams = [None if row["kg_co2e"] is None else 1000.0 * row["kg_co2e"] for row in rows]
    known = [value for value in grams if value is not None]
    if not rows or len(known) < len(rows):
        return []
    scope = document["scope"]
    bases = "/".join(sorted({row["energy_j"]["basis"] for row in rows}))
    texts = {
        "source": f"bessemer energy: {bases} joules, {scope['facility']}; {rows[-1]['carbon_from']}",
        "training_type": "pre-training" if stages[-1].startswith("pretrain") else "fine-tuning",
        "geographical_location": scope["location"],
        "hardware_used": scope["hardware"],
    }
    lines = [f"  {key}: {json.dumps(text, ensure_ascii=False)}" for key, text in texts.items() if text]
    return ["co2_eq_emissions:", f"  emissions: {float(f'{sum(known):.4g}')}", *lines]
