"""A real MariaDB for the tests: started in a folder of its own, stopped for sure."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from making_postgres import PASSWORD, Server, free_port, hand_over, other_user, running


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    program = shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None or shutil.which("mariadb-install-db") is None:
        pytest.skip("mariadbd is not on this machine (Debian: apt-get install mariadb-server)")
    with_user = other_user()
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    hand_over(folder, with_user)
    password = PASSWORD.replace("\\", "\\\\").replace("'", "''")
    (folder / "first.sql").write_text(
        f"create user owner@'127.0.0.1' identified by '{password}';\n"
        "grant all on *.* to owner@'127.0.0.1' with grant option;\ncreate database proof;\n",
        encoding="utf-8",
    )
    try:
        make = ["mariadb-install-db", "--no-defaults", f"--datadir={folder}/data", "--skip-test-db"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **with_user)
        port = free_port()
        words = [program, "--no-defaults", f"--datadir={folder}/data", f"--socket={folder}/socket"]
        words += [f"--port={port}", "--bind-address=127.0.0.1", f"--init-file={folder}/first.sql"]
        words += ["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0", f"--pid-file={folder}/pid"]
        words += ["--character-set-server=utf8mb4"]
        server = Server("mysql", "owner", port)
        with running(words, folder, with_user, signal.SIGTERM, lambda: connected(server).close()):
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def connected(server: Server) -> "pymysql.Connection[Any]":
    return pymysql.connect(
        host="127.0.0.1", port=server.port, user="owner", password=PASSWORD.encode(), database="proof",
        autocommit=True, local_infile=True,
    )  # fmt: skip
