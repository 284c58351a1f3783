"""Memory of rounds of sampled answers and of teachers: what is predicted, and what is alive in real ones."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making_runs import place, pretrained, write_recipe

from bessemer.finetune import distill
from bessemer.finetune.rollouts import RolloutFeed
from bessemer.finetune.run import finetune
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.formulas.memory.parts import Memory, device_memory, weight_bytes
from bessemer.formulas.memory.rollout import teacher_memory, with_rounds
from bessemer.formulas.shape import ModelShape
from bessemer.parallel.traffic import TensorMemory
from bessemer.planner.limits import fits
from bessemer.planner.machine.facts import Facts
from bessemer.planner.predict import device_bytes, needed_bytes, rank_memories, workload
from bessemer.recipe.load import load
from bessemer.train import build, loop
from bessemer.train.stage import Stage, read_stage

SIZES = {"layers": 3, "hidden": 64, "ffn": 256, "context": 48, "batch_tokens": 192}
SHORT = ("pretrain.steps=2", "finetune.save_every=100", "finetune.async_save=false", "finetune.epochs=1")
ROUNDS = ("finetune.rounds=2", "finetune.lr=1e-4")
GRPO = ('finetune.method="grpo"', "finetune.group_size=4", "finetune.reward_function=exact", *ROUNDS)
DISTILL = ('finetune.method="distill"', "finetune.teacher=teacher/pretrain", "finetune.top_k=8")
FACTS = Facts("cpu", "cpu")
WORDS = ("iron", "steel", "coal", "blast", "ingot", "rail")
LARGE = ModelShape(
    "llama", 24, 2048, 16, 8, 128, 5632, 32768, 2048, tie_embeddings=False, qk_norm=False
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a teacher of twice its width."""
    folder = tmp_path_factory.mktemp("memory")
    write_recipe(folder, task=True, sizes=SIZES)
    rows = (folder / "task.jsonl").read_text().splitlines(keepends=True)
    (folder / "task.jsonl").write_text("".join(rows[:30]))
    pretrained(folder, *SHORT)
    pretrained(folder, *SHORT, "model.hidden=128", "model.ffn=512", run="teacher")
    return folder


@pytest.fixture(autouse=True)
def same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bessemer.model.decoder.choose", lambda *_: "sdpa")


@contextmanager
def watched(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of tensors at the peak of each call."""
    peaks: list[int] = []
    real: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        memory.peak = memory.now
        found = real(*arguments)
        peaks.append(memory.peak)
        return found

    monkeypatch.setattr(owner, name, call)
    with TensorMemory() as memory:
        yield peaks


def tuned(folder: Path, run: str, *settings: str) -> Stage:
    loaded = load(str(folder / "tiny.toml"), [*SHORT, *settings])
    finetune(loaded, place(folder, run), str(folder / "run"))
    return read_stage(folder / run / "finetune")


def predicted(stage: Stage) -> Memory:
    """Of a process that only holds weights and moments between its rounds."""
    work = workload(stage.plan, FACTS, compiled=False)
    step = device_memory(stage.shape, work)
    held = replace(step, gradients=0, casts=0, activations=0, working=0, loss=0, base=0)
    return with_rounds(held, stage.shape, work, ONE_PROCESS, stage.plan.objective, stage.plan.context)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("reference", (*GRPO, "finetune.answer_tokens=24", "finetune.beta=0.1")),
        ("bf16 rows", (*GRPO, "finetune.answer_tokens=4", "finetune.dtype=bf16", "finetune.beta=0.1")),
        ("on policy", (*DISTILL, *ROUNDS, "finetune.on_policy=true", "finetune.answer_tokens=30")),
        pytest.param("fp32", (*GRPO, "finetune.answer_tokens=24"), marks=pytest.mark.slow),
        pytest.param(
            "bf16", (*GRPO, "finetune.answer_tokens=24", "finetune.dtype=bf16"), marks=pytest.mark.slow
        ),
        pytest.param(
            "lora",
            (*GRPO, "finetune.answer_tokens=30", "finetune.adapter=lora", "finetune.beta=0.1"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_round_takes_what_is_predicted(
    name: str, settings: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(RolloutFeed, "_make", monkeypatch) as peaks:
        stage = tuned(folder, name.replace(" ", "-"), *settings)
    assert len(peaks) == 2  # the second one with the optimizer's state
    memory = predicted(stage)
    assert memory.total == pytest.approx(peaks[1], rel=0.05), memory


def test_a_teacher_that_is_asked_before_takes_what_is_predicted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(distill, "_ask", monkeypatch) as peaks:
        stage = tuned(folder, "off-policy", *DISTILL)
    assert stage.plan.objective.asked is not None and stage.plan.objective.asked.hidden == 128
    work = workload(stage.plan, FACTS, compiled=False)
    memory = teacher_memory(stage.plan.objective, work, stage.plan.context)
    assert memory is not None
    assert memory.total - memory.base == pytest.approx(max(peaks), rel=0.05), memory


def test_the_reference_of_dpo_takes_less_than_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{word} and", "chosen": f"{word} beam", "rejected": "slag"} for word in WORDS * 4]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = 'finetune.data={ kind = "jsonl", path = "pairs.jsonl" }'
    asks, trains = (build, "keep_reference", monkeypatch), (loop, "train_step", monkeypatch)
    with watched(*asks) as asking, watched(*trains) as steps:
        tuned(folder, "dpo", data, 'finetune.method="dpo"', "finetune.epochs=9")
    assert len(asking) == 1 and len(steps) > 1
    assert max(asking) < steps[0]


@pytest.mark.parametrize("layout", [Layout(), Layout(shard=4), Layout(tensor=2, pipeline=2)], ids=str)
def test_a_reference_is_whole_on_each_rank_and_may_be_what_does_not_fit(folder: Path, layout: Layout) -> None:
    stage = tuned(folder, "planned", *GRPO, "finetune.answer_tokens=4", "finetune.dtype=bf16")
    plan = replace(stage.plan, layout=layout)
    asked = replace(plan, objective=replace(plan.objective, beta=0.1, asked=LARGE))
    without = replace(plan, objective=replace(plan.objective, rollouts=None))
    facts = replace(FACTS, kind="gpu", devices=layout.world)
    plain, sampled, more = (device_bytes(LARGE, each, facts) for each in (without, plan, asked))
    assert plain <= sampled < more
    assert more - sampled == pytest.approx(weight_bytes(LARGE, 2), rel=0.1)
    for memory in rank_memories(LARGE, asked, facts, compiled=False):
        assert memory.asked == weight_bytes(LARGE, 2)
    least, most = (needed_bytes(LARGE, each, facts) for each in (plan, asked))
    limited = replace(facts, memory_bytes=(least + most) // 2)
    assert fits(LARGE, plan, limited) and not fits(LARGE, asked, limited)
