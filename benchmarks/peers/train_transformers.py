"""The peer transformers: LlamaForCausalLM with its Trainer, bf16 by the Trainer's own setting.

`bf16=True` is autocast over fp32 weights: pure bf16 weights would be faster, but are another training.
Nothing is saved, validated or reported; losses are noted every step, as Bessemer does.
"""

import tempfile

import torch
from task import StepClock, Task, read_task, write_result
from torch import Tensor
from torch.utils.data import Dataset
from trainer import Timing, losses, settings
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


def main() -> None:
    task = read_task()
    torch.manual_seed(0)
    clock, model = StepClock(), build(task)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**settings(task, folder)),
            train_dataset=TokenRows(task),
            callbacks=[Timing(clock)],
        )
        trainer.train()
    clock.losses = losses(trainer)
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


class TokenRows(Dataset[dict[str, Tensor]]):
    """A row of tokens. The model shifts the labels itself."""

    def __init__(self, task: Task) -> None:
        self._windows, self._context = task.windows(), task.context

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens_T = torch.from_numpy(self._windows[index, : self._context].astype("int64"))
        return {"input_ids": tokens_T, "labels": tokens_T}


if __name__ == "__main__":
    main()
