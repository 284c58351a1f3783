"""A run directory as training leaves it, made in milliseconds: two stages, a kill, a resume."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHAPE = {
    "family": "llama",
    "layers": 8,
    "hidden": 512,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 64,
    "ffn": 1408,
    "vocab": 8192,
    "context": 512,
    "tie_embeddings": True,
    "qk_norm": False,
}
RECIPE = 'name = "made"\n\n[model]\nsize = "30M"\n\n[[data.source]]\nname = "docs"\nkind = "text"\n'


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(
    steps: range, attempt: int, *, floor: float, power_w: float | None = 61.0
) -> list[dict[str, Any]]:
    noise = random.Random(attempt)
    rows = []
    for step in steps:
        warm = min(1.0, step / 40)
        loss = floor + 5.5 * math.exp(-step / 160) + 0.9 * math.exp(-step / 900) + noise.gauss(0, 0.05)
        rows.append(
            {
                "attempt": attempt,
                "step": step,
                "tokens": step * 16384,
                "time_s": step * 2.4,
                "loss": loss,
                "grad_norm": 0.6 + 3 * math.exp(-step / 60) + abs(noise.gauss(0, 0.1)),
                "lr": 6e-4 * warm * (1 if step < 800 else max(0.0, (1000 - step) / 200)),
                "tokens_per_s": 6900 + noise.gauss(0, 120) - (3000 if step % 250 == 1 else 0),
                "mfu": 0.41,
                "step_time_s": 2.4 + noise.gauss(0, 0.03),
                "memory_bytes": 5_200_000_000 + step * 9000,
                "power_w": power_w,
                "energy_j": None if power_w is None else power_w * step * 2.4,
                "energy_low_j": None if power_w is None else 0.75 * power_w * step * 2.4,
                "energy_high_j": None if power_w is None else 1.25 * power_w * step * 2.4,
                "energy_basis": "modelled",
                "layout": "replicate=1",
            }
        )
        if step % 100 == 0:
            rows[-1]["validation_loss"] = loss + 0.06
    return rows


def make_run(run: Path, *, finetune: bool = True, power_w: float | None = 61.0) -> Path:
    """1000 steps; killed at 462, resumed at 450."""
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text(RECIPE)
    data = run.parent / "data" / "abc"
    source = {
        "name": "docs",
        "kind": "text",
        "licence": "CC-BY-4.0",
        "rows_in": 1200,
        "kept": 1117,
        "refused": {"empty": 3, "dedup.exact": 70},
        "errors": {"not UTF-8": 10},
        "bytes_in": 9_000_000,
        "documents": 1117,
        "tokens": 2_400_000,
    }
    code = dict(
        source,
        name="code",
        kind="code",
        licence="PSF-2.0",
        rows_in=400,
        kept=398,
        refused={},
        errors={"a": 2},
    )
    write_json(data / "manifest.json", {"sources": [source, code], "hash": "abc"})
    write_json(run / "plan.json", plan())
    write_json(
        run / "receipt.json", {"bessemer": "0.1.0", "device": {"name": "a CPU", "cores": 8}, "torch": "2.13"}
    )
    write_json(run / "pretrain/stage.json", stage("pretrain", data))
    write_rows(
        run / "pretrain/metrics.jsonl",
        metrics(range(1, 463), 1, floor=2.3, power_w=power_w)
        + metrics(range(451, 1001), 2, floor=2.3, power_w=power_w),
    )
    write_rows(
        run / "pretrain/events.jsonl",
        [
            {"time": 1.79e9, "attempt": 1, "kind": "start", "step": 0},
            {"time": 1.79e9 + 900, "attempt": 1, "kind": "checkpoint", "step": 450},
            {"time": 1.79e9 + 1000, "attempt": 2, "kind": "resume", "step": 450},
            {"time": 1.79e9 + 2400, "attempt": 2, "kind": "done", "step": 1000},
        ],
    )
    if finetune:
        add_finetune(run, data)
    return run


def add_finetune(run: Path, data: Path) -> None:
    write_json(run / "finetune/stage.json", stage("finetune", data))
    write_rows(run / "finetune/metrics.jsonl", metrics(range(1, 201), 1, floor=0.8))
    write_rows(
        run / "finetune/events.jsonl",
        [{"time": 1.79e9 + 3000, "attempt": 1, "kind": "start", "step": 0}],
    )
    write_json(
        run / "finetune-comparison.json",
        {
            "examples": [100, 400, 1600],
            "pretrained": [2.41, 2.02, 1.71],
            "scratch": {
                "examples": 1600,
                "loss": 2.66,
                "lr": 1e-3,
                "tried": [{"lr": 3e-4, "loss": 2.9}, {"lr": 1e-3, "loss": 2.66}],
            },
            "ratio": "≥ 16×",
            "sentence": "With 100 examples the pretrained model beats one trained on all 1,600 from scratch.",
        },
    )
    sample = {
        "prompt": "<script>alert(1)</script> what?",
        "answer": "Return a & b.",
        "expected": "Return both.",
    }
    write_json(
        run / "evaluate/results.json",
        {
            "stages": {
                "pretrain": {
                    "step": 1000,
                    "validation_loss": 2.62,
                    "perplexity": 13.7,
                    "bits_per_byte": 1.02,
                },
                "finetune": {
                    "step": 200,
                    "task_loss": 1.71,
                    "exact_match": 0.11,
                    "rouge_l": 0.42,
                    "examples": 64,
                    "samples": [{**sample, "rouge_l": 0.4}] * 3,
                },
            },
            "conventions": {"bits_per_byte": "sum of the loss over ln 2, per byte of validation text"},
        },
    )
    write_json(
        run / "export/hf/parity.json",
        {
            "max_absolute_logit_difference": 3.1e-6,
            "tolerance": 1e-3,
            "transformers": "5.0",
            "dtype": "float32",
            "weights": "bit for bit",
        },
    )


def plan() -> dict[str, Any]:
    def band(value: float, basis: str = "modelled") -> dict[str, Any]:
        return {"value": value, "low": value * 0.85, "high": value * 1.15, "basis": basis}

    return {
        "name": "made",
        "seed": 0,
        "shape": SHAPE,
        "params": 30_100_000,
        "params_active": 30_100_000,
        "device": "CPU",
        "layout": {"replicate": 1, "shard": 1, "micro_batch": 8},
        "predicted": {
            "step_time_s": band(2.2),
            "tokens_per_s": band(7400),
            "memory_gib": band(3.9),
            "mfu": band(0.43),
            "hours": band(0.61),
            "kwh": {"value": None, "low": None, "high": None, "basis": "assumed"},
        },
        "derived": [{"key": "pretrain.lr", "value": 6e-4, "rule": "0.003 × (30M params / 30M)^-0.25"}],
    }


def stage(kind: str, data: Path) -> dict[str, Any]:
    return {
        "kind": kind,
        "shape": SHAPE,
        "tokenizer": "tokenizer.json",
        "context": 512,
        "data": {"folder": str(data), "hash": "abc"},
    }


@pytest.fixture
def made_run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "made")


@pytest.fixture
def make() -> Callable[..., Path]:
    return make_run
