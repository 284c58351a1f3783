"""What every peer that has transformers' Trainer does alike: its settings, and the end of each step."""

from typing import Any

from task import StepClock
from transformers import TrainerCallback


def settings(task: Any, folder: str) -> dict[str, Any]:
    """Of a `Task` or a `FinetuneTask`. Nothing is saved or reported; losses are noted at every step."""
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": True,
        "torch_compile": task.compiled,
        "max_steps": task.steps,
        "per_device_train_batch_size": task.rows,
        "learning_rate": task.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": task.weight_decay,
        "adam_beta1": task.betas[0],
        "adam_beta2": task.betas[1],
        "max_grad_norm": task.grad_clip,
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def losses(trainer: Any) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


class Timing(TrainerCallback):
    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.step_ended()
