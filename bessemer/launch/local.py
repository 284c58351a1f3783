"""Start the local processes of a layout, watch them, and make one outcome of theirs.

Each process is a rank, told so by torchrun's variables. They stay in the command's process group and die
with it (launch/tether.py says how). Rank 0 has the terminal: its stdout and stderr are our stderr, as our
stdout is the command's answer; what the others say is appended to their log files.

Signals. A terminal sends SIGINT to the whole group, `kill` to one process; a worker must be asked once,
as a second time means "at once". So workers start with SIGINT blocked, and only this process, on its first
SIGINT or SIGTERM, sends each worker one SIGTERM; on the second it kills them. When they had not come
as far as to stop in order, this process ends as the signal would have ended it.

Failures. When a rank fails, the others usually fail too, having lost their peer. All get `grace_s` to end
by themselves and are then killed, and the failure that came first is raised, once, for all.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Self

from bessemer.durable import cannot_write
from bessemer.errors import RefusedError, StoppedError
from bessemer.hardware import usable_cores
from bessemer.launch.environment import MARKER, wanted_environment
from bessemer.launch.outcome import Ended, failure, log_file, read_reports
from bessemer.launch.world import WORKER, held_port

_TETHER = [sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py"))]
_HOST = "127.0.0.1"
_STDERR = 2  # file descriptor
_POLL_S = 0.05
_SAME_S = 0.5  # `timeout` and others signal a process and then its group: that is one wish, not two
_THREADS = "OMP_NUM_THREADS"
# gloo would listen at the address of this machine's name, which others may reach.
_INTERFACE, _LOOPBACK = "GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo"


def run_workers(
    command: Sequence[str],
    world: int,
    *,
    logs: Path | None,
    environment: Mapping[str, str] | None = None,
    threads: int | None = None,
    grace_s: float = 10.0,
) -> None:
    """Run `command` as `world` ranks on this machine until all have ended; returns if all end with 0.

    logs: the folder of rank-00001.log and so on; None: what these ranks say is dropped.
    environment: what the workers' is made from; None: our own. threads: of each rank; None: an equal
    share of the cores, unless the user has set OMP_NUM_THREADS.
    Raises the first rank's failure as the error that it reported; WorkerError for a rank that
    reported none.
    """
    assert world >= 1 and command, (world, command)
    given = worker_environment(world, os.environ if environment is None else environment, threads)
    with ExitStack() as stack:
        # From the inside out: workers are dead before signals are as they were, then the folder goes.
        exchange = stack.enter_context(_exchange_folder())
        port = stack.enter_context(held_port(_HOST))
        wishes = stack.enter_context(_Wishes())
        workers = stack.enter_context(_Workers(exchange, logs))
        given |= {"MASTER_ADDR": _HOST, "MASTER_PORT": str(port), WORKER: str(exchange)}
        for rank in range(world):
            workers.start(rank, command, given | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        workers.watch(wishes, grace_s)
        error = failure(workers.ended, read_reports(exchange), workers.cut_s, logs)
    # Where all had ended well, or no longer listened, it was not answered by anyone: we are to stop.
    if wishes.first is not None and (error is None or workers.were_interrupted(wishes)):
        signal.raise_signal(wishes.first)  # ends this process, or is a KeyboardInterrupt
    if error is not None:
        raise error


def worker_environment(world: int, current: Mapping[str, str], threads: int | None) -> dict[str, str]:
    """What all ranks have in common: `current`, arranged for training (launch/environment.py)."""
    # Where we have set all cores ourselves, for one process, that is not the user's wish for each of many.
    is_ours = current.get(MARKER) == "arranged" and current.get(_THREADS) == str(usable_cores())
    given = {name: value for name, value in current.items() if not name.startswith("TORCHELASTIC_")}
    given = wanted_environment(given)
    if threads is not None:
        given[_THREADS] = str(threads)
    elif is_ours or (_THREADS not in current and current.get(MARKER) != "off"):
        given[_THREADS] = str(max(1, usable_cores() // world))
    if given.get(MARKER) != "off":
        given.setdefault(_INTERFACE, _LOOPBACK)
    given.setdefault(MARKER, "arranged")
    return given | {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}


class _Wishes:
    """SIGINT and SIGTERM while entered: the first, and whether another followed that asks for haste."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.at_once = False
        self._first_s = 0.0
        self._before: list[tuple[int, object]] = []

    def __enter__(self) -> Self:
        # Not in the main thread: whoever runs us there receives the signals.
        with suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before.append((number, signal.signal(number, self._on_signal)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.first is None:
            self.first, self._first_s = number, now_s
        elif now_s - self._first_s >= _SAME_S:
            self.at_once = True


class _Workers:
    """The processes, living and ended. On leaving, none lives, whatever happened."""

    def __init__(self, exchange: Path, logs: Path | None) -> None:
        self.ended: list[Ended] = []
        self.cut_s = float("inf")  # when we began to end them: what they did later is our doing
        self._exchange, self._logs = exchange, logs
        self._living: dict[int, subprocess.Popen[bytes]] = {}
        self._seen_s: dict[int, float] = {}
        tag = f"{WORKER}={exchange}"
        self._keeper = _spawn(
            [*_TETHER, "keeper", tag, str(exchange)],
            blocked={signal.SIGINT, signal.SIGTERM, signal.SIGHUP},
            environment={name: value for name, value in os.environ.items() if name != WORKER},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._send(signal.SIGKILL)
        for process in self._living.values():
            process.wait()
            self._tell_keeper(f"-{process.pid}")
        assert self._keeper.stdin is not None
        with suppress(BrokenPipeError):
            self._keeper.stdin.close()
        self._keeper.wait()  # until it has ended what the workers had started

    def start(self, rank: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        with ExitStack() as stack:
            out = _STDERR if rank == 0 else subprocess.DEVNULL
            if rank > 0 and self._logs is not None:
                out = stack.enter_context(_opened(log_file(self._logs, rank)))
            process = _spawn(
                [*_TETHER, "worker", str(os.getpid()), *command],
                blocked={signal.SIGINT},
                environment=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._living[rank], self._seen_s[rank] = process, time.monotonic()
        self._tell_keeper(f"+{process.pid}")

    def watch(self, wishes: _Wishes, grace_s: float) -> None:
        """Until all have ended."""
        asked, hurried = False, False
        measures: list[tuple[float, signal.Signals]] = []  # (when, what) against ranks that do not end
        while self._look():
            if wishes.first is not None and not asked:
                asked = True
                self._send(signal.SIGTERM)
            if wishes.at_once and not hurried:
                hurried = True
                self._send(signal.SIGKILL)
            now_s = time.monotonic()
            if self.cut_s == float("inf") and not measures and self._has_failure():
                measures = [(now_s + grace_s, signal.SIGTERM), (now_s + 1.5 * grace_s, signal.SIGKILL)]
            if measures and now_s >= measures[0][0]:
                self.cut_s = min(self.cut_s, now_s)
                self._send(measures.pop(0)[1])
            time.sleep(_POLL_S)

    def were_interrupted(self, wishes: _Wishes) -> bool:
        """Whether a rank died of what the user had sent, where it could not stop in order."""
        deadly = {-signal.SIGTERM, -signal.SIGKILL} if wishes.at_once else {-signal.SIGTERM}
        return any(ended.code in deadly and ended.seen_s < self.cut_s for ended in self.ended)

    def _look(self) -> bool:
        """Note who has ended; whether any still lives."""
        for rank, process in list(self._living.items()):
            now_s = time.monotonic()
            if process.poll() is None:
                self._seen_s[rank] = now_s
                continue
            del self._living[rank]
            self.ended.append(Ended(rank, process.pid, process.returncode, self._seen_s[rank]))
            self._tell_keeper(f"-{process.pid}")
        return bool(self._living)

    def _has_failure(self) -> bool:
        """A rank ended badly, or reported that it will. One that stopped in order waits for the others:
        rank 0 may still be writing the checkpoint."""
        fine = (0, StoppedError.exit_code)
        codes = [ended.code for ended in self.ended]
        codes += [report.exit_code for report in read_reports(self._exchange).values()]
        return any(code not in fine for code in codes)

    def _send(self, number: signal.Signals) -> None:
        for process in self._living.values():
            process.send_signal(number)

    def _tell_keeper(self, line: str) -> None:
        assert self._keeper.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed it: on Linux the kernel's tie is left
            self._keeper.stdin.write(f"{line}\n".encode())
            self._keeper.stdin.flush()


def _spawn(
    command: list[str],
    *,
    blocked: set[signal.Signals],
    environment: Mapping[str, str],
    stdin: int,
    stdout: int,
    stderr: int,
) -> subprocess.Popen[bytes]:
    """A process that starts with `blocked` signals held back: it inherits that from this thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        return subprocess.Popen(command, env=environment, stdin=stdin, stdout=stdout, stderr=stderr)
    except OSError as error:
        raise RefusedError(
            "cannot start a process",
            found=error.strerror or str(error),
            wanted="one process for each rank of the layout, and one more",
            fix="free memory, raise the limit on processes (`ulimit -u`), or take a layout of fewer ranks",
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file descriptor to append with."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield number
    finally:
        os.close(number)  # the worker has its own


@contextmanager
def _exchange_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="bessemer-", ignore_cleanup_errors=True)
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()), error) from error
    with folder as name:
        yield Path(name)
