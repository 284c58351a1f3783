"""The peer TRL: its SFTTrainer on chats with loss on the answers, packed in each way that it has.

kind: bfd       its best: packed best fit, all rows of a batch flattened into one (padding-free)
      bfd-rows  the same, a row at a time: attention over one row, gradients accumulated over the batch
      wrapped   packed without regard to where chats begin; attention goes across them
      padded    not packed
`bf16=True` is autocast over fp32 weights, as Bessemer's are. Compiled, batches are padded to whole rows, so
that their shape stays; the padding is not counted. Gradient checkpointing, TRL's default, is off: nobody else
in the comparison computes activations twice. Nothing is saved, validated or reported.
"""

import tempfile
from typing import Any

import torch
from datasets import load_dataset
from finetune_task import FinetuneTask, load_model, read_task, write_result
from task import StepClock
from torch import Tensor
from trainer import Timing, losses, settings
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    task = read_task()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    data = load_dataset("json", data_files=f"{task.folder}/chats.jsonl", split="train")
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Counting(
            model=load_model(task, torch.float32),
            args=arguments(task, folder),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Timing(clock)],
        )
        trainer.train()
    noted = losses(trainer)
    model = load_model(task, torch.float32)
    write_result(
        task,
        ends_s=clock.ends_s,
        losses=noted,
        tokens=trainer.tokens_of_steps(len(noted)),
        leaks=leaks(model, trainer),
    )


def arguments(task: FinetuneTask, folder: str) -> SFTConfig:
    by_row = task.kind == "bfd-rows"
    strategy = "wrapped" if task.kind == "wrapped" else "bfd"
    given = settings(task, folder)
    if by_row:
        given |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": task.rows}
    return SFTConfig(
        **given,
        max_length=task.context,
        packing=task.kind != "padded",
        packing_strategy=strategy,
        pad_to_multiple_of=task.context if task.compiled else None,
        assistant_only_loss=True,
        gradient_checkpointing=False,
        warmup_steps=0,
    )


class _Counting(SFTTrainer):
    """Notes the tokens of every forward that are not padding, and keeps one batch."""

    def __init__(self, **options: Any) -> None:
        self._counts: list[int] = []
        self.batch: dict[str, Tensor] = {}
        super().__init__(**options)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        padding = self.processing_class.pad_token_id
        self._counts.append(int((inputs["input_ids"] != padding).sum()))
        if _num_chats(inputs) > _num_chats(self.batch):
            self.batch = dict(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def tokens_of_steps(self, num_steps: int) -> list[int]:
        each = self.args.gradient_accumulation_steps
        return [sum(self._counts[step * each : (step + 1) * each]) for step in range(num_steps)]


def _num_chats(inputs: dict[str, Tensor]) -> int:
    if "position_ids" in inputs:
        return int((inputs["position_ids"] == 0).sum())
    return int("input_ids" in inputs)


def leaks(model: Any, trainer: _Counting) -> bool:
    """Whether another first token of a row changes what the model says of the last chat in that row."""
    names = ("input_ids", "position_ids", "attention_mask")
    inputs = {name: trainer.batch[name][:1] for name in names if name in trainer.batch}
    tokens_T = inputs["input_ids"][0]
    if "position_ids" in inputs:
        begins = (inputs["position_ids"][0] == 0).nonzero()
    else:  # the turns of one chat see each other, as they should
        begin = trainer.processing_class.convert_tokens_to_ids("<|im_start|>")
        begins = (tokens_T == begin).nonzero() if trainer.args.packing else torch.zeros(1, 1)
    last = int(begins[-1])
    other = tokens_T.clone()
    other[0] = other[0] + 1 if other[0] < 100 else other[0] - 1
    with torch.no_grad():
        said = [
            model(**{**inputs, "input_ids": each[None]}, use_cache=False).logits[0]
            for each in (tokens_T, other)
        ]
    return last > 0 and bool((said[0][last:] != said[1][last:]).any())


if __name__ == "__main__":
    main()
