"""Malformed files: each is counted with its file, its row and the reason, and costs bounded memory."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import outcome, read_all, reasons, source_of

from bessemer.data.sources import lines, rows_csv
from bessemer.data.sources.documents import source_inputs
from bessemer.data.sources.parts import Part
from bessemer.data.sources.records import Wanted
from bessemer.errors import DataError

# The same bytes in every run: what zeros in the middle of a packed file unpack to depends on its code tables,
# and with some of them they are copies of thousands of lines.
_DICE = random.Random(0)
ROWS = b"".join(
    json.dumps({"text": f"row {n} {_DICE.randbytes(30).hex()}"}).encode() + b"\n" for n in range(40_000)
)


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def parquet(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def mark(text: str) -> bytes:
    return text.encode("utf-16")


GOOD = parquet(text=["a", "b"])
BAD_UTF8 = parquet(text=pa.array([b"good", b"bad \xff", None], pa.binary()).view(pa.string()))
TWICE = b'{"text": "first", "text": "second"}'

# (kind, content, what comes out: texts, lists of tokens, or reasons)
CASES: list[tuple[str, bytes, list[Any]]] = [
    ("text", b"", [""]),
    ("text", b"\xef\xbb\xbf", [""]),
    ("text", b"\xef\xbb\xbfmarked\r\n", ["marked\n"]),
    ("text", b"nul \0 byte", ["binary"]),
    ("text", b"bad \xc3", ["undecodable"]),
    ("text", b"\xed\xa0\x80", ["undecodable"]),
    ("text", mark("wide é\r\n"), ["wide é\n"]),
    ("text", mark("wide")[:-1], ["undecodable"]),
    ("text", b"\xff\xfe\x00\xd8", ["undecodable"]),
    ("text", "wide".encode("utf-32"), ["binary"]),
    ("text", gzip.compress(b"packed"), ["packed"]),
    ("text", gzip.compress(b"one ") + gzip.compress(b"two"), ["one two"]),
    ("text", gzip.compress(b"packed")[:-4], ["truncated"]),
    ("text", b"\x1f\x8bno gzip at all", ["corrupt"]),
    ("text", zstd(b"packed"), ["packed"]),
    ("text", zstd(b"packed")[:-1], ["truncated"]),
    ("text", b"\x28\xb5\x2f\xfdno zstd at all", ["corrupt"]),
    ("text", gzip.compress(zstd(b"twice")), ["undecodable"]),
    ("html", b"<p>good</p>", ["good"]),
    ("jsonl", b"", []),
    ("jsonl", b"\n\n", ["", ""]),
    ("jsonl", b'{"text": "no line end"}', ["no line end"]),
    ("jsonl", b'{"text": "a\\r\\nb"}\r\n', ["a\nb"]),
    ("jsonl", b'{"text": "lone \\ud800"}', ["undecodable"]),
    ("jsonl", b'{"text": "bad \xff"}', ["undecodable"]),
    ("jsonl", b'{"text": "nul \\u0000"}', ["nul \0"]),
    ("jsonl", b'{"text": "cut', ["unparsable"]),
    ("jsonl", b"[" * 100_000, ["unparsable"]),
    ("jsonl", b'{"text":' * 100_000, ["unparsable"]),
    ("jsonl", b'["a list"]', ["unparsable"]),
    ("jsonl", b'{"text": ' + b"9" * 5000 + b"}", ["unparsable"]),
    (
        "jsonl",
        b'{"text": 5}\n{"text": ["a"]}\n{"text": null}\n{}',
        ["not_text", "not_text", "missing", "missing"],
    ),
    ("jsonl", TWICE, ["second"]),
    ("jsonl", mark('{"text": "wide"}'), ["undecodable"]),
    ("csv", b"", []),
    ("csv", b"text\n", []),
    ("csv", b'text\n"open\nfor ever', ["unparsable"]),
    ("csv", b'text\n"a"b\nnext', ["unparsable", "next"]),
    ("csv", b"text,n\n\xff,1\n", ["undecodable"]),
    ("csv", b"n,text\n1\n1,a,b\n", ["missing", "a"]),
    ("csv", b"text\na\rb\nc", ["unparsable", "c"]),
    ("parquet", GOOD, ["a", "b"]),
    ("parquet", b"", ["corrupt"]),
    ("parquet", b"no parquet at all", ["corrupt"]),
    ("parquet", GOOD[:-20], ["corrupt"]),
    ("parquet", GOOD[:4] + b"\xff" * 30 + GOOD[34:], ["corrupt"]),
    ("parquet", BAD_UTF8, ["good", "undecodable", "missing"]),
    ("tokens", b'[1, 2]\n{"tokens": [3]}\n\n[]', [[1, 2], [3], [], []]),
    (
        "tokens",
        b"[1, -2]\n[1.5]\n[true]\n[2147483648]\n7\n[1, null]",
        ["not_tokens"] * 4 + ["unparsable", "not_tokens"],
    ),
]


# Numbers as names: gzip puts the time into what it packs, and workers must name a test alike.
@pytest.mark.parametrize(("kind", "content", "wanted"), CASES, ids=range(len(CASES)))
def test_malformed_file_gives_rows_and_reasons(
    tmp_path: Path, kind: str, content: bytes, wanted: list[Any]
) -> None:
    (tmp_path / "a").write_bytes(content)
    rows = read_all(tmp_path, kind, "a")
    assert outcome(rows) == wanted
    places = ["a"] if kind in ("text", "html") else [f"a:{number}" for number in range(1, len(wanted) + 1)]
    assert [row.id for row in rows] == places
    assert all((row.text is None) + (row.tokens is None) + (row.error is None) == 2 for row in rows)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("break_", ["cut", "damage", "tail"])
def test_packed_lines_come_up_to_where_the_file_breaks(
    tmp_path: Path, pack: Callable[[bytes], bytes], break_: str
) -> None:
    packed = pack(ROWS)
    half = len(packed) // 2
    broken = {
        "cut": packed[:half],
        "damage": packed[:half] + b"\0" * 50_000 + packed[half + 50_000 :],
        "tail": packed + b"no more of it",
    }[break_]
    (tmp_path / "a.jsonl").write_bytes(broken)
    rows = read_all(tmp_path, "jsonl", "a.jsonl")
    assert rows[-1].error == ("truncated" if break_ == "cut" else "corrupt")
    assert rows[-1].id == f"a.jsonl:{len(rows)}"
    texts = [json.loads(line)["text"] for line in ROWS.splitlines()]
    expected = 40_000 if break_ == "tail" else 20_000
    good = [row.text for row in rows if row.text]
    assert good[: expected - 2000] == texts[: expected - 2000]
    assert len(rows) < expected + 2000  # damage is noticed a little late


def test_same_id_twice_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"text": "a", "id": 1}\n{"text": "b", "id": 1}\n', encoding="utf-8")
    assert [row.id for row in read_all(tmp_path, "jsonl", "a", 'id = "id"')] == ["1", "1"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_file_with_another_schema_is_one_error_among_many(tmp_path: Path, kind: str) -> None:
    table = {"text": ["good"], "other": ["x"]}
    for name, column in (("a", "other"), ("b", "text"), ("c", "other")):
        content = f"{column}\ngood\n".encode() if kind == "csv" else parquet(**{column: table[column]})
        (tmp_path / name).write_bytes(content)
    rows = read_all(tmp_path, kind, "[abc]")
    assert [(row.id, row.text, row.error) for row in rows] == [
        ("a", None, "wrong_columns"),
        ("b:1", "good", None),
        ("c", None, "wrong_columns"),
    ]


@pytest.mark.parametrize(
    ("kind", "content", "told"),
    [
        ("csv", b"texts,id\na,b\n", "did you mean 'texts'"),
        ("parquet", parquet(texts=["a"], id=[1]), "did you mean 'texts'"),
        ("parquet", parquet(text=[{"a": "nested"}]), "its type is struct"),
        ("parquet", parquet(text=[5]), "its type is int64"),
        ("tokens", b"", ""),
    ],
)
def test_columns_that_no_file_has_are_a_mistake_of_the_recipe(
    tmp_path: Path, kind: str, content: bytes, told: str
) -> None:
    name = "a.parquet" if kind == "tokens" else "a"
    (tmp_path / name).write_bytes(content or parquet(tokens=[[1.5]]))
    with pytest.raises(DataError) as caught:
        read_all(tmp_path, kind, name)
    assert told in str(caught.value) and "source 's'" in str(caught.value)


def test_parquet_reads_only_its_columns_and_all_types_of_text(tmp_path: Path) -> None:
    columns = {
        "text": pa.array(["a", None, "c\r\n"], pa.large_string()),
        "id": pa.array([1, 2, 3], pa.uint64()),
        "g": pa.array(["x", "y", "x"]).dictionary_encode(),
        "more": [[1.5], None, []],
    }
    (tmp_path / "a").write_bytes(parquet(**columns))
    rows = read_all(tmp_path, "parquet", "a", 'id = "id"\ngroup = "g"')
    assert [(row.id, row.group, row.text) for row in rows] == [
        ("1", "x", "a"),
        ("2", "y", None),
        ("3", "x", "c\n"),
    ]
    assert reasons(rows) == {None: 2, "missing": 1}
    assert outcome(read_all(tmp_path, "parquet", "a", 'text = "g"')) == ["x", "y", "x"]


@pytest.mark.parametrize("kind", [pa.list_(pa.uint16()), pa.large_list(pa.int64()), pa.list_(pa.int32(), 2)])
def test_parquet_gives_lists_of_tokens(tmp_path: Path, kind: pa.DataType) -> None:
    lists = pa.array([[1, 2], None, [3, 4]], kind)
    (tmp_path / "a.parquet").write_bytes(parquet(tokens=lists))
    assert outcome(read_all(tmp_path, "tokens", "a.parquet")) == [[1, 2], "missing", [3, 4]]
    if kind != pa.list_(pa.int32(), 2):
        odd = pa.array([[1], [None], [-1 if kind.value_type == pa.int64() else 1], []], kind)
        (tmp_path / "a.parquet").write_bytes(parquet(tokens=odd))
        third = "not_tokens" if kind.value_type == pa.int64() else [1]
        assert outcome(read_all(tmp_path, "tokens", "a.parquet")) == [[1], "not_tokens", third, []]


@pytest.mark.parametrize("most", [10, 30])
def test_long_rows_are_passed_over_and_the_next_ones_read(tmp_path: Path, most: int) -> None:
    long = "x" * 5_000_000
    (tmp_path / "a.jsonl").write_text(f'{{"a":1}}\n"{long}"\n{{"a":2}}\n"{long}', encoding="utf-8")
    (tmp_path / "a.csv").write_text(f'a\n1\n"{long}\n{long}"\n2\n"{long}', encoding="utf-8")
    for kind, reader in (("jsonl", lines.read_lines), ("csv", rows_csv.read_csv)):
        (entry,) = source_inputs(source_of(kind, f"a.{kind}"), tmp_path)
        records = list(reader(Wanted("it", kind, ["a"]), Part((entry,)), most))
        assert [record.error for record in records] == [None, "too_large", None, "too_large"]
        assert [int(record.values[0]) for record in records[::2]] == [1, 2]
        header = 2 if kind == "csv" else 0
        assert sum(record.num_bytes for record in records) + header == entry.size_bytes
        assert [record.place for record in records] == [f"a.{kind}:{number}" for number in range(1, 5)]


def test_line_of_millions_of_values_is_not_taken_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"[" + b"{}," * (9 << 20) + b"0]\n[1]\n")
    assert outcome(read_all(tmp_path, "tokens", "a")) == ["too_large", [1]]


HOSTILE = """
import sys
from pathlib import Path
from reading import read_all
rows = [row for kind in ("text", "jsonl", "csv") for row in read_all(Path(sys.argv[1]), kind, "*." + kind)]
lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would count the process that forked
peak_kb = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
print([row.error for row in rows], int(peak_kb) * 1024)
"""


def test_files_that_are_one_huge_row_take_no_more_memory_than_the_largest_row_may(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * (1 << 20), 1) * 300
    for name in ("a.text", "b.jsonl"):
        (tmp_path / name).write_bytes(bomb)
    for name in ("b.text", "a.csv"):
        with open(tmp_path / name, "wb") as file:
            file.write(b"text\n" if name == "a.csv" else b"")
            file.truncate(300 << 20 if name == "a.csv" else 1 << 30)  # a hole: no byte of it is on the disk
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    errors, peak = ran.stdout.rsplit(" ", 1) if ran.stdout else (ran.stderr, "0")
    assert errors == "['too_large', 'too_large', 'too_large', 'too_large']"
    assert int(peak) < 1_000_000_000
