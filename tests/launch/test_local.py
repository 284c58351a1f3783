"""Real processes: what they are given, how they end together, and which failure is told."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bessemer.errors import DataError, RecipeError, StoppedError, UserError, WorkerError
from bessemer.hardware import usable_cores
from bessemer.launch.environment import MARKER
from bessemer.launch.local import _TETHER, run_workers, worker_environment
from bessemer.launch.world import WORKER, held_port
from bessemer.processes import worker_command

ROOT = Path(__file__).parents[2]
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's tie and /proc")

START = f"""
import json, os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from bessemer.errors import DataError, StoppedError
from bessemer.launch.world import report_failure, world_of_environment
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
def say(name, content=""):
    hidden = folder / f".{{name}}-{{rank}}"
    hidden.write_text(str(content))
    hidden.rename(folder / f"{{name}}-{{rank}}")
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The exchange folders are made here, and must be gone in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    wait(lambda: not list(folder.iterdir()))


def worker(folder: Path, body: str) -> list[str]:
    """The command of a rank that runs `body`, after START."""
    script = folder / "worker.py"
    script.write_text(START + textwrap.dedent(body))
    return [sys.executable, "-S", str(script), str(folder)]


def failure_of(folder: Path, body: str, world: int = 2, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        run_workers(worker(folder, body), world, **{"logs": None, "grace_s": 0.5} | options)
    return caught.value


def parent(folder: Path, body: str, world: int = 2, grace_s: float = 10.0) -> "subprocess.Popen[str]":
    """A process of its own that runs workers, in a group of its own, as a shell would start it."""
    command = worker(folder, body)
    program = f"""
        import sys
        from pathlib import Path
        from bessemer.errors import UserError
        from bessemer.launch.local import run_workers
        try:
            run_workers({command!r}, {world}, logs=Path({str(folder)!r}), grace_s={grace_s})
        except UserError as error:
            print(type(error).__name__, error)
            sys.exit(error.exit_code)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)


def said(folder: Path, name: str, world: int = 2) -> list[str] | None:
    paths = [folder / f"{name}-{rank}" for rank in range(world)]
    return [path.read_text() for path in paths] if all(path.exists() for path in paths) else None


def wait_said(folder: Path, name: str) -> list[str]:
    wait(lambda: said(folder, name))
    found = said(folder, name)
    assert found is not None
    return found


def lives(process: int) -> bool:
    """A zombie does not: whoever was to reap an orphan may be slow, or nobody."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children() -> list[str]:
    found = Path(f"/proc/self/task/{os.getpid()}/children")
    return found.read_text().split() if found.exists() else []


def test_each_rank_is_told_its_world(tmp_path: Path) -> None:
    before = children()
    body = "say('world', world_of_environment()); say('all', json.dumps(dict(os.environ)))"
    outer = {**os.environ, "TORCHELASTIC_RUN_ID": "outer"}
    run_workers(worker(tmp_path, body), 3, logs=None, environment=outer)
    given = [json.loads(text) for text in said(tmp_path, "all", 3) or []]
    assert [one["RANK"] for one in given] == [one["LOCAL_RANK"] for one in given] == ["0", "1", "2"]
    for one in given:
        assert one["WORLD_SIZE"] == one["LOCAL_WORLD_SIZE"] == "3" and one["MASTER_ADDR"] == "127.0.0.1"
        assert one[MARKER] == "arranged" and not any(name.startswith("TORCHELASTIC") for name in one)
    assert len({(one["MASTER_PORT"], one[WORKER]) for one in given}) == 1
    world = (tmp_path / "world-2").read_text()
    assert world.startswith("World(rank=2, size=3, local_rank=2, local_size=3, host='127.0.0.1', port=")
    assert children() == before  # no zombie


def test_threads_are_shared_unless_the_user_has_set_them() -> None:
    share = str(max(1, usable_cores() // 2))
    arranged_for_one = {MARKER: "arranged", "OMP_NUM_THREADS": str(usable_cores())}
    for environment, threads, wanted in [
        ({}, None, share),
        (arranged_for_one, None, share),
        ({"OMP_NUM_THREADS": "77"}, None, "77"),
        ({"OMP_NUM_THREADS": "77"}, 3, "3"),
        ({MARKER: "off"}, None, None),
        ({MARKER: "off"}, 3, "3"),
    ]:
        assert worker_environment(2, environment, threads).get("OMP_NUM_THREADS") == wanted
    assert worker_environment(10**6, {}, None)["OMP_NUM_THREADS"] == "1"


def test_arranged_environment_is_not_arranged_again_and_off_stays_off() -> None:
    assert worker_environment(2, {}, None)[MARKER] == "arranged"
    assert worker_environment(2, {MARKER: "off"}, None)[MARKER] == "off"


def test_workers_speak_over_the_loopback_unless_the_user_names_an_interface() -> None:
    name = "GLOO_SOCKET_IFNAME"
    assert worker_environment(2, {}, None)[name] in dict(map(reversed, socket.if_nameindex()))  # type: ignore[arg-type]
    assert worker_environment(2, {name: "eth7"}, None)[name] == "eth7"
    assert name not in worker_environment(2, {MARKER: "off"}, None)


def test_folder_of_the_users_stands_in_for_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('taken for torch')")
    monkeypatch.chdir(tmp_path)
    # TMPDIR: torch leaves a folder of its own there.
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
        "WORLD_SIZE": "1",
        "RANK": "",
    }
    command = worker_command("bessemer.train.run")
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "taken for torch" not in ended.stderr and "assert world is not None" in ended.stderr
    told = "from bessemer.check.pool import WORKER; print(*WORKER)"
    checking = subprocess.check_output([sys.executable, "-P", "-c", told], env=environment, text=True)
    assert checking.split() == worker_command("bessemer.check.worker") and "-P" in command
    monkeypatch.chdir(ROOT)  # where we ourselves are found in the current folder
    assert "-P" not in worker_command("bessemer.train.run")


def test_rank_0_speaks_on_stderr_and_the_others_in_their_logs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = worker(tmp_path, "print('out', rank, flush=True); print('err', rank, file=sys.stderr)")
    for _ in range(2):
        run_workers(command, 2, logs=tmp_path / "logs")
    assert capfd.readouterr() == ("", "out 0\nerr 0\n" * 2)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["rank-00001.log"]
    assert (tmp_path / "logs/rank-00001.log").read_text() == "out 1\nerr 1\n" * 2
    run_workers(command, 2, logs=None)
    assert capfd.readouterr() == ("", "out 0\nerr 0\n")


def test_a_mistake_of_the_user_wins_over_tracebacks_of_those_who_lost_their_peer(tmp_path: Path) -> None:
    body = """
        if rank == 1:
            time.sleep(0.2)  # later than the traceback
            sys.exit(report_failure(DataError("torn shard", found="7", wanted="8", fix="build again")))
        sys.exit(report_failure(ConnectionError("peer lost")))
    """
    error = failure_of(tmp_path, body, world=3)
    assert type(error) is DataError and error.exit_code == 65
    assert str(error) == str(DataError("torn shard", found="7", wanted="8", fix="build again"))


def test_of_two_tracebacks_the_earlier_is_told(tmp_path: Path) -> None:
    body = """
        try:
            if rank == 0:
                time.sleep(0.2)
                raise ConnectionError("peer lost")
            assert rank == 0, f"rank is {rank}"
        except Exception as error:
            sys.exit(report_failure(error))
    """
    error = failure_of(tmp_path, body)
    assert isinstance(error, WorkerError) and error.exit_code == 1
    assert error.problem == "rank 1 failed: AssertionError: rank is 1"
    assert "Traceback" in error.found and 'f"rank is {rank}"' in error.found


def test_stopped_in_order_is_told_once_and_slow_ranks_may_finish_their_checkpoint(tmp_path: Path) -> None:
    body = """
        time.sleep(1.0 if rank == 0 else 0.0)
        say("saved")
        sys.exit(report_failure(StoppedError("stopped by SIGTERM", found="f", wanted="w", fix="x")))
    """
    error = failure_of(tmp_path, body, grace_s=0.2)
    assert isinstance(error, StoppedError) and error.exit_code == 75 and said(tmp_path, "saved")


def test_killed_worker_is_named_though_others_report_what_they_lost(tmp_path: Path) -> None:
    body = """
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(report_failure(ConnectionError("peer lost")))
    """
    error = failure_of(tmp_path, body, world=3)
    assert isinstance(error, WorkerError)
    assert error.problem == "rank 1 was killed by SIGKILL: out of memory is the usual cause"
    assert "run the same command again to go on" in error.fix


def test_worker_that_ends_without_a_word_is_shown_by_its_log(tmp_path: Path) -> None:
    body = "rank == 0 or sys.exit('no module named that')"
    error = failure_of(tmp_path, body, logs=tmp_path / "logs")
    assert error.problem == "rank 1 ended with exit code 1 and no report"
    assert f"{tmp_path}/logs/rank-00001.log: no module named that" in error.found


def test_command_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as caught:
        run_workers([str(tmp_path / "nowhere")], 1, logs=None, grace_s=0.1)
    assert "ended with exit code 1" in caught.value.problem


def test_hanging_ranks_are_ended_after_the_grace(tmp_path: Path) -> None:
    body = """
        if rank == 0:
            sys.exit(report_failure(DataError("torn", found="", wanted="", fix="")))
        if rank == 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    """
    before, start_s = children(), time.monotonic()
    error = failure_of(tmp_path, body, world=3, grace_s=0.4)
    assert isinstance(error, DataError) and 0.6 <= time.monotonic() - start_s < 5
    assert children() == before


def test_what_ranks_report_after_we_began_to_end_them_does_not_count(tmp_path: Path) -> None:
    body = """
        if rank == 0:
            sys.exit(report_failure(ValueError("the cause")))
        def stop(*_):
            report_failure(StoppedError("stopped", found="", wanted="", fix=""))
            os._exit(75)
        signal.signal(signal.SIGTERM, stop)
        time.sleep(60)
    """
    assert failure_of(tmp_path, body, grace_s=1.0).problem == "rank 0 failed: ValueError: the cause"


def test_rank_that_reports_and_then_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    body = """
        rank == 0 and report_failure(DataError("torn", found="", wanted="", fix=""))
        time.sleep(60)
    """
    assert failure_of(tmp_path, body, grace_s=0.3).problem == "torn"


LINGER = """
    idle = [sys.executable, "-S", "-c", "import time; time.sleep(60.0)"]
    child = subprocess.Popen(idle, start_new_session=True)
    say("here", f"{os.getpid()} {child.pid}")
    time.sleep(60)
"""


@needs_linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_outlives_the_command(tmp_path: Path, number: signal.Signals) -> None:
    command = parent(tmp_path, LINGER)
    processes = [int(word) for text in wait_said(tmp_path, "here") for word in text.split()]
    assert len(processes) == 4 and all(map(lives, processes))
    assert {os.getpgid(process) for process in processes[::2]} == {command.pid}
    command.send_signal(number)
    wait(lambda: not any(map(lives, processes)), timeout_s=2.0)
    assert command.wait(5) == -number
    command.communicate()


@needs_linux
def test_kernel_ends_workers_without_the_keeper_too(tmp_path: Path) -> None:
    command = parent(tmp_path, LINGER)
    workers = [int(text.split()[0]) for text in wait_said(tmp_path, "here")]
    grandchildren = [int(text.split()[1]) for text in wait_said(tmp_path, "here")]
    all_children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    (keeper,) = {int(child) for child in all_children} - set(workers)
    os.kill(keeper, signal.SIGKILL)
    command.kill()
    wait(lambda: not any(map(lives, workers)), timeout_s=2.0)
    for process in grandchildren:
        os.kill(process, signal.SIGKILL)
    command.communicate()
    for path in (tmp_path / "temporary").iterdir():
        path.rmdir()


@needs_linux
def test_worker_whose_parent_died_before_it_was_tied_ends_at_once() -> None:
    for parent_id, wanted in [(os.getpid(), (0, b"lives\n")), (1 << 30, (1, b""))]:
        command = [*_TETHER, "worker", str(parent_id), "echo", "lives"]
        late = subprocess.run(command, capture_output=True)
        assert (late.returncode, late.stdout) == wanted


@needs_linux
def test_what_workers_left_behind_is_ended_with_them(tmp_path: Path) -> None:
    run_workers(worker(tmp_path, LINGER.replace("time.sleep(60)\n", "os._exit(0)\n")), 2, logs=None)
    processes = [int(word) for text in wait_said(tmp_path, "here") for word in text.split()]
    assert len(processes) == 4 and not any(map(lives, processes))


STOPPABLE = """
    heard = []
    def stop(number, frame):
        heard.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one would end us at once
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    say("here")
    while not heard:
        time.sleep(0.01)
    time.sleep(0.8)  # the checkpoint
    say("heard", heard)
    sys.exit(report_failure(StoppedError("stopped", found="", wanted="", fix="")))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_command_reaches_each_worker_once(tmp_path: Path, number: signal.Signals) -> None:
    command = parent(tmp_path, STOPPABLE)
    wait_said(tmp_path, "here")
    command.send_signal(number)
    time.sleep(0.1)
    command.send_signal(number)  # as `timeout` does: to the process, then to its group
    out, err = command.communicate(timeout=20)
    assert (command.returncode, out.split("\n")[0], err) == (75, "StoppedError stopped", "")
    assert said(tmp_path, "heard") == ["[15]", "[15]"]


def test_interrupt_typed_at_the_terminal_reaches_each_worker_once(tmp_path: Path) -> None:
    command = parent(tmp_path, STOPPABLE)
    wait_said(tmp_path, "here")
    os.killpg(command.pid, signal.SIGINT)
    assert command.communicate(timeout=20)[0].startswith("StoppedError") and command.returncode == 75
    assert said(tmp_path, "heard") == ["[15]", "[15]"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_all_at_once(tmp_path: Path, number: signal.Signals) -> None:
    body = """
        signal.signal(signal.SIGTERM, lambda *_: say("heard"))
        say("here", os.getpid())
        while True:
            time.sleep(1)
    """
    command = parent(tmp_path, body)
    workers = [int(text) for text in wait_said(tmp_path, "here")]
    command.send_signal(number)
    wait_said(tmp_path, "heard")
    time.sleep(0.6)
    assert command.poll() is None
    command.send_signal(number)
    command.communicate(timeout=5)
    assert command.returncode == -number and not any(map(lives, workers))


def test_signal_before_workers_can_stop_in_order_ends_the_command_as_it_would_alone(tmp_path: Path) -> None:
    command = parent(tmp_path, "say('here')\ntime.sleep(60)")
    wait_said(tmp_path, "here")
    command.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in command.communicate(timeout=10)[1] and command.returncode == -signal.SIGINT


def test_logs_that_cannot_be_written_leave_no_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = children()
    error = failure_of(tmp_path, "time.sleep(60)", logs=tmp_path / "file/logs")
    assert error.exit_code == 73 and children() == before


def test_held_port_can_be_listened_at_and_is_given_to_no_other() -> None:
    with held_port("127.0.0.1") as port, socket.socket() as rank_0:
        rank_0.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rank_0.bind(("0.0.0.0", port))
        rank_0.listen()
        with pytest.raises(OSError), socket.socket() as other:
            other.bind(("127.0.0.1", port))


def test_error_keeps_its_class(tmp_path: Path) -> None:
    body = """
        from bessemer.errors import RecipeError
        sys.exit(report_failure(RecipeError("no such layout", found="3", wanted="2", fix="x")))
    """
    assert type(failure_of(tmp_path, body)) is RecipeError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_comes_when_workers_no_longer_listen_still_ends_the_command(
    tmp_path: Path, number: signal.Signals
) -> None:
    body = """
        signal.signal(signal.SIGTERM, lambda *_: say("late"))
        say("here")
        while not (folder / f"late-{rank}").exists():
            time.sleep(0.01)
    """
    command = parent(tmp_path, body)
    wait_said(tmp_path, "here")
    command.send_signal(number)
    command.communicate(timeout=20)
    assert command.returncode == -number and said(tmp_path, "late")
