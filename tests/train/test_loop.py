"""The loop against a plain one, and what it promises of cutting a batch, of saving, and of bad numbers."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from making_processes import finish, start
from making_runs import (
    TinyRows,
    assert_same_tensors,
    assert_same_training,
    curve,
    events,
    make_job,
    pretrained,
    run_job,
    stage_plan,
    tensors_of,
    tiny_model,
    write_recipe,
)
from torch import Tensor, nn
from torch.nn import functional

from bessemer.checkpoint import saver
from bessemer.checkpoint.folder import listed, step_of
from bessemer.checkpoint.write import write_parts
from bessemer.data.loader import MicroBatch
from bessemer.data.order import sample
from bessemer.errors import DataError, NumericsError, StoppedError
from bessemer.model.decoder import Decoder
from bessemer.parallel.engine import Engine, summed_loss
from bessemer.planner.plan import StagePlan
from bessemer.train.loop import train

# Against a plain loop.


def documents(rows: TinyRows, index: int) -> list[tuple[Tensor, Tensor]]:
    """(tokens, targets) of each document of a row, alone."""
    row = rows.row(index)
    spans = [(begin, end) for _, begin, end in rows.documents(index)]
    columns = [torch.from_numpy(column).long() for column in (row.tokens_T, row.targets_T)]
    return [(columns[0][begin:end], columns[1][begin:end]) for begin, end in spans]


def plain_loop(model: Decoder, rows: TinyRows, plan: StagePlan) -> list[tuple[float, float]]:
    """(loss, gradient norm) of every step, as anyone would write it: one document at a time."""
    weights = list(model.parameters())
    matrices, vectors = ([p for p in weights if (p.dim() > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.95), eps=1e-8)
    seen = []
    for step in range(plan.steps):
        losses, count = torch.zeros(()), 0
        for position in range(step * plan.batch_rows, (step + 1) * plan.batch_rows):
            for tokens, targets in documents(rows, sample(0, position, len(rows))):
                logits = model.logits(model(tokens[None]))[0]
                losses = losses + functional.cross_entropy(logits, targets, reduction="sum")
                count += int((targets != -100).sum())
        (losses / count).backward()
        norm = nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen.append((losses.item() / count, norm.item()))
    return seen


def test_loop_equals_a_plain_loop_of_documents_one_by_one(tmp_path: Path) -> None:
    plan = stage_plan(steps=10, batch_rows=6, micro_batch=4)
    job = run_job(tmp_path, plan, rows=TinyRows(13))
    reference = tiny_model()
    expected = plain_loop(reference, TinyRows(13), plan)
    got = [(loss, norm) for _, loss, norm, _, _ in curve(tmp_path)]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(job.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_loss_falls(tmp_path: Path) -> None:
    run_job(tmp_path, stage_plan(steps=40, batch_rows=8, micro_batch=8, lr=1e-2), rows=TinyRows(8))
    losses = [row[1] for row in curve(tmp_path)]
    assert losses[-1] < 0.1 * losses[0]


# Cutting a batch.


def test_batch_cut_into_micro_batches_gives_the_same_loss_gradient_and_weights(tmp_path: Path) -> None:
    """32 rows at once, 8 times 4, 32 times 1, and 5 at a time, which does not divide 32."""
    curves, weights = [], []
    for size in (32, 4, 1, 5):
        plan = stage_plan(steps=3, batch_rows=32, micro_batch=size, lr=1e-3)
        job = run_job(tmp_path / str(size), plan, rows=TinyRows(70))
        curves.append(torch.tensor([row[1:3] for row in curve(tmp_path / str(size))], dtype=torch.float64))
        weights.append(dict(job.model.named_parameters()))
    for other in curves[1:]:
        torch.testing.assert_close(other, curves[0], rtol=1e-6, atol=0)
    for changed in weights[1:]:
        torch.testing.assert_close(changed, weights[0], rtol=0, atol=1e-6)


def test_rows_have_different_numbers_of_targets_so_a_mean_of_means_would_show(tmp_path: Path) -> None:
    job, _ = make_job(tmp_path, stage_plan(batch_rows=4, micro_batch=1))
    job.close()
    batch = job.batches.batch(0)
    sums = [job.engine.loss(job.model, part).item() for part in batch.micro_batches]
    counts = [int((part.targets_BT != -100).sum()) for part in batch.micro_batches]
    assert batch.num_targets == sum(counts) and len(set(counts)) > 1
    mean_of_means = sum(total / count for total, count in zip(sums, counts, strict=True) if count) / 4
    assert abs(mean_of_means - sum(sums) / sum(counts)) > 1e-4


def test_step_without_any_target_is_no_loss_of_zero_and_is_refused(tmp_path: Path) -> None:
    class Nothing(TinyRows):
        def row(self, index: int):  # type: ignore[no-untyped-def]
            row = super().row(index)
            return replace(row, targets_T=row.targets_T * 0 - 100)

    model = tiny_model()
    with pytest.raises(DataError, match="step 1 has nothing to learn"):
        run_job(tmp_path, stage_plan(steps=1), model, rows=Nothing(4))
    assert curve(tmp_path) == []
    assert_same_tensors(dict(model.named_parameters()), dict(tiny_model().named_parameters()))


# Recomputation and compilation.


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputed_activations_give_the_same_bits(how: str, tmp_path: Path) -> None:
    for name in ("none", how):
        model = tiny_model()
        model.model.recompute = name
        run_job(tmp_path / name, stage_plan(), model)
    assert_same_training(tmp_path / how, tmp_path / "none", 4)


@pytest.mark.slow
def test_compiled_training_is_close_to_eager(tmp_path: Path) -> None:
    """In processes of their own, as the compiler warns of torch's other parts."""
    write_recipe(tmp_path)
    for name in ("true", "false"):
        settings = ("--set", "pretrain.steps=20", "--set", f"pretrain.compile={name}")
        code, _, error = finish(start(tmp_path, "pretrain", "tiny.toml", "--run", name, *settings), 300.0)
        assert code == 0, error
    compiled, eager = (torch.tensor(curve(tmp_path / name / "pretrain")) for name in ("true", "false"))
    assert not torch.equal(compiled, eager)  # else nothing was compiled
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=0)


# Numbers that are not finite.


class Poisoned:
    """The usual loss, but of a step of four rows in two parts the given one is not finite."""

    def __init__(self, step: int, value: float) -> None:
        self.calls, self._step, self._value = 0, step, value

    def __call__(self, model: nn.Module, part: MicroBatch) -> Tensor:
        self.calls += 1
        loss = summed_loss(model, part)
        return loss * self._value if self.calls == 2 * self._step else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_that_is_not_finite_changes_no_weight_and_leaves_the_checkpoints(
    value: float, tmp_path: Path
) -> None:
    model = tiny_model()
    with pytest.raises(NumericsError, match="step 6 is not finite") as caught:
        run_job(tmp_path, stage_plan(steps=8, save_every=5), model, loss=Poisoned(6, value))
    assert caught.value.exit_code == 77 and "--set" in caught.value.fix
    assert [step_of(folder) for folder in listed(tmp_path)] == [5]
    stored = tensors_of(tmp_path, 5)
    assert_same_tensors(
        dict(model.named_parameters()), {name: stored[name] for name, _ in model.named_parameters()}
    )
    assert [row[0] for row in curve(tmp_path)] == [1, 2, 3, 4, 5]
    assert events(tmp_path, "diverged")[0]["step"] == 6
    # The next attempt meets good numbers, and goes on as if nothing had been.
    run_job(tmp_path, stage_plan(steps=8, save_every=5))
    run_job(tmp_path / "never", stage_plan(steps=8, save_every=5))
    assert_same_training(tmp_path, tmp_path / "never", 8)


def test_gradient_that_is_not_finite_is_met_like_a_loss(tmp_path: Path) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

    model = Root()
    with pytest.raises(NumericsError, match="step 1 is not finite"):
        run_job(tmp_path, stage_plan(), model, loss=lambda model, part: model.weight.sqrt().sum())
    assert not model.weight.any()


def test_weights_blown_up_by_a_step_are_met_at_validation_too(tmp_path: Path) -> None:
    plan = stage_plan(lr=1e38, validate_every=1, save_every=1)
    with pytest.raises(NumericsError, match="validation loss is not finite after step 1") as caught:
        run_job(tmp_path, plan, validation=TinyRows(2, seed=1))
    assert caught.value.exit_code == 77 and listed(tmp_path) == []
    assert events(tmp_path, "diverged")[0]["step"] == 1


def test_run_that_fails_ends_only_when_its_last_save_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another process could take the run while this one still writes to it."""

    def slowly(*arguments: Any) -> Path:
        time.sleep(0.3)
        return write_parts(*arguments)

    monkeypatch.setattr(saver, "write_parts", slowly)
    write_recipe(tmp_path)
    with pytest.raises(NumericsError, match="step 2 is not finite"):
        pretrained(tmp_path, "pretrain.lr=1e38", "pretrain.save_every=1", "pretrain.warmup=0")
    stage = tmp_path / "run/pretrain"
    assert [step_of(folder) for folder in listed(stage)] == [1]
    assert [row["step"] for row in events(stage, "checkpoint")] == [1]


# When something is due.


def test_last_step_is_always_validated_logged_and_saved(tmp_path: Path) -> None:
    plan = stage_plan(steps=7, validate_every=3, save_every=4, log_every=5)
    run_job(tmp_path, plan, validation=TinyRows(2, seed=1))
    assert [row["step"] for row in events(tmp_path, "checkpoint")] == [4, 7]
    assert [step_of(folder) for folder in listed(tmp_path)] == [7, 4]
    assert [row[0] for row in curve(tmp_path)] == [3, 5, 6, 7]
    (done,) = events(tmp_path, "done")
    assert done["step"] == 7


@pytest.mark.parametrize("keep", [1, 3])
def test_newest_checkpoints_are_kept(keep: int, tmp_path: Path) -> None:
    run_job(tmp_path, stage_plan(steps=8, save_every=2, keep=keep))
    assert [step_of(folder) for folder in listed(tmp_path)] == [8, 6, 4, 2][:keep]


def test_asked_to_stop_it_ends_at_the_step_border_saved_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    plan = stage_plan(steps=9, save_every=4)
    run_job(tmp_path / "whole", plan, rows=TinyRows(7))  # 9 steps of 4 rows: five epochs
    job, state = make_job(tmp_path / "cut", plan, rows=TinyRows(7))
    parts = iter(range(1, 100))

    def loss(model: nn.Module, part: MicroBatch) -> Tensor:
        if next(parts) == 5:  # the first part of the third step
            job.stop.ask("SIGTERM")
        return summed_loss(model, part)

    with pytest.raises(StoppedError, match="at step 3 of 9, and saved") as caught:
        train(replace(job, engine=Engine(job.model, loss)), state)
    job.close()
    assert caught.value.exit_code == 75 and [step_of(folder) for folder in listed(tmp_path / "cut")] == [3]
    assert events(tmp_path / "cut", "stop")[0]["reason"] == "SIGTERM"
    run_job(tmp_path / "cut", plan, rows=TinyRows(7))
    assert_same_training(tmp_path / "cut", tmp_path / "whole", 9)
