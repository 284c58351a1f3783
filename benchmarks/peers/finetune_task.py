"""What the peers of benchmarks/finetune_cpu.py are told, and what they tell: JSON files, as they cannot
import Bessemer."""

import json
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class FinetuneTask:
    folder: str  # of finetune_inputs.py
    result: str  # where to write what was measured
    context: int
    rows: int  # a step's, of `context` tokens
    steps: int  # warm-up included
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    grad_clip: float
    compiled: bool
    kind: str  # of the script's own variants
    rank: int  # of adapters

    @property
    def model(self) -> Path:
        return Path(self.folder) / "hf"


def read_task() -> FinetuneTask:
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return FinetuneTask(**{**values, "betas": tuple(values["betas"])})


def load_model(task: FinetuneTask, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype, attn_implementation="sdpa")


def write_result(task: FinetuneTask, **measured: Any) -> None:
    """measured: ends_s and losses of every step, and what else the script knows."""
    packages = ("torch", "transformers", "trl", "peft")
    versions = {name: metadata.version(name) for name in packages}
    threads = torch.get_num_threads()
    Path(task.result).write_text(json.dumps({**measured, "threads": threads, "versions": versions}))
