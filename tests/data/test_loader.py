"""Moving micro-batches to a device."""

import pytest
import torch
from making_runs import TinyRows
from torch import Tensor

from bessemer.data.loader import micro_batch


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
