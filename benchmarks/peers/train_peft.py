"""The peer PEFT: adapters of LoRA on all linear layers of transformers' Llama, on rows that are full.

kind: loop      a plain loop: bf16 autocast, fused AdamW, clipping
      trainer   transformers' Trainer with `bf16=True`
In both the frozen weights lie in bf16 and the adapters in fp32 (PEFT's own way for such a base), without
dropout. Nothing is saved, validated or reported.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from finetune_task import FinetuneTask, load_model, read_task, write_result
from peft import LoraConfig, get_peft_model
from task import StepClock
from torch import Tensor
from torch.utils.data import Dataset
from trainer import Timing, losses, settings
from transformers import Trainer, TrainingArguments


def main() -> None:
    task = read_task()
    torch.manual_seed(0)
    clock, model = StepClock(), build(task)
    (_by_loop if task.kind == "loop" else _by_trainer)(task, model, clock)
    tokens = [task.rows * task.context] * len(clock.ends_s)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    write_result(task, ends_s=clock.ends_s, losses=clock.losses, tokens=tokens, trained=trained)


def build(task: FinetuneTask) -> Any:
    config = LoraConfig(
        r=task.rank,
        lora_alpha=2 * task.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(load_model(task, torch.bfloat16), config)


def _by_loop(task: FinetuneTask, model: Any, clock: StepClock) -> None:
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=task.lr, betas=task.betas, weight_decay=task.weight_decay, fused=True
    )
    run = torch.compile(model) if task.compiled else model
    model.train()
    for rows in _batches(task):
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(**rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, task.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step_ended(float(loss))


def _by_trainer(task: FinetuneTask, model: Any, clock: StepClock) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**settings(task, folder)),
            train_dataset=_FullRows(task),
            callbacks=[Timing(clock)],
        )
        trainer.train()
    clock.losses = losses(trainer)


class _FullRows(Dataset[dict[str, Tensor]]):
    """A row, and its labels: the answer, which begins behind the begin token and a quarter of the row."""

    def __init__(self, task: FinetuneTask) -> None:
        self._rows = np.load(f"{task.folder}/rows.npy", mmap_mode="r")
        self._prompt = 1 + task.context // 4

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens_T = torch.from_numpy(self._rows[index].copy())
        labels_T = tokens_T.clone()
        labels_T[: self._prompt] = -100
        return {"input_ids": tokens_T, "labels": labels_T}


def _batches(task: FinetuneTask) -> Iterator[dict[str, Tensor]]:
    rows = _FullRows(task)
    for step in range(task.steps):
        each = [rows[step * task.rows + number] for number in range(task.rows)]
        yield {name: torch.stack([row[name] for row in each]) for name in each[0]}


if __name__ == "__main__":
    main()
