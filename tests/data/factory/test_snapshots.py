"""A database server is read once, in the parts that it was cut into then; its password is written nowhere."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from making_factory import build, command
from making_postgres import PASSWORD, Server, connected

from bessemer.data.prepared import Prepared
from bessemer.data.tokens.sidecar import read_sidecar

VARIABLE = "PROOF_DSN"
RECIPE = """name = "made"
[tokenizer]
vocab = 300
[data]
validation = 0.1
[[data.source]]
name = "posts"
kind = "sql"
url_env = "PROOF_DSN"
table = "posts"
text = "body"
"""
# The same rows asked for once more, under another name.
TWINS = (
    RECIPE + '[data.clean]\ndedup = "off"\n' + RECIPE[RECIPE.index("[[") :].replace('posts"\nk', 'other"\nk')
)


@pytest.fixture
def environment(postgres: Server) -> dict[str, str]:
    return {VARIABLE: postgres.url()}


def fill(postgres: Server, first: int, last: int) -> None:
    sql = "insert into posts select n, 'Row ' || n || ' of steel' from generate_series(%s::int, %s::int) as n"
    with connected(postgres) as connection:
        connection.execute("create table if not exists posts (number bigint primary key, body text)")
        connection.execute(sql, (first, last))
        connection.execute("analyze posts")


def empty(postgres: Server) -> None:
    with connected(postgres) as connection:
        connection.execute("drop table if exists posts")
        connection.execute("drop role if exists reader")


def ids(prepared: Prepared, source: int = 0) -> set[str]:
    stems = [stem for split in ("train", "validation") for stem in prepared.stems(split)[source]]
    return {name for stem in stems for name in read_sidecar(stem, ["id"])["id"].to_pylist()}


def posts(*numbers: int) -> set[str]:
    return {f"postgresql:posts:{number}" for number in numbers}


def test_rows_that_are_added_are_seen_when_asked_for_and_not_before(
    postgres: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    empty(postgres)
    fill(postgres, 1, 9)
    recipe, store = tmp_path / "recipe.toml", tmp_path / "store"
    recipe.write_text(TWINS)
    first = build(recipe, store, environment=environment)
    fill(postgres, 10, 12)
    again = build(recipe, store, environment=environment)
    assert again.folder == first.folder and ids(again) == ids(again, 1) == posts(*range(1, 10))
    # Another recipe over the same table means the same reading of it, also if another user runs it.
    recipe.write_text(TWINS.replace("validation = 0.1", "validation = 0.3"))
    with connected(postgres) as connection:
        connection.execute("create role reader login password 'other'")
        connection.execute("grant select on posts to reader")
    reader = {VARIABLE: postgres.url(user="reader", password="other")}
    other = build(recipe, store, environment=reader)
    assert other.folder != first.folder and ids(other) == posts(*range(1, 10))
    recipe.write_text(TWINS)
    new = build(recipe, store, "--refresh", environment=reader)
    assert ids(new) == ids(new, 1) == posts(*range(1, 13))
    kept = build(recipe, store, environment=environment)
    assert kept.folder == new.folder, "what was asked for anew is what is meant from then on"


def test_killed_build_goes_on_with_the_ranges_of_keys_that_it_had(
    postgres: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    empty(postgres)
    fill(postgres, 1, 120_000)  # three parts
    recipe, store = tmp_path / "recipe.toml", tmp_path / "store"
    recipe.write_text(RECIPE + '[data.clean]\ndedup = "off"\n')
    child = subprocess.Popen(
        command(recipe, store, "--workers", "1"),
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not _read(store) and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was done before it was killed"
    before = _read(store)
    assert 1 <= len(before) < 3
    # All borders between ranges of as many rows would be others now.
    with connected(postgres) as connection:
        connection.execute("delete from posts where number between 101 and 200")
    fill(postgres, -30_000, 0)
    after = build(recipe, store, environment=environment)
    assert len(_read(store)) == 3 and before.items() <= _read(store).items()
    (ranges,) = (store / "snapshots").glob("*.parts.json")
    assert [row[:2] for row in json.loads(ranges.read_text())["parts"]] == [
        [0, 50_001],
        [50_001, 100_001],
        [100_001, None],
    ]
    assert ids(after) >= posts(*range(50_001, 120_001)), "a row is missing"
    assert len(ids(after)) == after.manifest["sources"][0]["kept"], "a row came twice"


def test_password_is_nowhere_in_the_store_and_in_no_output(postgres: Server, tmp_path: Path) -> None:
    empty(postgres)
    fill(postgres, 1, 9)
    recipe, store = tmp_path / "recipe.toml", tmp_path / "store"
    recipe.write_text(RECIPE)
    said = b""
    for url in (postgres.url(), postgres.url(database="none"), postgres.url(password=PASSWORD + "x")):
        words = command(recipe, store, "--refresh", "--debug")
        done = subprocess.run(words, env={**os.environ, VARIABLE: url}, capture_output=True)
        said += done.stdout + done.stderr
    assert said.count(b"cannot read the database") >= 2 and b"manifest" in said
    written = [path.read_bytes() for path in store.rglob("*") if path.is_file()]
    assert len(written) > 10
    for secret in (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), json.dumps(PASSWORD)[1:-1]):
        for text in (said, *written):
            assert secret.encode() not in text


def _read(store: Path) -> dict[str, int]:
    files = (store / "stages" / "read").glob("*/[!.]*.arrow")
    return {path.name: path.stat().st_mtime_ns for path in files}
