"""Saving beside the training: what is saved is what was, one at a time, and nothing is lost unsaid."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from making_checkpoints import parts, trained
from making_processes import ROOT
from making_runs import assert_same_tensors

from bessemer.checkpoint import saver as saver_module
from bessemer.checkpoint.folder import listed, newest_good, verify
from bessemer.checkpoint.load import restore
from bessemer.checkpoint.saver import Saver
from bessemer.checkpoint.write import write_parts
from bessemer.errors import WriteError


class Gate:
    """Writers wait here; counts how many there are at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = self.most = 0

    def __call__(self, *arguments: Any) -> Path:
        self.inside += 1
        self.most = max(self.most, self.inside)
        assert self.open.wait(20)
        self.inside -= 1
        return write_parts(*arguments)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(saver_module, "write_parts", gate)
    yield gate
    gate.open.set()


# One rank.


def test_checkpoint_is_of_the_moment_of_the_call_while_training_goes_on(gate: Gate, tmp_path: Path) -> None:
    model, optimizer = trained()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state = {"step": 5, "inner": {"rows": 1}}
    saver = Saver(tmp_path, keep=2)
    saver.save(5, model, optimizer, state, {"replicate": 1})
    assert saver.finished() == [] and listed(tmp_path) == []
    optimizer.step()
    state["inner"]["rows"] = 2  # type: ignore[index]
    gate.open.set()
    saver.wait()
    (folder,) = saver.finished()
    assert saver.finished() == []
    assert verify(folder).state == {"step": 5, "inner": {"rows": 1}}
    other, fresh = parts(seed=9)
    restore(other, fresh, folder)
    assert_same_tensors(dict(other.named_parameters()), before)
    saver.close()


def test_one_save_is_in_flight_at_most_and_the_caller_is_told_how_long_it_stood(
    gate: Gate, tmp_path: Path
) -> None:
    saver = Saver(tmp_path, keep=2)
    saver.save(1, *trained(1), {}, {})
    assert 0 < saver.stalled_s < 5
    second = threading.Thread(target=saver.save, args=(2, *trained(2), {}, {}))
    second.start()
    time.sleep(0.2)
    assert second.is_alive() and listed(tmp_path) == []
    gate.open.set()
    second.join(20)
    assert saver.stalled_s > 0.15
    saver.close()
    assert gate.most == 1
    assert [folder.name for folder in saver.finished()] == ["step-00000001", "step-00000002"]


def test_host_memory_is_that_of_the_save_before(tmp_path: Path) -> None:
    model, optimizer = trained()
    saver = Saver(tmp_path, keep=1)
    addresses = []
    for step in (1, 2, 3):
        optimizer.step()
        saver.save(step, model, optimizer, {}, {})
        addresses.append({name: host.data_ptr() for name, host in saver._host.items()})
    saver.close()
    assert addresses[0] == addresses[1] == addresses[2] and len(addresses[0]) > 20
    (folder,) = listed(tmp_path)  # the others are pruned
    other, fresh = parts(seed=9)
    restore(other, fresh, folder)
    assert_same_tensors(dict(other.named_parameters()), dict(model.named_parameters()))


def test_without_a_thread_the_checkpoint_is_there_on_return_and_nothing_was_copied(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep=1, asynchronous=False)
    saver.save(1, *trained(1), {}, {})
    saver.save(2, *trained(2), {}, {})
    assert [verify(folder).step for folder in listed(tmp_path)] == [2]
    assert len(saver.finished()) == 2 and not saver._host and saver.stalled_s > 0
    saver.close()


def test_write_error_is_raised_once_by_wait_or_the_next_save_and_then_saving_works(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    saver = Saver(tmp_path, keep=1)
    saver.save(1, *trained(), {}, {})
    with pytest.raises(WriteError, match="step-00000001"):
        saver.wait()
    saver.wait()
    saver.save(2, *trained(), {}, {})
    with pytest.raises(WriteError, match="step-00000002"):
        saver.save(3, *trained(), {}, {})
    assert saver.finished() == []
    (tmp_path / "checkpoints").unlink()
    saver.save(4, *trained(), {}, {})
    saver.close()
    assert [folder.name for folder in saver.finished()] == ["step-00000004"]


# Processes that end.

PROGRAM = """
import os, signal, sys, torch
from pathlib import Path
from bessemer.checkpoint import write
from bessemer.checkpoint.saver import Saver

blocks, write_json, left = write._blocks, write.write_json, int(sys.argv[2])

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(*arguments):
    global left
    for block in blocks(*arguments):
        left -= step == 10
        yield block
        left or die()

write._blocks = dying
write.write_json = lambda *arguments: die() if step == 10 and left > 0 else write_json(*arguments)
model = torch.nn.Linear(1000, 1000)
optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
saver = Saver(Path(sys.argv[1]), keep=5)
for step in (5, 10):
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    saver.save(step, model, optimizer, {"weight": model.bias[0].item()}, {})
    if step == 5:
        saver.wait()
"""


def test_normal_end_of_the_process_waits_for_the_save_in_flight(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), "-1"], cwd=ROOT, check=True)
    assert [verify(folder).step for folder in listed(tmp_path)] == [10, 5]


@pytest.mark.parametrize(
    ("block", "there"),
    [
        (2, []),
        (6, ["model-00000.safetensors"]),
        (99, ["model-00000.safetensors", "optimizer-00000.safetensors"]),
    ],
    ids=["in the model", "in the optimizer", "before the manifest"],
)
def test_sigkill_while_the_thread_writes_leaves_the_older_checkpoint(
    block: int, there: list[str], tmp_path: Path
) -> None:
    child = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), str(block)], cwd=ROOT)
    assert child.returncode == -9
    newer = tmp_path / "checkpoints" / "step-00000010"
    assert sorted(path.name for path in newer.glob("*.*") if path.name[0] != ".") == there
    found = newest_good(tmp_path, pytest.fail)
    assert found is not None and found[1].step == 5
    model = torch.nn.Linear(1000, 1000)
    restore(model, torch.optim.AdamW(model.parameters()), found[0])
    assert model.bias[0].item() == found[1].state["weight"]
    saver = Saver(tmp_path, keep=5)
    saver.save(7, *trained(), {}, {})
    saver.close()
    assert not newer.exists()
