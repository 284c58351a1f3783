"""A real PostgreSQL for the tests: started in a folder of its own, stopped for sure."""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

PASSWORD = "p@ss:w/rd %41#?'\"é&"  # all that an address has a use for
_PARENT_DEATH = 1  # prctl's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Server:
    scheme: str
    user: str
    port: int

    def url(
        self, user: str | None = None, password: str = PASSWORD, database: str = "proof", more: str = ""
    ) -> str:
        login = f"{user or self.user}:{quote(password, safe='')}"
        return f"{self.scheme}://{login}@127.0.0.1:{self.port}/{database}{more}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        pytest.skip("PostgreSQL's initdb and postgres are not on this machine")
    with_user = other_user()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    hand_over(folder, with_user)
    (folder / "password").write_text(PASSWORD, encoding="utf-8")
    try:
        make = ["initdb", "-D", f"{folder}/data", "-U", "owner", "--pwfile", f"{folder}/password"]
        make += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **with_user)
        port = free_port()
        words = ["postgres", "-D", f"{folder}/data", "-p", str(port), "-k", str(folder), "-F"]
        words += ["-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB", "-c", "max_wal_size=256MB"]
        server = Server("postgresql", "owner", port)
        with running(words, folder, with_user, signal.SIGINT, lambda: connected(server, "postgres").close()):
            with connected(server, "postgres") as connection:
                connection.execute("create database proof")
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def connected(server: Server, database: str = "proof") -> "psycopg.Connection[Any]":
    return psycopg.connect(
        host="127.0.0.1",
        port=server.port,
        user=server.user,
        password=PASSWORD,
        dbname=database,
        autocommit=True,
    )


def other_user() -> dict[str, Any]:
    """For subprocess: databases refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def hand_over(folder: Path, with_user: dict[str, Any]) -> None:
    if with_user:
        os.chown(folder, with_user["user"], with_user["group"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class running:
    """A server process that answers; ended by `stop`, by force after 20 s, and with this process."""

    def __init__(
        self,
        words: list[str],
        folder: Path,
        with_user: dict[str, Any],
        stop: int,
        knock: Callable[[], object],
    ) -> None:
        self.words, self.folder, self.with_user, self.stop, self.knock = words, folder, with_user, stop, knock

    def __enter__(self) -> None:
        prctl = ctypes.CDLL(None).prctl
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                self.words,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: prctl(_PARENT_DEATH, signal.SIGKILL),
                **self.with_user,
            )
        end_s = time.monotonic() + 60
        while True:
            try:
                self.knock()
                return
            except Exception as error:
                if self.process.poll() is None and time.monotonic() < end_s:
                    time.sleep(0.05)
                    continue
                self.__exit__()
                log_text = (self.folder / "log").read_text(errors="replace")
                raise AssertionError(f"{self.words[0]} does not answer: {log_text[-2000:]}") from error

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(self.stop)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
