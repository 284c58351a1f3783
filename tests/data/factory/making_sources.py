"""One recipe with a source of every kind, and all that is known of each of its rows beforehand."""

import gzip
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from making_archives import chapter, epub, pdf, response, warc
from making_postgres import Server, connected
from moto.server import ThreadedMotoServer

SAVED = Path(__file__).parents[1] / "sources" / "saved"
VARIABLE, KEY, SECRET = "PROOF_DSN", "AKIAEXAMPLEKEY", "example/secret+of+40+letters"
WORDS = "iron steel coal slag blast converter ingot rail beam plate rivet forge anvil bellows furnace"


@dataclass
class Known:
    """Of a source: what each kept row must be, and how many are left out for which reason."""

    licence: str
    texts: dict[str, str]  # by id
    origins: dict[str, str] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)


def sentence(source: str, number: int) -> str:
    """Another one for each row, too short to be a passage."""
    known = WORDS.split()
    words = " ".join(known[(number * step + len(source)) % len(known)] for step in (1, 2, 4, 7))
    return f"The {source} number {number} says {words}."


def write_sources(folder: Path, server: Server, bucket: Any) -> dict[str, Known]:
    """Files, tables and objects of all kinds, and the recipe.toml over them."""
    known: dict[str, Known] = {}
    recipe = 'name = "all"\n[tokenizer]\nvocab = 400\n[data]\nvalidation = 0.25\n'
    for name, (more, write) in _SOURCES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        kind = more.split('"')[1]
        rows = {str(number): sentence(name, number) for number in range(5)}
        known[name] = write(folder, name, rows, server, bucket)
        known[name].licence = f"LicenseRef-{name}"
        recipe += f'[[data.source]]\nname = "{name}"\nlicence = "LicenseRef-{name}"\n{more}\n'
        assert kind in recipe
    (folder / "recipe.toml").write_text(recipe)
    return known


def _text(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    for key, text in rows.items():
        (folder / name / f"{key}.txt").write_text(text)
    (folder / name / "latin.txt").write_bytes(b"caf\xe9")
    (folder / name / "nothing.txt").write_text(" \n")
    (folder / name / "again.txt").write_text(rows["0"] + " ")
    texts = {f"{name}/{key}.txt": text for key, text in rows.items()}
    return Known("", texts, refused={"empty": 1, "dedup.exact": 1}, errors={"undecodable": 1})


def _code(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    for key, text in rows.items():
        (folder / name / f"{key}.py").write_text(f"# {text}\n")
    return Known("", {f"{name}/{key}.py": f"# {text}" for key, text in rows.items()})


def _html(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    for key, text in rows.items():
        (folder / name / f"{key}.html").write_text(f"<html><body><p>{text}</p></body></html>")
    return Known("", {f"{name}/{key}.html": text for key, text in rows.items()})


def _books(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    texts = dict(list(rows.items())[:4])
    for key, text in texts.items():
        content = epub({"a.xhtml": chapter(f"<p>{text}</p>")}) if key < "2" else pdf(text, title="On Rails")
        (folder / name / f"{key}.book").write_bytes(content)
    (folder / name / "locked.pdf").write_bytes(pdf("x", password="secret"))
    ids = {f"{name}/{key}.book": text for key, text in texts.items()}
    origins = {one: "On Steel" if one < f"{name}/2" else "On Rails" for one in ids}
    return Known("", ids, origins, errors={"encrypted": 1})


def _warc(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    pages = [response(int(key), f"<p>{text}</p>".encode()) for key, text in rows.items()]
    (folder / name / "a.warc.gz").write_bytes(warc(*pages, response(9, b"gone", status="404 Not Found")))
    origins = {key: f"http://www.host{key}.example/page" for key in rows}
    return Known("", rows, origins, errors={"http_status": 1})


def _lines(rows: dict[str, str]) -> bytes:
    lines = [json.dumps({"key": key, "body": text}) for key, text in rows.items()]
    return "\n".join([*lines, '{"key": "x", "body": 5}', '{"key": "y"}', "no JSON", ""]).encode()


def _jsonl(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    (folder / name / "a.jsonl.gz").write_bytes(gzip.compress(_lines(rows)))
    return Known("", rows, errors={"not_text": 1, "missing": 1, "unparsable": 1})


def _parquet(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    table = pa.table({"text": [*rows.values(), None], "id": [*map(int, rows), 9]})
    pq.write_table(table, folder / name / "a.parquet", row_group_size=2)
    return Known("", rows, errors={"missing": 1})


def _csv(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    lines = ["text", *(f'"{text}"' for text in rows.values()), '""']
    (folder / name / "a.csv").write_text("\n".join(lines) + "\n")
    texts = {f"{name}/a.csv:{number}": text for number, text in enumerate(rows.values(), 1)}
    return Known("", texts, refused={"empty": 1})


def _sqlite(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    with closing(sqlite3.connect(folder / name / "a.sqlite")) as connection:
        connection.execute("create table posts (number integer primary key, body text)")
        connection.executemany("insert into posts values (?, ?)", [*rows.items(), (9, None)])
        connection.commit()
    texts = {f"{name}/a.sqlite:{key}": text for key, text in rows.items()}
    return Known("", texts, errors={"missing": 1})


def _server(folder: Path, name: str, rows: dict[str, str], server: Server, *_: Any) -> Known:
    with connected(server) as connection:
        connection.execute("drop table if exists everything")
        connection.execute("create table everything (number bigint primary key, body text)")
        connection.cursor().executemany("insert into everything values (%s, %s)", [*rows.items(), (9, "")])
    return Known("", rows, refused={"empty": 1})


def _dataset(folder: Path, name: str, rows: dict[str, str], *_: Any) -> Known:
    shutil.rmtree(folder / name)
    shutil.copytree(SAVED, folder / name)
    train = {str(n): f"Row {n} of a saved data set, with {n * n} in it." for n in range(7)}
    return Known("", {**train, "100": "Held out one.", "101": "Held out two é."}, errors={"missing": 1})


def _store(folder: Path, name: str, rows: dict[str, str], server: Server, bucket: Any) -> Known:
    bucket.put_object(Bucket="data", Key="docs/a.jsonl", Body=_lines(rows))
    return Known("", rows, errors={"not_text": 1, "missing": 1, "unparsable": 1})


_SOURCES: dict[str, tuple[str, Any]] = {
    "texts": ('kind = "text"\npath = "texts"', _text),
    "sources": ('kind = "code"\npath = "sources/*.py"', _code),
    "pages": ('kind = "html"\npath = "pages"', _html),
    "books": ('kind = "books"\npath = "books"', _books),
    "crawl": ('kind = "warc"\npath = "crawl"', _warc),
    "lines": ('kind = "jsonl"\npath = "lines"\ntext = "body"\nid = "key"', _jsonl),
    "table": ('kind = "parquet"\npath = "table"\nid = "id"', _parquet),
    "sheet": ('kind = "csv"\npath = "sheet"', _csv),
    "file": ('kind = "sql"\npath = "file/a.sqlite"\ntable = "posts"\ntext = "body"', _sqlite),
    "server": (
        f'kind = "sql"\nurl_env = "{VARIABLE}"\ntable = "everything"\ntext = "body"\nid = "number"',
        _server,
    ),
    "saved": ('kind = "huggingface"\npath = "saved"\nid = "key"', _dataset),
    "bucket": ('kind = "jsonl"\npath = "s3://data/docs"\ntext = "body"\nid = "key"', _store),
}


@contextmanager
def s3_store() -> Iterator[tuple[Any, dict[str, str]]]:
    """An empty bucket `data`, and the environment that leads to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )
    client.create_bucket(Bucket="data")
    try:
        yield client, environment
    finally:
        client.close()
        server.stop()


def token_lines(rows: list[Any]) -> bytes:
    out = io.BytesIO()
    for row in rows:
        out.write(json.dumps({"tokens": row}).encode() + b"\n")
    return out.getvalue()
