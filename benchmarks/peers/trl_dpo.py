"""TRL's own DPO of one batch: what its DPOTrainer makes of some pairs, its loss, and the loss's gradients.

    python trl_dpo.py TASK.json     {folder, result}

The reference is the model of finetune_inputs.py; the model that is trained is that one with a little noise
on every weight, kept as `policy/` beside it. The batch is the trainer's own, of pairs of several lengths; it
comes back as token ids with the mask of what is answer, so that nobody has to tokenise alike. fp32, nothing
packed.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

_LENGTHS = ((20, 30, 12), (7, 5, 40), (33, 21, 22), (3, 1, 2))  # tokens of prompt, chosen, rejected
_BETA, _NOISE = 0.1, 0.01


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(task["folder"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    reference, policy = (
        AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32) for _ in range(2)
    )
    torch.manual_seed(1)
    for weight in policy.parameters():
        weight.data += _NOISE * torch.randn_like(weight)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    with tempfile.TemporaryDirectory() as output:
        trainer = DPOTrainer(
            model=policy,
            ref_model=reference,
            args=arguments(output),
            train_dataset=Dataset.from_list(drawn_pairs(folder, tokenizer)),
            processing_class=tokenizer,
        )
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.eval()  # no dropout in either; says so to whoever reads this
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    gradients = {name: each.grad for name, each in policy.named_parameters() if each.grad is not None}
    save_file(gradients, folder / "gradients.safetensors")
    names = ("input_ids", "attention_mask", "completion_mask")
    answer = {"loss": loss.item(), "beta": _BETA, **{name: batch[name].tolist() for name in names}}
    Path(task["result"]).write_text(json.dumps(answer), encoding="utf-8")


def arguments(output: str) -> DPOConfig:
    return DPOConfig(
        output_dir=output,
        use_cpu=True,
        bf16=False,
        beta=_BETA,
        loss_type="sigmoid",
        per_device_train_batch_size=len(_LENGTHS),
        gradient_checkpointing=False,
        max_length=None,
        report_to="none",
        disable_tqdm=True,
    )


def drawn_pairs(folder: Path, tokenizer: Any) -> list[dict[str, str]]:
    tokens = np.load(folder / "rows.npy")[:, 1:-1].ravel()
    pairs, begin = [], 0
    for lengths in _LENGTHS:
        texts = []
        for length in lengths:
            texts.append(tokenizer.decode(tokens[begin : begin + length]))
            begin += length
        pairs.append(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)))
    return pairs


if __name__ == "__main__":
    main()
