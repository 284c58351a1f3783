"""What every contestant of cpu_pretrain.py trains: one model, one file of tokens, one number of steps.

Tokens are drawn by Zipf's law with an offset (Mandelbrot's: 2.7), as words of text are spread, and lie
in documents much longer than a row. Bessemer's attention stops at document borders and skips the work
beyond them, which the peers do not: with one border in 64 rows that is under 1 % of attention.
Embeddings are tied for all: the logits cost the same either way, and Bessemer ties at this size.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from bessemer.formulas.shape import ModelShape

_SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")  # ids 0, 1, 2, as Bessemer's own tokenizer has them
_ROWS_PER_DOCUMENT = 64
_NUM_DOCUMENTS = 24  # at least, so that Bessemer has one to hold out
_HELD_OUT = 0.05


@dataclass(frozen=True)
class Workload:
    """fp32 weights and AdamW state, bf16 compute; one micro-batch is one step's batch."""

    layers: int = 8
    hidden: int = 512
    heads: int = 8
    ffn: int = 1408
    vocab: int = 8192
    context: int = 512
    rows: int = 8
    warmup_steps: int = 5  # not counted: compilation, first touch of memory
    timed_steps: int = 20
    lr: float = 3e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0

    @property
    def steps(self) -> int:
        return self.warmup_steps + self.timed_steps

    @property
    def batch_tokens(self) -> int:
        return self.rows * self.context

    def shape(self) -> ModelShape:
        return ModelShape(
            family="llama",
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.hidden // self.heads,
            ffn=self.ffn,
            vocab=self.vocab,
            context=self.context,
            tie_embeddings=True,
            qk_norm=False,
        )

    def peer_task(self, *, compiled: bool, tokens: Path, result: Path) -> dict[str, Any]:
        """What peers/task.py reads."""
        values = asdict(self)
        warmup, timed = values.pop("warmup_steps"), values.pop("timed_steps")
        files = {"tokens": str(tokens), "result": str(result)}
        return {**values, "steps": warmup + timed, "compiled": compiled, **files}


# For a smoke test of the whole path: its timings say nothing.
TINY: dict[str, Any] = {
    "layers": 2,
    "hidden": 64,
    "heads": 2,
    "ffn": 192,
    "vocab": 512,
    "context": 64,
    "lr": 3e-3,
}


def write_inputs(workload: Workload, folder: Path) -> Path:
    """tokens.npy for the peers; tokens.jsonl, tokenizer.json and the recipe for Bessemer: its path."""
    documents = draw_documents(workload)
    np.save(folder / "tokens.npy", np.concatenate(documents))
    lines = [json.dumps(document.tolist()) + "\n" for document in documents]
    (folder / "tokens.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "tokenizer.json").write_text(_tokenizer_text(workload.vocab), encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe_text(workload), encoding="utf-8")
    return recipe


def draw_documents(workload: Workload) -> list[np.ndarray]:
    """Enough that nobody sees a token twice."""
    wanted_rows = 2 * workload.rows * workload.steps
    count = max(_NUM_DOCUMENTS, -(-wanted_rows // _ROWS_PER_DOCUMENT))
    random = np.random.default_rng(0)
    num_words = workload.vocab - len(_SPECIAL)
    weights = 1.0 / (np.arange(num_words) + 2.7)
    size = (count, _ROWS_PER_DOCUMENT * workload.context)
    drawn = random.choice(num_words, size=size, p=weights / weights.sum()) + len(_SPECIAL)
    return list(drawn.astype(np.uint16))


def recipe_text(workload: Workload) -> str:
    """Validation and checkpoints only after the last step, as the peers have none."""
    w = workload
    return f"""\
name = "cpu-pretrain"

[model]
family = "llama"
layers = {w.layers}
hidden = {w.hidden}
heads = {w.heads}
kv_heads = {w.heads}
ffn = {w.ffn}
tie_embeddings = true
context = {w.context}

[tokenizer]
path = "tokenizer.json"

[data]
validation = {_HELD_OUT}

[[data.source]]
name = "zipf"
kind = "tokens"
path = "tokens.jsonl"

[pretrain]
steps = {w.steps}
batch_tokens = {w.batch_tokens}
micro_batch = {w.rows}
lr = {w.lr}
schedule = "constant"
warmup = 0
betas = [{w.betas[0]}, {w.betas[1]}]
weight_decay = {w.weight_decay}
grad_clip = {w.grad_clip}
dtype = "bf16"
compile = true
validate_every = {w.steps}
save_every = {w.steps}
"""


def _tokenizer_text(vocab: int) -> str:
    """A word a token: the recipe names ready tokens, and these are the words that they stand for."""
    words = [*_SPECIAL, *(f"w{number}" for number in range(vocab - len(_SPECIAL)))]
    return Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, "<|pad|>")).to_str()
