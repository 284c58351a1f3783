"""The recipes `grpo-arithmetic` and `distill`, by the command line as a user calls it. Minutes."""

import json
from pathlib import Path
from typing import Any

import pytest
from making_processes import finish, start

pytestmark = pytest.mark.slow


def bessemer(folder: Path, *words: str) -> dict[str, Any]:
    code, out, err = finish(start(folder, *words, "--json"), timeout_s=600.0)
    assert code == 0, err
    return dict(json.loads(out))


def test_the_mean_reward_of_sums_rises(tmp_path: Path) -> None:
    bessemer(tmp_path, "recipes", "copy", "grpo-arithmetic", ".")
    bessemer(tmp_path, "pretrain", "grpo-arithmetic.toml")
    rounds = bessemer(tmp_path, "finetune", "grpo-arithmetic.toml")["rounds"]
    rewards = [each["reward"] for each in rounds]
    assert len(rewards) == 12 and rewards[0] < 0.4  # three sums of ten were right in what it read
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.2
    stages = bessemer(tmp_path, "evaluate", "runs/grpo-arithmetic")["stages"]
    assert 0.0 <= stages["finetune"]["reward"] == stages["finetune"]["exact_match"] <= 1.0


def test_a_student_of_half_the_size_learns_from_the_demo(tmp_path: Path) -> None:
    """Both after few steps: what is proven is that the recipes fit together."""
    short = [
        *("pretrain.steps=6", "pretrain.batch_tokens=4096", "finetune.epochs=1", "finetune.lr=1e-3"),
        *("finetune.batch_tokens=16384", "finetune.compare_scratch=false", "model.context=256"),
        *("pretrain.compile=false", "finetune.compile=false"),
    ]
    settings = [word for setting in short for word in ("--set", setting)]
    bessemer(tmp_path, "pretrain", "demo", *settings)
    bessemer(tmp_path, "finetune", "demo", *settings)
    bessemer(tmp_path, "pretrain", "distill", *settings)
    document = bessemer(tmp_path, "finetune", "distill", *settings)
    rows = [
        json.loads(line)
        for line in (tmp_path / "runs" / "distill" / "finetune" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["loss"] for row in rows]
    assert document["step"] == len(losses)
    assert losses[-1] < losses[0]
