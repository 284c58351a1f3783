"""Each family from a recipe: trained by the loop, exported, and the same in transformers."""

from pathlib import Path

import pytest
from making_runs import QUIET, curve, own_cache, pretrained, write_recipe

from bessemer.export.huggingface import export_huggingface

SETTINGS = {
    "gemma3": ["model.sliding_window=8", "model.layers=7"],
    "llama": ["model.sliding_window=8"],
    "phi3": ["model.sliding_window=8"],
    "qwen2": [],
    "mixtral": ["model.sliding_window=8", "model.experts=4", "model.experts_per_token=2",
                "model.expert_ffn=48"],
}  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:transformers")]


@pytest.mark.parametrize("family", SETTINGS)
def test_family_learns_from_a_recipe_and_is_the_same_in_transformers(family: str, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    with own_cache(tmp_path / "cache"):
        pretrained(tmp_path, f"model.family={family}", "pretrain.steps=12", *SETTINGS[family])
    losses = [row[1] for row in curve(tmp_path / "run/pretrain")]
    assert losses[-1] < losses[0] - 0.3
    out = tmp_path / "hf"
    receipt = export_huggingface(tmp_path / "run/pretrain", out, step=None, dtype=None, console=QUIET)
    assert receipt["max_absolute_logit_difference"] < 1e-4
