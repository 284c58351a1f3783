"""Heads of classes in a `config.json`: transformers' `…ForSequenceClassification` of each architecture.

They have `score.weight` in place of `lm_head.weight`, and read it at a row's last token that is no padding,
as we do at a document's last token. A reward model is one with one label. GLM-4 MoE has no such class.
Source: transformers 5, modeling_layers.py `GenericForSequenceClassification`; keys: `PreTrainedConfig`.
"""

from collections.abc import Sequence
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.families import READABLE
from bessemer.formulas.huggingface.keys import count, members

_WORDS, _CLASSES = "ForCausalLM", "ForSequenceClassification"
_WITHOUT = ("Glm4MoeForCausalLM",)
_OTHERS = {"Gemma3ForCausalLM": "Gemma3TextForSequenceClassification"}
CLASS_HEADS = {
    _OTHERS.get(name, name.replace(_WORDS, _CLASSES)): name for name in READABLE if name not in _WITHOUT
}  # name with a head of classes -> name with one of words
_NAME_OF = {words: classes for classes, words in CLASS_HEADS.items()}


def class_architecture(architecture: str) -> str:
    """Of one with a head of words. RecipeError where transformers has none."""
    if architecture in _NAME_OF:
        return _NAME_OF[architecture]
    raise RecipeError(
        "this model has no Hugging Face form with a head of classes",
        found=architecture,
        wanted="one of " + ", ".join(_NAME_OF),
        fix="use it with bessemer itself, or train another family",
    )


def read_labels(config: dict[str, Any]) -> int:
    """Rows of the head of classes; 0 where the architecture has one of words."""
    if next(iter(members(config, "architectures", str)), "") not in CLASS_HEADS:
        return 0
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) and names else count(config, "num_labels", 2)


def label_keys(labels: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """What a config says of its labels. names: none: LABEL_0 and so on, as transformers has it."""
    names = names or [f"LABEL_{number}" for number in range(labels)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "single_label_classification" if labels > 1 else "regression",
    }
