"""Workers of data builds in the tests' own process: forked from one that has imported what they need.

Beginning takes a worker 0.5 CPU-s (two for two cores), its part of a small build 0.2. All else is as when
the build starts it: a process of its own with the build's folder, environment, pipes and limits, killed at
its end. But all of them order their sets alike, as they inherit one seed of hashes. Builds by a process of
their own (build_apart, `command`) start their workers as users' do: compared with those, seeds differ.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from bessemer.data.factory import driven

_MESSAGE_BYTES = 1 << 17


class Forked:
    """As much of a Popen as a build uses."""

    def __init__(self, server: "_Server", words: Sequence[str], environment: Mapping[str, str]) -> None:
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        self.stdin, self.stdout = os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb")
        try:
            self._handle = server.fork(words, environment, (theirs_in, theirs_out, 2))
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def communicate(self) -> None:
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.read()
        self.stdout.close()
        select.select([self._handle], [], [])  # readable when it has ended
        os.close(self._handle)


class _Server:
    """Starts when it is first asked; ends with the tests, however they end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fork(self, words: Sequence[str], environment: Mapping[str, str], files: Sequence[int]) -> int:
        """A handle (pidfd) of a process that has these as its stdin, stdout and stderr."""
        call = {"words": list(words), "environment": dict(environment), "folder": os.getcwd()}
        with self._lock:
            if self._process is None:
                self._start(environment)
            socket.send_fds(self._socket, [json.dumps(call).encode()], files)
            told, handles, _, _ = socket.recv_fds(self._socket, 1, 1)
        assert told and len(handles) == 1, "the process that forks workers has ended"
        return handles[0]

    def _start(self, environment: Mapping[str, str]) -> None:
        number = self._theirs.fileno()
        command = [sys.executable, "-P", __file__, str(number)]
        self._process = subprocess.Popen(
            command, env=environment, pass_fds=[number], stdin=subprocess.DEVNULL
        )
        self._theirs.close()

    def close(self) -> None:
        """It ends where nobody can ask it any more."""
        self._socket.close()
        self._theirs.close()
        if self._process is not None:
            self._process.wait()


@contextmanager
def forked_workers() -> Iterator[None]:
    """Builds of this process fork their workers meanwhile, where the system can."""
    if not hasattr(os, "pidfd_open"):
        yield
        return
    server = _Server()

    def begin(command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> Forked:
        return Forked(server, command[command.index("-m") + 1 :], env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driven, "subprocess", SimpleNamespace(Popen=begin, PIPE=subprocess.PIPE))
        yield
    server.close()


def _serve(calls: socket.socket) -> None:
    import bessemer.data.factory.worker  # noqa: F401 (what takes the time)

    while True:
        message, files, _, _ = socket.recv_fds(calls, _MESSAGE_BYTES, 3)
        if not message:
            return
        _bury()
        process = os.fork()
        if process == 0:
            calls.close()
            _become(json.loads(message), files)
        handle = os.pidfd_open(process)
        socket.send_fds(calls, [b"!"], [handle])
        for file in (*files, handle):
            os.close(file)


def _bury() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(call: dict[str, Any], files: Sequence[int]) -> None:
    """What `python -m module` does, from its imports on."""
    code = 1
    try:
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        os.chdir(call["folder"])
        os.environ.clear()
        os.environ.update(call["environment"])
        module, *sys.argv[1:] = call["words"]
        importlib.import_module(module).main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
