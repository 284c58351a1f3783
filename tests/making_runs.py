"""Tiny runs for the tests of training, checkpoints and fine-tuning: jobs, recipes, what a stage holds.

On CPU, in fp32, with one thread: a step takes milliseconds, and nothing but the numbers is small.
"""

import functools
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bessemer.checkpoint.folder import listed, newest_good
from bessemer.data.loader import Batches
from bessemer.data.rows import NO_LOSS, Row, Rows
from bessemer.data.store import prepare
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import Ceilings, machine, store_ceilings
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise
from bessemer.parallel.engine import Loss, summed_loss
from bessemer.planner.plan import StagePlan
from bessemer.recipe.load import load
from bessemer.rundir import counting_rows, read_rows
from bessemer.train.build import assemble
from bessemer.train.job import Job
from bessemer.train.loop import train
from bessemer.train.pretrain import Place, pretrain
from bessemer.train.state import TrainState
from bessemer.train.stop import Stop

QUIET = Console(quiet=True)
SHAPE = ModelShape(
    family="llama",
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=64,
    vocab=48,
    context=16,
    tie_embeddings=False,
    qk_norm=False,
)
EXACT = ("loss", "grad_norm", "lr", "tokens")  # what bitwise claims are on

# Jobs of the loop alone.


class TinyRows(Rows):
    """Rows of two or three documents, of which between none and all tokens are targets."""

    def __init__(self, count: int, shape: ModelShape = SHAPE, seed: int = 0) -> None:
        self._rows = [_row(np.random.default_rng([seed, number]), shape) for number in range(count)]

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return self._rows[index]

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        begins = sorted({int(begin) for begin in self._rows[index].starts_T})
        ends = [*begins[1:], len(self._rows[index].starts_T)]
        return [(number, *span) for number, span in enumerate(zip(begins, ends, strict=True))]


def stage_plan(**changes: Any) -> StagePlan:
    values: dict[str, Any] = {"steps": 4, "batch_rows": 4, "micro_batch": 2, "lr": 3e-3}
    return StagePlan(**{"context": SHAPE.context, **values, **changes})


def tiny_model(shape: ModelShape = SHAPE, seed: int = 1) -> Decoder:
    with torch.device("meta"):
        model = Decoder(shape, torch.float32)
    initialise(model, shape, seed, "cpu")
    return model


def make_job(
    folder: Path,
    plan: StagePlan,
    model: nn.Module | None = None,
    *,
    rows: Rows | None = None,
    validation: Rows | None = None,
    loss: Loss = summed_loss,
    console: Console = QUIET,
) -> tuple[Job, TrainState]:
    rows = rows or TinyRows(10)
    return assemble(
        folder=folder,
        plan=plan,
        model=model or tiny_model(),
        loss=loss,
        batches=Batches(rows, 0, plan.batch_rows, plan.micro_batch),
        validation=validation,
        console=console,
        stop=Stop(),
    )


def run_job(folder: Path, plan: StagePlan, model: nn.Module | None = None, **parts: Any) -> Job:
    """A job trained to its end, its files closed."""
    job, state = make_job(folder, plan, model, **parts)
    try:
        train(job, state)
    finally:
        job.close()
    return job


def _row(random_: np.random.Generator, shape: ModelShape) -> Row:
    length = shape.context
    tokens = random_.integers(0, shape.vocab, length + 1).astype(np.int32)
    begins = np.sort(random_.choice(np.arange(1, length), random_.integers(1, 3), replace=False))
    starts = np.zeros(length, dtype=np.int32)
    starts[begins] = begins
    targets = np.where(random_.random(length) < random_.random(), tokens[1:], NO_LOSS).astype(np.int32)
    targets[begins - 1] = NO_LOSS
    return Row(tokens[:-1], targets, np.maximum.accumulate(starts))


# Whole runs, from text.


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """For this process and its children: leaves the user's cache alone, and measures nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        ceilings = Ceilings(
            machine().cpu, 0.1, 0.1, 10.0, threads=1, torch=torch.__version__, date="2026-01-01"
        )
        store_ceilings(ceilings)
        yield


RECIPE = """name = "tiny"

[model]
layers = {layers}
hidden = {hidden}
heads = 4
kv_heads = 2
ffn = {ffn}
context = {context}

[tokenizer]
vocab = 300

[data]
validation = 0.2

[[data.source]]
name = "texts"
kind = "text"
path = "texts"

[pretrain]
steps = 40
batch_tokens = {batch_tokens}
micro_batch = 2
lr = 3e-3
dtype = "fp32"
compile = false
save_every = 5
validate_every = 10
"""
TASK = """
[finetune]
batch_tokens = {batch_tokens}
micro_batch = 2
dtype = "fp32"
compile = false
save_every = 2
validate_every = 3
data = {{ kind = "jsonl", path = "task.jsonl", prompt = "ask", answer = "tell" }}

[evaluate]
examples = 4
answer_tokens = 4
"""
SMALLEST = {"layers": 1, "hidden": 32, "ffn": 48, "context": 32, "batch_tokens": 128}
SMALL = {"layers": 2, "hidden": 64, "ffn": 128, "context": 64, "batch_tokens": 256}
_WORDS = "iron steel coal slag blast converter ingot rail beam plate rivet forge anvil bellows furnace"


def write_recipe(
    folder: Path, *, task: bool = False, sizes: dict[str, int] = SMALLEST, ready: bool = True
) -> Path:
    """A recipe and its data: about 1,500 tokens to train on, 100 examples of a task.

    ready: the data is in the store, as after an earlier run: building it takes longer than most runs here.
    """
    dice, words = random.Random(0), _WORDS.split()
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for number in range(12):
        text = " ".join(dice.choice(words) for _ in range(60))
        (folder / "texts" / f"{number:02d}.txt").write_text(f"{text}.\n")
    rows = [{"ask": f"{a} and {b}", "tell": f"{b} {a}"} for a in words for b in words if a != b]
    dice.shuffle(rows)
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:100]))
    path = folder / "tiny.toml"
    path.write_text((RECIPE + (TASK if task else "")).format(**sizes))
    if ready:
        _put(folder / "data", _prepared())
    return path


def _put(store: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)


@functools.cache
def _prepared() -> dict[str, bytes]:
    """Each file of the store that a run of such a recipe would build: the same for all sizes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaded = load(str(write_recipe(folder, ready=False)), [])
        built = prepare(loaded.recipe, loaded.base, folder / "data", QUIET).folder
        files = [path for path in built.rglob("*") if path.is_file()]
        return {path.relative_to(folder / "data").as_posix(): path.read_bytes() for path in files}


def place(folder: Path, run: str = "run", console: Console = QUIET) -> Place:
    return Place(folder / run, folder / "data", console)


def pretrained(
    folder: Path, *settings: str, run: str = "run", from_: str | None = None, console: Console = QUIET
) -> dict[str, Any]:
    """`bessemer pretrain tiny.toml --set …` in this process, without the lock."""
    return pretrain(load(str(folder / "tiny.toml"), list(settings)), place(folder, run, console), from_)


# What a stage holds.


def tensors_of(stage: Path, step: int | None = None) -> dict[str, Tensor]:
    """Weights and optimizer state of a stage's newest checkpoint, or of a step."""
    newest = listed(stage)[0] if step is None else stage / "checkpoints" / f"step-{step:08d}"
    return {
        name: value
        for file in sorted(newest.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} tensors differ: {different[:3]}"


def curve(stage: Path) -> list[tuple[Any, ...]]:
    """(step, loss, grad_norm, lr, tokens) of every step, of the attempt that counts."""
    rows = counting_rows(read_rows(stage / "metrics.jsonl"))
    return [(row["step"], *(row[key] for key in EXACT)) for row in rows]


def assert_same_training(stage: Path, reference: Path, steps: int) -> None:
    """Bitwise: weights, optimizer state, and loss, grad_norm, lr, tokens of every step."""
    assert [row[0] for row in curve(stage)] == list(range(1, steps + 1))
    assert curve(stage) == curve(reference)
    assert_same_tensors(tensors_of(stage), tensors_of(reference))
    assert newest_good(stage, fail) is not None


def events(stage: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(stage / "events.jsonl") if row["kind"] == kind]


def fail(text: str) -> None:
    raise AssertionError(text)
