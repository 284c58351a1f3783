"""Levers are put back however their run ends: real processes, really killed."""

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from making_boards import ONE, TWO, Boards, build_library

from bessemer.energy.levers.governor import Governor
from bessemer.energy.levers.guard import hold
from bessemer.energy.levers.knee import Window, is_past, knee, levels
from bessemer.energy.levers.record import records, take, try_take
from bessemer.energy.levers.restore import restore_left
from bessemer.errors import RefusedError

needs_nvml = pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="needs nvidia-ml-py")
PROMISED_S = 2.0
ROOT = str(Path(__file__).parents[2])

TRAINER = f"""
import os, sys, time
from bessemer.energy.levers.board import Board
from bessemer.energy.levers.guard import hold

board = Board(sys.argv[1] if len(sys.argv) > 1 else {ONE!r})
held = hold(board)
board.limit(400)
print(held._guard.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def boards(library: Path, tmp_path: Path) -> Boards:
    return Boards(tmp_path, library, ONE, TWO)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """As the kernel lays them out."""
    for number, governor in enumerate(("performance", "schedutil")):
        folder = tmp_path / "cpufreq" / f"policy{number}"
        folder.mkdir(parents=True)
        (folder / "scaling_available_governors").write_text("performance powersave schedutil \n")
        (folder / "scaling_governor").write_text(f"{governor}\n")
    return tmp_path / "cpufreq"


def governors(root: Path) -> list[str]:
    return [file.read_text().strip() for file in sorted(root.glob("policy*/scaling_governor"))]


def until(condition: Callable[[], bool], within_s: float = PROMISED_S) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def trainer(boards: Boards) -> Iterator["subprocess.Popen[str]"]:
    """That has set its board to 400 W."""
    process = boards.start(TRAINER)
    yield process
    process.kill()
    process.communicate()


def guard_of(trainer: "subprocess.Popen[str]") -> int:
    assert trainer.stdout is not None
    return int(trainer.stdout.readline())


@needs_nvml
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [False, True])
def test_limit_is_put_back_within_two_seconds_of_a_kill(
    boards: Boards, trainer: "subprocess.Popen[str]", number: signal.Signals, whole_group: bool
) -> None:
    guard = guard_of(trainer)
    assert boards.limit_w() == 400
    (os.killpg if whole_group else os.kill)(trainer.pid, number)
    until(lambda: boards.limit_w() == 700)
    until(lambda: not is_alive(guard))
    assert not list(records())


@needs_nvml
def test_guard_that_is_asked_to_end_waits_for_its_trainer(
    boards: Boards, trainer: "subprocess.Popen[str]"
) -> None:
    guard = guard_of(trainer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(guard, number)
    time.sleep(0.1)
    assert is_alive(guard) and boards.limit_w() == 400
    trainer.kill()
    until(lambda: boards.limit_w() == 700)


@needs_nvml
def test_next_start_puts_back_what_a_killed_guard_could_not(
    boards: Boards, trainer: "subprocess.Popen[str]"
) -> None:
    look = "from bessemer.energy.levers.restore import restore_left as left; print(json.dumps(left(str)))"
    guard = guard_of(trainer)
    assert boards.run(look) == [] and boards.limit_w() == 400  # its run lives
    os.kill(guard, signal.SIGKILL)
    assert boards.run(look) == [] and boards.limit_w() == 400
    trainer.kill()
    trainer.wait()
    assert boards.limit_w() == 400
    assert boards.run(look) == [f"put back: power limit of {ONE}, left by process {trainer.pid}"]
    assert boards.limit_w() == 700 and boards.run(look) == []


@needs_nvml
def test_nobody_else_puts_back_while_a_guard_is_about_to(
    boards: Boards, trainer: "subprocess.Popen[str]"
) -> None:
    guard = guard_of(trainer)
    os.kill(guard, signal.SIGSTOP)
    trainer.kill()
    trainer.wait()
    try:
        assert restore_left(str) == [] and boards.limit_w() == 400
        assert [try_take(path) for path in records()] == [None]
    finally:
        os.kill(guard, signal.SIGCONT)
    until(lambda: boards.limit_w() == 700)


@needs_nvml
def test_trainer_puts_back_itself_where_its_guard_was_killed(boards: Boards) -> None:
    told = boards.run(f"""
import json, os, signal
from bessemer.energy.levers.board import Board
from bessemer.energy.levers.guard import hold
board = Board({ONE!r})
held = hold(board)
board.limit(300)
os.kill(held._guard.pid, signal.SIGKILL)
print(json.dumps([held.close(), board.limit_w]))
""")
    assert told == [None, 700.0] and not list(records())


@needs_nvml
def test_runs_on_different_boards_do_not_undo_each_other(
    boards: Boards, trainer: "subprocess.Popen[str]"
) -> None:
    guard_of(trainer)
    other = boards.start(TRAINER.replace(repr(ONE), repr(TWO)))
    guard_of(other)
    assert [boards.limit_w(ONE), boards.limit_w(TWO)] == [400, 400]
    other.kill()
    other.communicate()
    until(lambda: boards.limit_w(TWO) == 700)
    assert boards.limit_w(ONE) == 400


@needs_nvml
def test_second_run_on_a_board_is_refused(boards: Boards, trainer: "subprocess.Popen[str]") -> None:
    guard_of(trainer)
    told = boards.run(f"""
from bessemer.energy.levers import record
from bessemer.energy.levers.board import Board
from bessemer.energy.levers.guard import hold
from bessemer.errors import RefusedError
record._PATIENCE_S = 0.1
try:
    hold(Board({ONE!r}))
except RefusedError as error:
    print(json.dumps([error.problem, error.found]))
""")
    assert told[0] == f"another run has set the power limit of {ONE}"
    assert told[1].endswith(f"held by process {trainer.pid}")
    assert boards.limit_w() == 400


@needs_nvml
def test_limit_without_rights_or_out_of_range_is_refused_and_changes_nothing(
    library: Path, tmp_path: Path
) -> None:
    script = f"""
from bessemer.energy.levers.board import Board
from bessemer.energy.levers.guard import check
from bessemer.errors import RefusedError
told, board = [], Board({ONE!r})
for watts in (None, 300, 701, 99.9):
    try:
        check(board) if watts is None else board.check(watts)
        told.append("may")
    except RefusedError as error:
        told.append([error.found, error.wanted, error.fix])
print(json.dumps(told))
"""
    may = Boards(tmp_path, library, ONE)
    told = may.run(script)
    assert told[:2] == ["may", "may"] and may.limit_w() == 700 and not list(records())
    assert told[2] == ["energy.power_limit = 701", "100 to 700 W", "set energy.power_limit=700"]
    assert told[3] == ["energy.power_limit = 99.9", "100 to 700 W", "set energy.power_limit=100"]
    may_not = Boards(tmp_path, library, ONE, allowed=False)
    told = may_not.run(script)
    assert told[0][0] == f"the driver refuses it to this user for {ONE}" and "root" in told[0][1]
    assert f"nvidia-smi -i {ONE} -pl" in told[0][2] and told[2][1] == "100 to 700 W"
    assert not list(records())


@needs_nvml
def test_whoever_asks_for_rights_sets_nothing_under_a_living_run(
    boards: Boards, trainer: "subprocess.Popen[str]"
) -> None:
    """It would set again what that run has just put back, for good."""
    guard_of(trainer)
    told = boards.run(f"""
from bessemer.energy.levers import record
from bessemer.energy.levers.board import Board
from bessemer.energy.levers.guard import check, hold
from bessemer.errors import RefusedError
record._PATIENCE_S, told, board = 0.1, [], Board({ONE!r})
board.put = lambda values: told.append("set")
for ask in (check, hold):
    try:
        ask(board)
    except RefusedError as error:
        told.append(error.problem)
print(json.dumps(told))
""")
    assert told == [f"another run has set the power limit of {ONE}"] * 2


@needs_nvml
def test_board_that_has_no_limits_is_refused(library: Path, tmp_path: Path) -> None:
    boards = Boards(tmp_path, library, ONE)
    boards.environment.pop("FAKE_NVML_LIMITS")
    told = boards.run(f"""
from bessemer.energy.levers.board import Board
from bessemer.errors import RefusedError
told = []
for uuid in ({ONE!r}, "cuda:0"):
    try:
        Board(uuid)
    except RefusedError as error:
        told.append(error.found)
print(json.dumps(told))
""")
    assert told == [
        "nvmlDeviceGetPowerManagementLimitConstraints: Not Supported",
        "nvmlDeviceGetHandleByUUID: Not Found",
    ]


def test_governor_is_chosen_for_every_policy_and_each_gets_its_own_back(policies: Path) -> None:
    governor = Governor(policies)
    governor.check("powersave")
    held = hold(governor)
    governor.choose("powersave")
    assert governors(policies) == ["powersave", "powersave"]
    assert held.close() is None
    assert governors(policies) == ["performance", "schedutil"] and not list(records())


def test_governor_that_there_is_not_is_refused_with_those_that_there_are(
    policies: Path, tmp_path: Path
) -> None:
    (policies / "policy1" / "scaling_available_governors").write_text("powersave performance\n")
    with pytest.raises(RefusedError) as refused:
        Governor(policies).check("schedutil")
    assert refused.value.wanted == "one of performance, powersave"
    with pytest.raises(RefusedError, match="cannot be set here"):
        Governor(tmp_path / "nothing").check("powersave")


def test_governor_without_rights_is_refused(policies: Path) -> None:
    """Asked by a user who is not root, to whom nothing here is closed but writing."""
    file = policies / "policy1" / "scaling_governor"
    file.chmod(0o444)
    script = """
import os, sys
from pathlib import Path
from bessemer.energy.levers.governor import Governor
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.seteuid(65534)
    os.access = lambda path, mode, access=os.access: access(path, mode, effective_ids=True)
Governor(Path(".")).check("powersave")
"""
    words = [sys.executable, "-c", script, str(policies)]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True)
    assert "RefusedError: no rights to set the governor of the CPUs" in done.stderr


def test_what_cannot_be_put_back_is_kept_and_said_again(policies: Path) -> None:
    governor, said = Governor(policies), list[str]()
    holding = take(governor.kind, governor.name)
    holding.write({"kind": "governor", "name": "cpu", "before": governor.read(), "process": 1})
    holding.close()
    governor.choose("powersave")
    (gone := policies / "policy1").rename(policies / "gone")
    assert restore_left(said.append) == said
    assert said[0].startswith("not put back: governor of cpu, left by process 1: ")
    (policies / "gone").rename(gone)
    assert restore_left(said.append) == ["put back: governor of cpu, left by process 1"]
    assert governors(policies) == ["performance", "schedutil"] and restore_left(said.append) == []


def test_one_policy_that_is_gone_keeps_no_other_from_its_own(policies: Path) -> None:
    governor = Governor(policies)
    before = governor.read()
    governor.choose("powersave")
    (policies / "policy0").rename(policies / "gone")  # as of a CPU that was taken offline
    with pytest.raises(RefusedError, match="cannot be read or set"):
        governor.put(before)
    assert governors(policies) == ["schedutil"]


def test_full_disk_is_told_and_moves_nothing(policies: Path) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
from bessemer.energy.levers.governor import Governor
from bessemer.energy.levers.guard import hold
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
governor = Governor(Path(sys.argv[1]))
governor.put = lambda values: None
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
hold(governor)
"""
    words = [sys.executable, "-c", script, str(policies)]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True)
    assert "RefusedError: what is changed on this machine cannot be written down" in done.stderr
    assert done.stderr.count("File too large") == 2 and not list(records())  # its cause, and found


def test_record_that_cannot_be_opened_stops_nobody(policies: Path) -> None:
    holding = take("governor", "cpu")
    holding.forget()
    (path := holding.path).mkdir()
    said = list[str]()
    assert restore_left(said.append) == [] and said == [f"left alone: {path}: Is a directory"]


def test_record_that_its_holder_removes_meanwhile_is_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    holding, lock = take("governor", "cpu"), fcntl.flock

    def late(file: BinaryIO, operation: int) -> None:
        holding.forget()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert try_take(holding.path) is None


def test_torn_record_moves_nothing(policies: Path) -> None:
    holding = take("governor", "cpu")
    holding.write({"kind": "governor", "name": "cpu", "before": Governor(policies).read()})
    holding.file.truncate(20)
    holding.close()
    Governor(policies).choose("powersave")
    assert restore_left(str) == [] and governors(policies) == ["powersave", "powersave"]
    assert not list(records())


def test_record_of_another_boot_is_left_alone(policies: Path) -> None:
    holding = take("governor", "cpu")
    holding.write({"kind": "governor", "name": "cpu", "before": Governor(policies).read(), "process": 1})
    holding.close()
    holding.path.rename(holding.path.with_name("another-boot-governor-cpu.json"))
    Governor(policies).choose("powersave")
    assert restore_left(str) == [] and governors(policies) == ["powersave", "powersave"]


def test_state_that_cannot_be_written_down_moves_nothing(
    policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(RefusedError, match="cannot be written down"):
        hold(Governor(policies))


def test_guard_of_a_worker_outlives_the_sweep_for_what_workers_have_started(
    policies: Path, tmp_path: Path
) -> None:
    """launch/tether.py kills every process that carries a worker's mark when the command dies."""
    worker = tmp_path / "worker.py"
    worker.write_text(f"""
import time
from pathlib import Path
from bessemer.energy.levers.governor import Governor
from bessemer.energy.levers.guard import hold
from bessemer.train.tune import guard_environment
governor = Governor(Path({str(policies)!r}))
held = hold(governor, guard_environment())
governor.choose("powersave")
time.sleep(60)
""")
    launch = f"""
import sys
from bessemer.launch.local import run_workers
run_workers([sys.executable, {str(worker)!r}], 1, logs=None)
"""
    command = subprocess.Popen([sys.executable, "-c", launch], env={**os.environ, "PYTHONPATH": ROOT})
    until(lambda: governors(policies) == ["powersave", "powersave"], within_s=30.0)
    command.kill()
    command.wait()
    until(lambda: governors(policies) == ["performance", "schedutil"])


def test_levels_go_down_in_even_strides_to_the_lowest() -> None:
    assert levels(700, 100, 6) == [600, 500, 400, 300, 200, 100]
    assert levels(313.7, 200, 6) == [295, 276, 257, 238, 219, 200]
    assert levels(150, 200, 6) == levels(200, 200, 6) == []


def window(limit_w: float, step_time_s: float, joules_per_token: float) -> Window:
    return Window(limit_w, step_time_s, joules_per_token, limit_w)


def test_knee_is_the_least_energy_among_what_is_fast_enough() -> None:
    told = [window(700, 1.0, 700), window(600, 1.02, 612), window(500, 1.04, 520), window(400, 1.2, 480)]
    assert [knee(told, share).limit_w for share in (0.0, 0.03, 0.05, 0.3)] == [700, 600, 500, 400]
    assert [is_past(told[:count], 0.05) for count in (1, 2, 3, 4)] == [False, False, False, True]
    assert is_past([*told, window(300, 1.25, 490)], 0.9)


def is_alive(process: int) -> bool:
    """One that has ended and was not waited for is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
