"""Micro-batches: which rows each rank reads, and moving them to a device."""

import pytest
import torch
from making_runs import SHAPE, TinyRows
from torch import Tensor

from bessemer.data.loader import Batch, Batches, micro_batch
from bessemer.data.rows import NO_LOSS
from bessemer.formulas.layout import split_evenly


@pytest.mark.parametrize(("device", "is_pinned"), [("cuda", True), ("mps", False), ("xpu", False)])
def test_memory_is_pinned_for_cuda_only_and_all_three_tensors_move(
    device: str, is_pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned, moved = [], []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    def to(tensor: Tensor, where: torch.device, non_blocking: bool = False) -> Tensor:
        moved.append((str(where), non_blocking))
        return tensor

    part = micro_batch(TinyRows(3), [0, 1])
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    there = part.to(torch.device(device))
    assert moved == [(device, is_pinned)] * 3 and len(pinned) == 3 * is_pinned
    assert torch.equal(there.targets_BT, part.targets_BT)


def test_on_a_cpu_nothing_moves() -> None:
    part = micro_batch(TinyRows(3), [0, 1])
    assert part.to(torch.device("cpu")) is part


# Rank shares of a batch.


def real_rows(batch: Batch, count: int) -> list[tuple[list[int], ...]]:
    """The first `count` rows of a batch as lists: tokens, targets, starts."""
    columns = [
        torch.cat([getattr(part, name) for part in batch.micro_batches])[:count].tolist()
        for name in ("tokens_BT", "targets_BT", "starts_BT")
    ]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("micro_batch_rows", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("batch_rows", [1, 5, 6, 8])
def test_ranks_together_read_the_rows_of_one_process_in_order(
    batch_rows: int, ranks: int, micro_batch_rows: int
) -> None:
    rows, position = TinyRows(7), 11
    whole = Batches(rows, 3, batch_rows, batch_rows).batch(position)
    shares = [
        Batches(rows, 3, batch_rows, micro_batch_rows, rank, ranks).batch(position) for rank in range(ranks)
    ]
    counts = [len(share) for share in split_evenly(batch_rows, ranks)]
    together = [row for share, count in zip(shares, counts, strict=True) for row in real_rows(share, count)]
    assert together == real_rows(whole, batch_rows)
    assert sum(share.num_targets for share in shares) == whole.num_targets


@pytest.mark.parametrize(("batch_rows", "ranks"), [(5, 2), (2, 3), (7, 3), (1, 8)])
def test_short_ranks_run_rows_without_targets_as_often_and_as_large_as_others(
    batch_rows: int, ranks: int
) -> None:
    shares = [Batches(TinyRows(7), 3, batch_rows, 2, rank, ranks).batch(0) for rank in range(ranks)]
    most = max(len(share.micro_batches) for share in shares)
    for share, own in zip(shares, split_evenly(batch_rows, ranks), strict=True):
        assert len(share.micro_batches) == most
        for column, filler in (("tokens_BT", 0), ("targets_BT", NO_LOSS), ("starts_BT", 0)):
            tensors = [getattr(part, column) for part in share.micro_batches]
            assert {tuple(each.shape) for each in tensors} == {(2, SHAPE.context)}
            assert {each.dtype for each in tensors} == {torch.int64}
            assert (torch.cat(tensors)[len(own) :] == filler).all()


def test_a_rank_without_rows_has_no_target() -> None:
    share = Batches(TinyRows(7), 3, 2, 2, rank=2, ranks=3).batch(0)
    assert share.num_targets == 0
    assert all((part.targets_BT == NO_LOSS).all() for part in share.micro_batches)
