"""Saving from several ranks: whole when all have written, and one that fails is named by every rank."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from making_checkpoints import trained
from making_parts import Held, assert_restored, cut_up, mixed, rows
from making_processes import fill, small_disk
from torch.distributed import HashStore, TCPStore

from bessemer.checkpoint.folder import listed, newest_good, verify
from bessemer.checkpoint.ranks import is_shared
from bessemer.checkpoint.saver import Saver
from bessemer.errors import WriteError


def each_rank(world: int, work: Callable[[int], Any]) -> list[Any]:
    """Results of all ranks, or the errors that they raised."""

    def one(rank: int) -> Any:
        try:
            return work(rank)
        except WriteError as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


def save_all(savers: list[Saver], step: int, ranks: list[Held]) -> list[Any]:
    """From every rank at once, and wait."""

    def one(rank: int) -> list[Path]:
        held = ranks[rank]
        savers[rank].save(step, held.model, held.optimizer, {}, {}, held.pieces)
        savers[rank].wait()
        return savers[rank].finished()

    return each_rank(len(savers), one)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_ranks_save_together_and_keep_the_newest(asynchronous: bool, tmp_path: Path) -> None:
    store, ranks = HashStore(), cut_up(*mixed(), rows(3))
    savers = [
        Saver(tmp_path, 2, rank=rank, world=3, store=store, asynchronous=asynchronous) for rank in range(3)
    ]
    for step in (1, 2, 3):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        assert save_all(savers, step, ranks) == [[folder]] * 3
    each_rank(3, lambda rank: savers[rank].close())
    # Rank 0 prunes after it has told the others that the checkpoint is whole.
    assert [verify(folder).step for folder in listed(tmp_path)] == [3, 2]
    assert_restored(folder, cut_up(*mixed(), rows(8)), rows(8))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_rank_that_cannot_write_is_named_on_every_rank(failing: int, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "file" / "stage"
    store, ranks = HashStore(), cut_up(*mixed(), rows(3))
    savers = [Saver(good, 2, rank=rank, world=3, store=store) for rank in range(3)]
    save_all(savers, 1, ranks)
    (tmp_path / "file").write_text("in the way")
    savers[failing]._stage = bad
    errors = save_all(savers, 2, ranks)
    for rank, error in enumerate(errors):
        assert isinstance(error, WriteError) and error.exit_code == 73, rank
        assert str(bad) in error.problem and error.found == "Not a directory", rank
        assert error.problem.startswith(f"rank {failing}: ") == (rank != failing) and is_shared(error)
    assert newest_good(good, pytest.fail)[1].step == 1  # type: ignore[index]
    savers[failing]._stage = good
    assert all(isinstance(folders, list) for folders in save_all(savers, 3, ranks))
    for saver in savers:
        saver.close()


def test_full_disk_of_one_rank_is_told_by_all_and_the_older_checkpoint_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store, ranks = HashStore(), cut_up(*trained(), rows(2))
        savers = [Saver(disk / "run", 2, rank=rank, world=2, store=store) for rank in range(2)]
        save_all(savers, 5, ranks)
        fill(disk, leave=20_000)
        errors = save_all(savers, 10, ranks)
        assert all("space" in error.found for error in errors), errors
        assert newest_good(disk / "run", pytest.fail)[1].step == 5  # type: ignore[index]
        for saver in savers:
            saver.close()


def test_mistake_before_the_thread_begins_is_told_to_the_other_ranks(tmp_path: Path) -> None:
    store, ranks = HashStore(), cut_up(*mixed(), rows(2))
    savers = [Saver(tmp_path, 2, rank=rank, world=2, store=store) for rank in range(2)]
    savers[0].save(1, ranks[0].model, ranks[0].optimizer, {}, {}, ranks[0].pieces)
    ranks[1].pieces["few"] = cut_up(*mixed(), rows(1))[0].pieces["few"]
    with pytest.raises(AssertionError):
        savers[1].save(1, ranks[1].model, ranks[1].optimizer, {}, {}, ranks[1].pieces)
    with pytest.raises(WriteError, match="rank 1: could not write its part"):
        savers[0].wait()
    for saver in savers:
        saver.close()


def test_rank_that_never_speaks_is_a_write_error_in_the_end(tmp_path: Path) -> None:
    held = cut_up(*mixed(), rows(2))
    for rank, silent in [(0, 1), (1, 0)]:
        saver = Saver(tmp_path, 2, rank=rank, world=2, store=HashStore(), timeout_s=0.1)
        saver.save(1, held[rank].model, held[rank].optimizer, {}, {}, held[rank].pieces)
        with pytest.raises(WriteError, match="lost the others") as caught:
            saver.close()
        assert caught.value.found == f"nothing from rank {silent} in 0.1 s" and not is_shared(caught.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_abandoned_save_waits_for_no_rank_and_is_none(rank: int, tmp_path: Path) -> None:
    held = cut_up(*mixed(), rows(2))[rank]
    saver = Saver(tmp_path, 2, rank=rank, world=2, store=HashStore())
    saver.save(1, held.model, held.optimizer, {}, {}, held.pieces)
    begin_s = time.monotonic()
    saver.abandon()
    assert time.monotonic() - begin_s < 2.0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
    assert not listed(tmp_path)


def test_saving_is_not_held_up_by_what_the_training_thread_waits_for_in_the_store(tmp_path: Path) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = TCPStore("127.0.0.1", server.port, is_master=False)
    ranks = cut_up(*mixed(), rows(2))
    savers = [Saver(tmp_path, 2, rank=rank, world=2, store=store, timeout_s=20) for rank in range(2)]
    training = threading.Thread(target=store.wait, args=(["training"], timedelta(seconds=60)))
    training.start()
    assert all(isinstance(folders, list) for folders in save_all(savers, 1, ranks))
    assert training.is_alive()
    server.set("training", "goes on")
    training.join(20)
    for saver in savers:
        saver.close()


def test_store_that_is_gone_is_a_write_error(tmp_path: Path) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    saver = Saver(tmp_path, 2, rank=1, world=2, store=TCPStore("127.0.0.1", server.port, is_master=False))
    saver.save(1, *trained(), {}, {})
    del server
    with pytest.raises(WriteError, match="lost the others"):
        saver.close()
