"""Files that hold one array: their elements are Python's own, however the file is cut into blocks."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from bessemer.data.sources import json_array
from bessemer.data.sources.inputs import file_input
from bessemer.data.sources.parts import Part, Record, Wanted
from bessemer.data.sources.records import columns_of, read_records
from bessemer.data.sources.values import MISSING
from bessemer.errors import DataError

WANTED = Wanted("finetune.data", "json", ("a", "b"), any_type=True)
ROWS: list[dict[str, Any]] = [
    {"a": 'brackets ]}[{, quotes " and \\ and \\u0041 \\', "b": None},
    {"b": [1, [2, {"c": "]"}], -3.5e-7], "a": "ü € 😀 \u2028\n\t"},
    {"a": "", "b": True, "c": {"a": 1}},
    {},
    {"a": "x" * 100, "b": {"y": ["z"] * 5}},
]


def records_of(folder: Path, content: bytes, name: str = "rows.json") -> list[Record]:
    (folder / name).write_bytes(content)
    entry = file_input("finetune.data", folder / name, name)
    return list(json_array.read_array(WANTED, Part((entry,))))


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_elements_are_those_of_the_standard_library_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only)
    for size in (1, 2, 3, 5, 7, 11, 64, 1 << 20):
        monkeypatch.setattr(json_array, "_BLOCK_BYTES", size)
        for mark in (b"", b"\xef\xbb\xbf\r\n "):
            found = records_of(tmp_path, mark + text.encode() + b"\n")
            wanted = [tuple(row.get(name, MISSING) for name in ("a", "b")) for row in json.loads(text)]
            assert [record.values for record in found] == wanted and all(one.error is None for one in found)
            assert [record.place for record in found] == [f"rows.json:{n}" for n in range(1, 6)]
    sizes = [len(json.dumps(row, ensure_ascii=ascii_only).encode()) for row in ROWS]
    assert indent or [record.num_bytes for record in found] == sizes


BROKEN = [
    '{"a": "no colon" 1}',
    '{"a": 1,}',
    "{'a': 1}",
    '{"a": "line\nend"}',
    '{"a": "bad \\x escape"}',
    '{"a": 1} {"a": 2}',
    "nothing",
    "12",
    '"text"',
    '["a"]',
    "",
    '{"a": [1, 2}]}',
]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_element_that_breaks_the_rules_is_one_error_row_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, size: int
) -> None:
    monkeypatch.setattr(json_array, "_BLOCK_BYTES", size)
    found = records_of(tmp_path, f'[{{"a": 1}},\n{broken}, {{"a": 3}}]'.encode())
    assert [(one.place, one.error, one.values[0]) for one in found] == [
        ("rows.json:1", None, 1),
        ("rows.json:2", "unparsable", MISSING),
        ("rows.json:3", None, 3),
    ]


def test_bytes_that_are_no_utf_8_stay_in_their_element(tmp_path: Path) -> None:
    first, second = records_of(tmp_path, b'[{"a": "\xff"}, {"a": "b"}]')
    assert first.values[0] == "\udcff" and second.values[0] == "b"


@pytest.mark.parametrize(
    ("content", "found", "fix"),
    [
        ('{"a": 1}\n{"a": 2}\n', "JSON lines", 'kind = "jsonl"'),
        ('{"version": 1, "data": [{"a": 1}]}', "an object with version, data", "list of rows"),
        ("a,b\n1,2\n", "text that begins with 'a,b", "list of rows"),
        ("", "an empty file", "list of rows"),
        ('[{"a": 1}]\n[{"a": 2}]', "behind its array, in line 2", "files of their own"),
        ('[{"a": 1},\n{"a": 2},\n{"a": "cut', "element 3 begins in line 3 and has no end", "mend it"),
        ('[{"a": 1},\n{"a": "quote},\n{"a": 2}]', "element 2 begins in line 2 and has no end", "mend it"),
        ('[{"a": 1},\n', "element 2 begins in line 2", "mend it"),
        ('[{"a": 1}', "element 1 begins in line 1", "mend it"),
        ("[", "element 1 begins in line 1", "mend it"),
    ],
)
def test_file_that_is_not_one_array_is_told_for_what_it_is(
    tmp_path: Path, content: str, found: str, fix: str
) -> None:
    with pytest.raises(DataError, match=r"rows\.json is not one array of JSON") as caught:
        records_of(tmp_path, content.encode())
    assert found in caught.value.found and fix in caught.value.fix and caught.value.exit_code == 65


def test_empty_array_has_no_row(tmp_path: Path) -> None:
    assert records_of(tmp_path, b" [ ]\n") == []


def test_packed_array_is_unpacked_and_one_that_is_cut_off_tells_where(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps([{"a": n, "b": str(n**9)} for n in range(20_000)]).encode())
    assert len(records_of(tmp_path, packed, "rows.json.gz")) == 20_000
    cut = records_of(tmp_path, packed[: len(packed) // 2], "rows.json.gz")
    assert 5_000 < len(cut) < 15_000 and [one.error for one in cut[-2:]] == [None, "truncated"]
    assert cut[-1].place == f"rows.json.gz:{len(cut)}"


def test_fields_of_an_array_are_those_of_its_first_object(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[1, {"b": 1, "a": {"c": 2}}]')
    entry = file_input("finetune.data", tmp_path / "rows.json", "rows.json")
    assert columns_of(WANTED, entry) == ["b", "a"]


def test_memory_holds_a_block_of_a_large_array(tmp_path: Path) -> None:
    with open(tmp_path / "large.json", "w", encoding="utf-8") as file:
        file.write("[" + ",\n".join(json.dumps({"a": f"{n} " * 200, "b": n}) for n in range(20_000)) + "]")
    entry = file_input("finetune.data", tmp_path / "large.json", "large.json")
    assert entry.size_bytes > 20e6
    tracemalloc.start()
    try:
        assert sum(record.values[1] for record in read_records(WANTED, entry)) == sum(range(20_000))
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
