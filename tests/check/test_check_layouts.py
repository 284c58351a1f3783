"""`bessemer check layouts`, with real processes: what agrees passes, what does not is told, no row lost."""

import json
import signal
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making_runs import QUIET

from bessemer.check import layouts as checking
from bessemer.check.compare import Trace
from bessemer.check.layouts import Wish, check_layouts, pretraining
from bessemer.check.plans import plan_layouts, plan_one
from bessemer.check.worker import Case, Task
from bessemer.cli.main import main
from bessemer.errors import RefusedError, UserError
from bessemer.formulas.layout import Layout
from bessemer.log import Console
from bessemer.recipe.load import load
from bessemer.train.machine import Machine
from bessemer.train.stage import read_stage

ROOT = Path(__file__).parents[2]

# A worker with mistakes, one a layout: what the command must find.
BROKEN = """
import sys, time
sys.path.insert(0, {root!r})
from bessemer.check import worker
from bessemer.parallel.engine import Ranks

right = Ranks.finish

def finish(self, *given):
    layout = self.mesh.layout
    if layout.shard == 2 and self.rank == 1:
        {planted}
    if layout.tensor == 2:
        self.parameters[0].grad.mul_(1.5)
    summed, *rest = right(self, *given)
    return summed * (1.00001 if layout.replicate == 2 else 1.0), *rest

Ranks.finish = finish
sys.exit(worker.main(sys.argv[1:]))
"""


def broken(folder: Path, planted: str) -> Sequence[str]:
    script = folder / "broken.py"
    script.write_text(textwrap.dedent(BROKEN.format(root=str(ROOT), planted=planted)))
    return [sys.executable, str(script)]


def checked(recipe: Path, wish: Wish, worker: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows by layout."""
    document = check_layouts(load(str(recipe), []), wish, recipe.parent / "data", QUIET, worker)
    return {row["layout"]: row for row in document["rows"]}


def test_layouts_of_every_kind_pass_in_one_pool(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    layouts = "shard=3; replicate=2; tensor=2; context=2; pipeline=2,schedule=zbv,split=1+1+1+1"
    words = ["check", "layouts", str(recipe), "--layouts", layouts, "--steps", "3", "--json"]
    assert main([*words, "--store", str(recipe.parent / "data")]) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert document["schema"] == "bessemer.check/1" and document["steps"] == 3
    assert [row["ranks"] for row in document["rows"]] == [3, 2, 2, 2, 2]
    for row in document["rows"]:
        assert row["passed"] is True and row["max_relative_loss_difference"] < 1e-5, row
        assert row["max_relative_grad_norm_difference"] < 1e-4
        assert row["bytes_sent"] > 0 and 0 < row["peak_memory_bytes"] < 2**24
    assert document["reference"]["bytes_sent"] == 0 and len(document["reference"]["losses"]) == 3
    assert err.index("one process") < err.index("replicate=2") < err.index("schedule=zbv")


def test_mistakes_are_found_and_a_crash_loses_no_other_row(recipe: Path, tmp_path: Path) -> None:
    worker = broken(tmp_path, "raise ValueError('planted')")
    rows = checked(recipe, Wish("replicate=2;shard=2;tensor=2;context=2", steps=2), worker)
    assert [row["passed"] for row in rows.values()] == [False, False, False, True]
    loss = rows["replicate=2"]
    assert loss["max_relative_loss_difference"] == pytest.approx(1e-5, rel=0.1)
    assert loss["max_relative_grad_norm_difference"] < 1e-5 and "tolerance" in loss["error"]
    assert rows["shard=2"]["error"] == "rank 1 failed: ValueError: planted"
    assert rows["shard=2"]["bytes_sent"] is None
    assert rows["tensor=2"]["max_relative_grad_norm_difference"] > 1e-3


@pytest.mark.slow
def test_a_layout_that_hangs_is_ended_and_the_rest_goes_on(recipe: Path, tmp_path: Path) -> None:
    worker = broken(tmp_path, "time.sleep(600)")
    rows = checked(recipe, Wish("shard=2;context=2", steps=1, timeout_s=25.0), worker)
    assert [row["passed"] for row in rows.values()] == [False, True], [row["error"] for row in rows.values()]
    assert "no end after 25 s" in rows["shard=2"]["error"]


@pytest.mark.slow
def test_layouts_in_bf16_pass(recipe: Path) -> None:
    loaded = load(str(recipe), ['pretrain.dtype="bf16"'])
    wish = Wish("shard=2,tensor=2;pipeline=2,schedule=interleaved;context=2")
    document = check_layouts(loaded, wish, recipe.parent / "data", QUIET)
    assert document["passed"] == 3 and document["dtype"] == "bf16", document["rows"]


# Without processes: what is planned, refused and shown.


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plans of the pool, which runs nothing and finds the second case failed."""
    plans: list[Any] = []

    def run(task: Task, console: Console, worker: Sequence[str]) -> dict[int, Trace | UserError]:
        plans.extend(read_stage(case.folder).plan for case in task.cases)
        same = Trace([4.0], [1.0], None, 1000, 500, 0.1)
        failure = UserError("rank 1 failed: it", found="its traceback", wanted="", fix="")
        return {number: failure if number == 1 else same for number in range(len(task.cases))}

    monkeypatch.setattr(checking, "run_pools", run)
    return plans


def command(recipe: Path, *words: str) -> int:
    return main(["check", "layouts", str(recipe), "--store", str(recipe.parent / "data"), *words])


def test_a_failed_layout_is_told_and_ends_with_1(
    recipe: Path, planned: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(recipe, "--layouts", "shard=2;tensor=2") == 1
    out = capsys.readouterr().out
    assert "1 passed, 1 failed, 0 refused" in out and "shard=2: error: rank 1 failed: it" in out
    assert "1e-06 at the first step" in out


def test_our_own_choice_shows_what_the_planner_refuses(
    recipe: Path, planned: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(recipe, "--ranks", "4", "--json", "--set", "model.layers=1") == 1
    rows = {row["layout"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["pipeline=2"]["passed"] is None and "more pipeline stages" in rows["pipeline=2"]["refused"]
    assert rows["shard=3"]["passed"] is True and max(row["ranks"] for row in rows.values()) == 4
    assert not any(plan.layout.pipeline > 1 for plan in planned)


def test_a_layout_named_by_the_user_is_refused_before_anything_runs(
    recipe: Path, planned: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(recipe, "--layouts", "shard=2;tensor=3") == 2
    err = capsys.readouterr().err
    assert "--layouts: tensor does not divide heads" in err and '--layouts "tensor=2"' in err
    assert planned == []


def test_layout_of_more_ranks_than_accelerators_is_refused_as_one_that_was_asked_for(recipe: Path) -> None:
    subject = pretraining(load(str(recipe), []), recipe.parent / "data", QUIET)
    there = replace(subject, facts=replace(subject.facts, kind="gpu", local_devices=1))
    with pytest.raises(RefusedError, match="more devices than this machine has") as caught:
        plan_layouts(there, plan_one(there), [Layout(shard=2)], named=True)
    assert caught.value.found.startswith('"shard=2": 2 ranks')  # no run was trained with it


def test_batch_and_rate_are_the_same_under_every_layout(recipe: Path, planned: list[Any]) -> None:
    sets = [f"pretrain.{name}=auto" for name in ("batch_tokens", "micro_batch", "lr")]
    loaded = load(str(recipe), sets)
    check_layouts(loaded, Wish("shard=3;pipeline=2,schedule=zbv"), recipe.parent / "data", QUIET)
    assert len({(plan.batch_rows, plan.lr, plan.dtype, plan.steps) for plan in planned}) == 1
    assert all(plan.warmup == 0 and plan.schedule == "constant" and not plan.compile for plan in planned)
    assert all(plan.micro_batches > 1 for plan in planned)  # so that gradients are added up


def test_the_recipes_micro_batch_stays_where_the_pipeline_takes_it(recipe: Path, planned: list[Any]) -> None:
    loaded = load(str(recipe), ["pretrain.batch_tokens=192"])  # 6 rows: 3 micro-batches, not a multiple of 2
    wish = Wish("shard=2;pipeline=2,schedule=interleaved")
    check_layouts(loaded, wish, recipe.parent / "data", QUIET)
    assert [plan.micro_batch for plan in planned[:2]] == [2, 2]
    assert planned[2].micro_batches in (1, 2) or planned[2].micro_batches % 2 == 0


def test_the_recipes_own_layout_comes_first(recipe: Path, planned: list[Any]) -> None:
    loaded = load(str(recipe), ['parallel.layout="context=2,tensor=2"'])
    check_layouts(loaded, Wish(), recipe.parent / "data", QUIET)
    assert [str(plan.layout) for plan in planned[:2]] == ["replicate=1", "tensor=2,context=2"]
    assert len(planned) == len({plan.layout for plan in planned}) > 20


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["resume", "x.toml"], "`bessemer check resume` is not built yet"),
        (["chaos", "x.toml"], "`bessemer check chaos` is not built yet"),
        (["data", "x.toml"], "`bessemer check data` is not built yet"),
        (["layouts", "x.toml", "--layouts", "shard=2", "--ranks", "4"], "remove --ranks"),
        (["layouts", "x.toml", "--ranks", "1"], "2 or more"),
        (["layouts", "x.toml", "--steps", "0"], "--steps 0"),
        (["layouts", "x.toml", "--timeout", "nan"], "--timeout nan"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("layouts", ["", " ; "])
def test_no_layout_between_the_semicolons_is_refused(
    layouts: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(recipe, "--layouts", layouts) == 2
    assert "--layouts names no layout" in capsys.readouterr().err


def test_a_task_survives_its_way_to_the_workers() -> None:
    machine = Machine("cpu", 2, 1e12)
    task = Task([Case(0, Path("a")), Case(3, Path("b"))], 4, Path("r.jsonl"), machine, 5, 120.0)
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_sigterm_leaves_no_folder_behind(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end(*_: object) -> None:
        raise Ended([path.name for path in tmp_path.iterdir()])

    def run(task: Task, console: Console, worker: Sequence[str]) -> dict[int, Trace | UserError]:
        assert task.cases[0].folder.parent.parent == tmp_path
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not ended")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(checking, "run_pools", run)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended) as caught:
            check_layouts(load(str(recipe), []), Wish("shard=2"), recipe.parent / "data", QUIET)
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.args == ([],)


def test_row_of_a_failed_layout_says_what_was_found(recipe: Path, planned: list[Any]) -> None:
    wish = Wish("shard=2;tensor=2")
    document = check_layouts(load(str(recipe), []), wish, recipe.parent / "data", QUIET)
    assert [row["found"] for row in document["rows"]] == ["its traceback", None]
