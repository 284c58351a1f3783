"""A build goes on where it was killed, does again only what depends on a change, and gives the same bytes."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from making_factory import RULES, build, build_apart, command, content, recipe
from making_processes import ran_here

from bessemer.data.prepared import Prepared, open_prepared


def stage_files(store: Path) -> dict[str, int]:
    """Every file that a worker wrote, and when."""
    stages, found = store / "stages", {}
    # os.walk takes no offence at folders that get their names, or go, while they are listed.
    for folder, below, names in os.walk(stages):
        below[:] = [name for name in below if not name.startswith(".")]
        for path in (Path(folder) / name for name in names if not name.startswith(".")):
            with suppress(FileNotFoundError):
                found[path.relative_to(stages).as_posix()] = path.stat().st_mtime_ns
    return found


def written(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """How many files of each stage are new; none that was there may have been written again."""
    assert all(after[name] == when for name, when in before.items())
    new = [name.split("/")[0] for name in after if name not in before]
    return {stage: new.count(stage) for stage in sorted(set(new))}


SOURCES = ("first", "second", "third", "fourth", "fifth")  # each is a part of its own


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, build_apart(recipe(folder, *SOURCES), folder / "store")


def test_every_row_ends_in_one_bucket(whole: tuple[Path, Prepared]) -> None:
    for source in whole[1].manifest["sources"]:
        lost = sum(source["refused"].values()) + sum(source["errors"].values())
        assert source["rows_in"] == source["kept"] + lost == 3 * 61
        assert source["refused"]["empty"] == 3
        assert source["documents"] == source["kept"] > 0


def test_number_of_workers_changes_no_byte(whole: tuple[Path, Prepared]) -> None:
    folder, prepared = whole
    one = build(folder / "recipe.toml", folder / "one", "--workers", "1")
    assert content(one) == content(prepared)


@pytest.mark.parametrize("share", [0.15, pytest.param(0.5, marks=pytest.mark.slow), 0.85])
def test_build_whose_driver_is_killed_goes_on_and_ends_in_the_same_bytes(
    whole: tuple[Path, Prepared], tmp_path: Path, share: float
) -> None:
    folder, prepared = whole
    store, total = tmp_path / "store", len(stage_files(folder / "store"))
    child = subprocess.Popen(
        command(folder / "recipe.toml", store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(stage_files(store)) < share * total and child.poll() is None:
        time.sleep(0.002)
    workers = _children(child.pid)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was done before it was killed"
    _until_gone(workers)
    before = stage_files(store)
    assert content(build(folder / "recipe.toml", store)) == content(prepared)
    written(before, stage_files(store))
    assert not [*(store / "stages").glob("*/**/.*")], "what was half written is still there"


def test_worker_that_is_killed_costs_nothing_but_time(whole: tuple[Path, Prepared], tmp_path: Path) -> None:
    folder, prepared = whole
    child = subprocess.Popen(
        command(folder / "recipe.toml", tmp_path / "store", "--workers", "2"),
        stdout=subprocess.PIPE,
        text=True,
    )
    killed = 0
    while child.poll() is None and killed < 2:
        for worker in _children(child.pid):
            if stage_files(tmp_path / "store") and killed < 2:
                os.kill(worker, signal.SIGKILL)
                killed += 1
                time.sleep(0.3)
    answer, _ = child.communicate()
    assert child.returncode == 0 and killed == 2
    built = open_prepared(Path(json.loads(answer)["manifest"]).parent)
    assert isinstance(built, Prepared) and content(built) == content(prepared)


def test_source_that_is_added_leaves_what_others_gave(whole: tuple[Path, Prepared], tmp_path: Path) -> None:
    path, store = recipe(tmp_path, "first"), tmp_path / "store"
    build(path, store)
    before = stage_files(store)
    build(recipe(tmp_path, "first", "second"), store)
    new = written(before, stage_files(store))
    assert {new[stage] for stage in ("read", "clean", "signals", "minhash", "language")} == {1}


def test_threshold_that_is_changed_reads_and_measures_nothing(tmp_path: Path) -> None:
    path, store = recipe(tmp_path, "first"), tmp_path / "store"
    first = build(path, store)
    before = stage_files(store)
    stricter = RULES + 'thresholds = {"gopher.min_words" = 1000.0}\n'
    words = command(recipe(tmp_path, "first", more=stricter), store)[3:]
    assert ran_here(tmp_path, *words)[0] == 65  # nothing is left
    laxer = RULES + 'thresholds = {"gopher.min_words" = 3.0}\n'
    second = build(recipe(tmp_path, "first", more=laxer), store)
    new = written(before, stage_files(store))
    assert not {"read", "clean", "signals", "minhash", "language"} & new.keys()
    assert second.hash != first.hash


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def _until_gone(workers: list[int]) -> None:
    """Workers die with their driver: at once, by the kernel."""
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its driver"
        time.sleep(0.01)
