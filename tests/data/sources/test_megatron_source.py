"""Megatron-LM's files of tokens as a source: of every type, from every path, and what is wrong with them."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from reading import outcome, read_all, read_parts, source_of

from bessemer.data.tokens.shards import ShardWriter
from bessemer.errors import DataError

TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}


def write(
    stem: Path, code: int, documents: Sequence[Sequence[Sequence[float]]], *, has_modes: bool = False
) -> None:
    """Written from the specification: documents of sequences of tokens."""
    sequences = [sequence for document in documents for sequence in document]
    item = np.dtype(TYPES[code])
    sizes = np.array([len(sequence) for sequence in sequences], dtype="<i4")
    pointers = (
        np.concatenate([[0], np.cumsum(sizes[:-1], dtype="<i8")]).astype("<i8")[: len(sizes)] * item.itemsize
    )
    entries = np.cumsum([0, *(len(document) for document in documents)]).astype("<i8")
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sizes), len(entries))
    modes = bytes(len(sizes)) if has_modes else b""
    stem.with_suffix(".idx").write_bytes(
        head + sizes.tobytes() + pointers.tobytes() + entries.tobytes() + modes
    )
    stem.with_suffix(".bin").write_bytes(b"".join(np.array(one, dtype=item).tobytes() for one in sequences))


DOCUMENTS = [[[1, 2, 3]], [[4], [5, 6]], [], [[]], [[7, 8, 9, 10]], [[11]]]
TOKENS = [[1, 2, 3], [4, 5, 6], [], [], [7, 8, 9, 10], [11]]


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("has_modes", [False, True])
def test_every_type_gives_its_documents(tmp_path: Path, code: int, has_modes: bool) -> None:
    write(tmp_path / "a", code, DOCUMENTS, has_modes=has_modes)
    rows = read_all(tmp_path, "tokens", "a.idx")
    assert outcome(rows) == TOKENS
    assert [row.id for row in rows] == [f"a.idx:{number}" for number in range(1, 7)]
    for size in (1, 5, 12, 40):
        assert read_parts(tmp_path, source_of("tokens", "a.idx"), size)[1] == rows


@pytest.mark.parametrize("path", ["folder", "folder/*", "folder/a", "folder/a.idx", "folder/a.*"])
def test_pair_is_read_once_however_it_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder/a", 8, DOCUMENTS)
    assert outcome(read_all(tmp_path, "tokens", path)) == TOKENS


def test_our_own_shards_are_such_files(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", 1000) as shard:
        for tokens in TOKENS:
            shard.add(tokens)
    assert outcome(read_all(tmp_path, "tokens", ".")) == TOKENS


def test_numbers_that_are_no_tokens_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a", 7, [[[1, 2.5]], [[float("nan")]], [[-1]], [[3]], [[float("inf")]], [[3e9]]])
    none = "not_tokens"
    assert outcome(read_all(tmp_path, "tokens", "a.idx")) == [none, none, none, [3], none, none]


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("a.bin", lambda data: data[:-1], "points beyond"),
        ("a.bin", None, "cannot read"),
        ("a.idx", None, "without the .idx"),
        ("a.idx", lambda data: data[:-8], "6 sequences and 7 entries"),
        ("a.idx", lambda data: data + b"123", "6 sequences and 7 entries"),
        ("a.idx", lambda data: b"", "does not begin"),
        ("a.idx", lambda data: b"X" + data[1:], "does not begin"),
        ("a.idx", lambda data: data[:9] + b"\2" + data[10:], "version 2"),
        ("a.idx", lambda data: data[:17] + b"\x63" + data[18:], "type 99"),
        ("a.idx", lambda data: data[:34] + b"\xff\xff\xff\xff" + data[38:], "points beyond"),
        ("a.idx", lambda data: data[:34] + b"\xff\xff\xff\x7f" + data[38:], "points beyond"),
        ("a.idx", lambda data: data[:-8] + b"\x70" + data[-7:], "out of order"),
        ("a.idx", lambda data: data[:-16] + b"\x70" + data[-15:], "out of order"),
    ],
)
def test_broken_pair_is_named_with_what_is_wrong(
    tmp_path: Path, file: str, change: object, told: str
) -> None:
    write(tmp_path / "a", 8, DOCUMENTS)
    path = tmp_path / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        read_all(tmp_path, "tokens", "a.idx" if file == "a.bin" else ".")
    assert told in str(caught.value)


def test_pair_has_no_column_for_an_id(tmp_path: Path) -> None:
    write(tmp_path / "a", 8, DOCUMENTS)
    with pytest.raises(DataError, match="has no column 'n'"):
        read_all(tmp_path, "tokens", "a.idx", 'id = "n"')


@pytest.mark.parametrize(
    ("code", "first"), [(8, 0x8B1F), (4, 0x8B1F), (4, 0x7D2FB528 & 0x7FFFFFFF), (8, 0xB528)]
)
def test_tokens_that_begin_as_packed_files_do_are_tokens(tmp_path: Path, code: int, first: int) -> None:
    write(tmp_path / "a", code, [[[first, 5]], [[6]]])
    assert outcome(read_all(tmp_path, "tokens", "a.idx")) == [[first, 5], [6]]
