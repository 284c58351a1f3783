"""Rows as others count on them, and runs as people name them."""

import errno
import fcntl
import json
import os
from pathlib import Path
from statistics import median

import pytest

from bessemer.errors import DataError, RecipeError, RefusedError
from bessemer.rundir import Row, find_stage, lock, read_rows, steady_median, time_in_steps_s


def row(step: int, step_time_s: float | None, attempt: int = 1, **more: float) -> Row:
    return {"attempt": attempt, "step": step, "step_time_s": step_time_s, **more}


@pytest.mark.parametrize("damage", [b'{"step": 2, "lo', b"\0\0\0\0\0\0\0\0", b"\xff\xfe{", b"7"])
def test_damaged_row_is_named_by_file_and_line(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"line 2 of .*metrics\.jsonl is damaged") as caught:
        read_rows(path)
    assert caught.value.exit_code == 65 and f"sed -i 2d {path}" in caught.value.fix


def test_torn_last_row_and_missing_file_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert read_rows(path) == [{"step": 1}]


def test_time_in_steps_is_the_same_however_often_rows_are_written() -> None:
    step_s = [9.0, *(1.0 + 0.01 * step for step in range(1, 40))]
    expected = sum(step_s)
    for ends in (range(1, 41), [10, 20, 30, 40], [7, 10, 14, 40]):
        rows = [
            row(end, sum(step_s[begin:end]) / (end - begin))
            for begin, end in zip([0, *ends], ends, strict=False)
        ]
        assert time_in_steps_s(rows) == pytest.approx(expected)


def test_time_in_steps_of_a_fork_does_not_count_the_steps_of_its_origin() -> None:
    rows = [row(203, 2.0, time_s=6.0), row(213, 2.0, time_s=26.0)]
    assert time_in_steps_s(rows) == pytest.approx(26.0)


def test_time_that_nobody_measured_is_none_not_zero() -> None:
    assert time_in_steps_s([]) is None
    assert time_in_steps_s([row(1, None), row(2, None)]) is None
    assert time_in_steps_s([row(1, None), row(2, 3.0)]) == 3.0


def test_steady_median_leaves_out_the_first_five_steps_of_each_attempt() -> None:
    first = [row(step, 90.0 if step <= 5 else 1.0 + step, attempt=1) for step in range(1, 11)]
    second = [row(step, 90.0 if step <= 15 else 1.0 + step, attempt=2) for step in range(11, 21)]
    calm = [*range(6, 11), *range(16, 21)]
    assert steady_median(first + second, "step_time_s") == median(1.0 + step for step in calm)


def test_steady_median_leaves_out_a_row_that_tells_of_first_steps_among_others() -> None:
    rows = [row(10, 50.0), row(20, 1.0), row(30, 3.0), row(40, 40.0, attempt=2), row(50, 2.0, attempt=2)]
    assert steady_median(rows, "step_time_s") == 2.0


def test_steady_median_of_a_short_run_is_over_all_rows_and_of_no_figure_none() -> None:
    rows = [row(1, 3.0), row(2, 1.0)]
    assert steady_median(rows, "step_time_s") == 2.0
    assert steady_median(rows, "mfu") is None
    assert steady_median([], "mfu") is None


@pytest.fixture
def run(tmp_path: Path) -> Path:
    stage = tmp_path / "run" / "pretrain"
    (stage / "checkpoints").mkdir(parents=True)
    (stage / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("inside", "path", "found"),
    [
        (".", "run", "run/pretrain"),
        (".", "run/pretrain", "run/pretrain"),
        ("run", ".", "pretrain"),
        ("run", "pretrain/checkpoints/..", "pretrain"),
        ("run/pretrain", ".", "../pretrain"),
        ("run/pretrain", "..", "../pretrain"),
        ("run/pretrain/checkpoints", "..", "../../pretrain"),
    ],
)
def test_stage_is_found_from_inside_too_with_its_name_and_parent(
    inside: str, path: str, found: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent / inside)
    stage = find_stage(Path(path))
    assert str(stage) == found
    assert stage.name == "pretrain" and stage.parent.resolve() == run


def test_folder_that_is_no_run_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="is not a run"):
        find_stage(Path())


def test_disk_without_locks_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RefusedError, match="cannot lock a file") as caught, lock(tmp_path / "run"):
        raise AssertionError("not locked")
    assert str(tmp_path / "run/.lock") in caught.value.found and "No locks" in caught.value.found
