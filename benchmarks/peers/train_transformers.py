"""The peer transformers: LlamaForCausalLM with its Trainer, bf16 by the Trainer's own setting.

`bf16=True` is autocast over fp32 weights: pure bf16 weights would be faster, but are another training.
Nothing is saved, validated or reported; losses are noted every step, as Bessemer does.
"""

import tempfile
from typing import Any

import torch
from task import StepClock, Task, read_task, write_result
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments


def main() -> None:
    task = read_task()
    torch.manual_seed(0)
    clock, model = StepClock(), build(task)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments(task, folder),
            train_dataset=TokenRows(task),
            callbacks=[_Timing(clock)],
        )
        trainer.train()
    clock.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    write_result(task, clock, model, "transformers")


def build(task: Task) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=task.vocab,
        hidden_size=task.hidden,
        intermediate_size=task.ffn,
        num_hidden_layers=task.layers,
        num_attention_heads=task.heads,
        num_key_value_heads=task.heads,
        max_position_embeddings=task.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def arguments(task: Task, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        bf16=True,
        torch_compile=task.compiled,
        max_steps=task.steps,
        per_device_train_batch_size=task.rows,
        learning_rate=task.lr,
        lr_scheduler_type="constant",
        weight_decay=task.weight_decay,
        adam_beta1=task.betas[0],
        adam_beta2=task.betas[1],
        max_grad_norm=task.grad_clip,
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


class TokenRows(Dataset[dict[str, Tensor]]):
    """A row of tokens. The model shifts the labels itself."""

    def __init__(self, task: Task) -> None:
        self._windows, self._context = task.windows(), task.context

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens_T = torch.from_numpy(self._windows[index, : self._context].astype("int64"))
        return {"input_ids": tokens_T, "labels": tokens_T}


class _Timing(TrainerCallback):
    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.step_ended()


if __name__ == "__main__":
    main()
