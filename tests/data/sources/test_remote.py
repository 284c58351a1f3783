"""Objects in a store: read like files, from a real S3 server on loopback, written by another library."""

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from reading import outcome, read_all, read_parts, source_of

from bessemer.data.sources import remote
from bessemer.data.sources.documents import documents, source_inputs
from bessemer.data.sources.inputs import find_inputs
from bessemer.data.tokens.shards import ShardWriter
from bessemer.errors import DataError

KEY, SECRET = "AKIAEXAMPLEKEY", "example/secret+of+40+letters"
TEXTS = [f"Text {number} of a store, é, with more in it." for number in range(60)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty bucket `data`; the environment names its server and keys as users do."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
    client.create_bucket(Bucket="data")
    yield client
    client.close()


def ask_for_keys(address: str, from_request: float) -> None:
    headers = {"Content-Type": "text/plain"}
    data = str(from_request).encode()
    urlopen(Request(f"{address}/moto-api/reset-auth", data=data, headers=headers, method="POST")).close()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), sink, row_group_size=7)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "text", "huggingface"])
def test_objects_give_what_files_give(store: Any, tmp_path: Path, kind: str) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    content = {
        "jsonl": lines.encode(),
        "csv": ("text\n" + "".join(f'"{text}"\n' for text in TEXTS)).encode(),
        "parquet": parquet(),
        "text": lines.encode(),
        "huggingface": parquet(),
    }[kind]
    ending = "parquet" if kind == "huggingface" else kind
    (tmp_path / "docs/sub").mkdir(parents=True)
    for name, data in ((f"a.{ending}", content), (f"sub/b.{ending}", content)):
        (tmp_path / "docs" / name).write_bytes(data)
        store.put_object(Bucket="data", Key=f"docs/{name}", Body=data)
    if kind in ("jsonl", "csv", "text"):
        (tmp_path / "docs/c").write_bytes(gzip.compress(content))
        store.put_object(Bucket="data", Key="docs/c", Body=gzip.compress(content))
    local, far = read_all(tmp_path, kind, "docs"), read_all(tmp_path, kind, "s3://data/docs")
    assert outcome(far) == outcome(local) and len(far) > 2
    assert [row.id for row in far] == [f"s3://data/{row.id}" for row in local]
    assert read_parts(tmp_path, source_of(kind, "s3://data/docs"), 300)[1] == far


def test_ready_tokens_are_read_from_a_store(store: Any, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", 1000) as shard:
        for tokens in ([1, 2], [], [3]):
            shard.add(tokens)
    for suffix in ("bin", "idx"):
        store.put_object(Bucket="data", Key=f"t/a.{suffix}", Body=(tmp_path / f"a.{suffix}").read_bytes())
    for path in ("s3://data/t", "s3://data/t/a.idx"):
        assert outcome(read_all(tmp_path, "tokens", path)) == [[1, 2], [], [3]]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("s3://data", ["a/1.txt", "a/2.txt", "a/b/3.txt", "top.txt"]),
        ("s3://data/a", ["a/1.txt", "a/2.txt", "a/b/3.txt"]),
        ("s3://data/a/", ["a/1.txt", "a/2.txt", "a/b/3.txt"]),
        ("s3://data/a/*", ["a/1.txt", "a/2.txt"]),
        ("s3://data/a/**", ["a/1.txt", "a/2.txt", "a/b/3.txt"]),
        ("s3://data/**/*.txt", ["a/1.txt", "a/2.txt", "a/b/3.txt", "top.txt"]),
        ("s3://data/a/[2-9].txt", ["a/2.txt"]),
        ("s3://data/*/b/?.txt", ["a/b/3.txt"]),
        ("s3://data/a/1.txt", ["a/1.txt"]),
    ],
)
def test_path_is_an_object_a_folder_or_a_glob(store: Any, path: str, names: list[str]) -> None:
    for name in ("top.txt", "a/1.txt", "a/2.txt", "a/b/3.txt", "a/.hidden/4.txt", ".5.txt"):
        store.put_object(Bucket="data", Key=name, Body=name.encode())
    found = remote.find_objects("it", path)
    assert [entry.name for entry in found] == [f"s3://data/{name}" for name in names]
    assert len({entry.xxh3_128 for entry in found}) == len(found)
    assert found == find_inputs("it", path, Path("/elsewhere"))


def test_object_that_changed_since_it_was_listed_is_an_error(store: Any, tmp_path: Path) -> None:
    store.put_object(Bucket="data", Key="a.txt", Body=b"first")
    source = source_of("text", "s3://data/a.txt")
    inputs = source_inputs(source, tmp_path)
    store.put_object(Bucket="data", Key="a.txt", Body=b"another")
    assert source_inputs(source, tmp_path)[0].xxh3_128 != inputs[0].xxh3_128
    with pytest.raises(DataError, match=r"s3://data/a.txt changed while"):
        list(documents(source, inputs))
    store.delete_object(Bucket="data", Key="a.txt")
    with pytest.raises(DataError, match=r"s3://data/a.txt changed while"):
        list(documents(source, inputs))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("s3://data/none", "no object at s3://data/none"),
        ("s3://data/*.none", "no object at"),
        ("s3://other/none", "no object at"),
        ("s3://", "names no bucket"),
        ("s3://name:secret@data/a", "must not hold keys"),
    ],
)
def test_path_without_an_object_is_told(store: Any, path: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        remote.find_objects("it", path)
    assert "secret@" not in str(caught.value)


def test_store_refuses_without_keys_and_names_what_to_set(
    store: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_object(Bucket="data", Key="a.txt", Body=b"private")
    ask_for_keys(address, from_request=0)
    try:
        for names in ((), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")):
            for name in names:
                monkeypatch.delenv(name)
            with pytest.raises(DataError, match=r"cannot read s3://data/a.txt") as caught:
                remote.find_objects("it", "s3://data/a.txt")
            text = str(caught.value)
            assert "AWS_ACCESS_KEY_ID" in text and KEY not in text and SECRET not in text
    finally:
        ask_for_keys(address, from_request=float("inf"))


def test_server_that_is_not_there_is_told_within_seconds(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://name:secret@127.0.0.1:9")
    with pytest.raises(DataError, match="cannot read s3://data/a") as caught:
        remote.find_objects("it", "s3://data/a")
    assert "secret" not in str(caught.value)


def test_google_store_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    (tmp_path / "store/docs").mkdir(parents=True)
    (tmp_path / "store/docs/a.jsonl").write_bytes(lines)
    (tmp_path / "store/docs/b.jsonl").write_bytes(gzip.compress(lines))
    command = [sys.executable, str(Path(__file__).parent / "google_store.py"), str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{int(server.stdout.readline())}")
            for path in ("gs://data/docs", "gs://data/docs/*.jsonl"):
                assert outcome(read_all(tmp_path, "jsonl", path)) == TEXTS * 2
            with pytest.raises(DataError, match="no object at gs://data/none"):
                remote.find_objects("it", "gs://data/none")
        finally:
            server.kill()


def test_keys_are_taken_out_of_what_a_store_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = remote.without_secrets(f"{KEY} signed with {SECRET} at http://me:word@host/x")
    assert text == "*** signed with *** at http://***@host/x"
