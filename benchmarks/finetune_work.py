"""What every contestant of finetune_cpu.py trains: one small Llama with random weights, chats, and full rows.

The inputs are made by peers/finetune_inputs.py in the peers' environment: model and tokenizer are a Hugging
Face folder that transformers wrote itself, and the chats carry the template that TRL wants.
Two courses: `sft`, all weights on packed chats of many lengths; `lora`, adapters of rank 16 on all linear
layers, on examples that fill a row to the token, so that nothing but the step differs.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from children import plain_environment, run_child
from environments import HERE, python_of

PEER = "finetune"
SFT, LORA = "sft", "lora"


@dataclass(frozen=True)
class Workload:
    """fp32 weights and AdamW state (of LoRA: frozen weights in bf16, adapters in fp32), bf16 compute."""

    layers: int = 8
    hidden: int = 512
    heads: int = 8
    ffn: int = 1408
    vocab: int = 8192
    context: int = 1024  # TRL's own default for the longest chat
    rows: int = 4  # a step, in one micro-batch
    warmup_steps: int = 3  # not counted: compilation, first touch of memory
    timed_steps: int = 12
    rank: int = 16
    lr: float = 3e-5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0

    @property
    def steps(self) -> int:
        return self.warmup_steps + self.timed_steps

    def inputs(self, folder: Path) -> dict[str, Any]:
        """What peers/finetune_inputs.py reads. Packing may leave a hundredth of the rows empty."""
        names = ("layers", "hidden", "heads", "ffn", "vocab", "context")
        num_rows = self.rows * (self.steps + 1)
        sizes = {"chats": num_rows * self.context, "rows": num_rows}
        return {**{name: getattr(self, name) for name in names}, **sizes, "folder": str(folder)}

    def peer_task(self, *, kind: str, compiled: bool, folder: Path, result: Path) -> dict[str, Any]:
        """What peers/finetune_task.py reads."""
        names = ("context", "rows", "steps", "lr", "weight_decay", "betas", "grad_clip", "rank")
        files = {"folder": str(folder), "result": str(result)}
        values = {name: value for name, value in asdict(self).items() if name in names}
        return {**values, "steps": self.steps, "kind": kind, "compiled": compiled, **files}


# For a smoke test of the whole path: its timings say nothing.
TINY: dict[str, Any] = {
    "layers": 2,
    "hidden": 64,
    "heads": 2,
    "ffn": 192,
    "vocab": 512,
    "context": 256,
    "warmup_steps": 2,
    "timed_steps": 2,
}


def write_inputs(workload: Workload, folder: Path) -> None:
    """The peers' inputs, and a recipe a course for Bessemer."""
    task = folder / "inputs.json"
    task.write_text(json.dumps(workload.inputs(folder)), encoding="utf-8")
    command = [str(python_of(PEER)), str(HERE / "peers" / "finetune_inputs.py"), str(task)]
    run_child(command, folder, plain_environment(), folder / "inputs.log")
    for course, method, data in (
        (SFT, "full", 'path = "chats.jsonl", messages = "messages"'),
        (LORA, "lora", 'path = "rows.jsonl", prompt = "prompt", answer = "completion"'),
    ):
        (folder / f"{course}.toml").write_text(recipe_text(workload, course, method, data), encoding="utf-8")


def recipe_text(workload: Workload, course: str, method: str, data: str) -> str:
    """One epoch, of more rows than are timed. No validation, and no checkpoint before the last step."""
    w, never = workload, 1_000_000
    lora = f"lora = {{ rank = {w.rank} }}\n" if method == "lora" else ""
    return f"""\
name = "finetune-cpu-{course}"

[model]
from = "hf"
context = {w.context}

[data]
validation = 0.0

[finetune]
method = "{method}"
{lora}data = {{ kind = "jsonl", {data} }}
epochs = 1
batch_tokens = {w.rows * w.context}
micro_batch = {w.rows}
lr = {w.lr}
schedule = "constant"
warmup = 0
betas = [{w.betas[0]}, {w.betas[1]}]
weight_decay = {w.weight_decay}
grad_clip = {w.grad_clip}
dtype = "bf16"
compile = true
validate_every = {never}
save_every = {never}
"""
