"""Documents of tokens in Megatron-LM's format: an index `.idx` and the tokens `.bin` beside it.

    .idx: b"MMIDIDX\\0\\0", version u64 (1), type u8, sequences u64, entries u64,
          lengths int32[sequences] (tokens), pointers int64[sequences] (bytes into .bin),
          entries int64[entries] (the sequence at which each document begins, and behind them the end)

A document may be several sequences. All of the format's types are read, floats where they hold whole
numbers. Only the part of the index that a range of documents needs is read, so that a part of a large
file costs no more memory than one of a small one.
Cost: 48 M tokens/s a core, nearly all of it making Python's lists of them.
Source: megatron/core/datasets/indexed_dataset.py.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bessemer.data.sources import remote
from bessemer.data.sources.inputs import file_input, no_column, place_of
from bessemer.data.sources.parts import LARGEST_BYTES, Input, Part, Record, Wanted
from bessemer.data.sources.streams import open_plain
from bessemer.data.tokens.shards import HEADER, MAGIC, TYPES
from bessemer.errors import DataError

_TYPES: dict[int, Any] = {**TYPES, 6: np.float64, 7: np.float32}


class Index(NamedTuple):
    """What the head of an index says."""

    item: Any  # numpy's type of a token
    num_sequences: int
    num_documents: int


def with_tokens(what: str, inputs: Sequence[Input]) -> list[Input]:
    """Each index followed by its file of tokens, which is listed if it was not; others as they are."""
    files = {entry.name: entry for entry in inputs}
    listed: list[Input] = []
    for entry in inputs:
        stem = entry.name.removesuffix(".idx").removesuffix(".bin")
        if entry.name.endswith(".bin"):
            if f"{stem}.idx" not in files:
                raise _broken(what, entry, "a .bin without the .idx beside it", "both files of each pair")
        elif entry.name.endswith(".idx"):
            listed += [entry, files.get(f"{stem}.bin") or _tokens_of(what, entry)]
        else:
            listed.append(entry)
    return listed


def read_head(what: str, index: Input, tokens: Input) -> Index:
    """Checked against the sizes of both files."""
    with open_plain(index, what) as stream:
        head = stream.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise _broken(what, index, "it does not begin like one", "Megatron's MMIDIDX, version 1")
    _, version, code, num_sequences, num_entries = HEADER.unpack(head)
    if version != 1 or code not in _TYPES:
        raise _broken(
            what, index, f"version {version}, type {code}", f"version 1, a type of {sorted(_TYPES)}"
        )
    size = HEADER.size + 12 * num_sequences + 8 * num_entries
    if num_entries < 1 or index.size_bytes not in (size, size + num_sequences):  # modes may stand behind
        found = f"{index.size_bytes} bytes for {num_sequences} sequences and {num_entries} entries"
        raise _broken(what, index, found, f"{size} bytes")
    return Index(_TYPES[code], num_sequences, num_entries - 1)


def check_columns(wanted: Wanted, index: Input) -> None:
    """WrongColumns where more than tokens is wanted."""
    for name in wanted.columns[1:]:
        raise no_column(wanted.what, place_of(index), name, wanted.columns[:1])


def read_megatron(wanted: Wanted, part: Part) -> Iterator[Record]:
    """The documents `part.begin` to `part.end` of an index and its tokens."""
    check_columns(wanted, part.inputs[0])
    index, tokens = part.inputs
    head = read_head(wanted.what, index, tokens)
    end = head.num_documents if part.end is None else part.end
    with open_plain(index, wanted.what) as stream:
        borders = _numbers(stream, 12 * head.num_sequences + 8 * part.begin, np.int64, end - part.begin + 1)
        first, last = int(borders[0]), int(borders[-1])
        if first < 0 or last > head.num_sequences or (np.diff(borders) < 0).any():
            raise _broken(wanted.what, index, "documents out of order", "documents one after another")
        lengths = _numbers(stream, 4 * first, np.int32, last - first)
        pointers = _numbers(stream, 4 * head.num_sequences + 8 * first, np.int64, last - first)
    width = np.dtype(head.item).itemsize
    outside = (
        (lengths < 0) | (pointers < 0) | (pointers + lengths.astype(np.int64) * width > tokens.size_bytes)
    )
    if outside.any():
        found = f"{tokens.size_bytes} bytes, and an index that points beyond them"
        raise _broken(wanted.what, tokens, found, "the .bin that this .idx was written with")
    with open_plain(tokens, wanted.what) as stream:
        for number, (begin, stop) in enumerate(zip(borders[:-1] - first, borders[1:] - first, strict=True)):
            place = f"{index.name}:{part.first_row + number}"
            size = int(lengths[begin:stop].sum()) * width
            if size > LARGEST_BYTES:
                yield Record.failed(place, wanted, "too_large", size)
                continue
            pieces = [
                _read_at(stream, int(pointer), int(length), head.item)
                for pointer, length in zip(pointers[begin:stop], lengths[begin:stop], strict=True)
            ]
            yield Record(place, (np.concatenate(pieces) if pieces else np.zeros(0, head.item),), size)


def _numbers(stream: io.BufferedReader, place: int, item: Any, count: int) -> Any:
    """Of the index, behind its head."""
    return _read_at(stream, HEADER.size + place, count, item)


def _read_at(stream: io.BufferedReader, place: int, count: int, item: Any) -> Any:
    if stream.tell() != place:
        stream.seek(place)
    return np.frombuffer(stream.read(count * np.dtype(item).itemsize), dtype=item)


def _tokens_of(what: str, index: Input) -> Input:
    if index.url is not None:
        return remote.find_objects(what, index.url.removesuffix(".idx") + ".bin")[0]
    return file_input(what, index.path.with_suffix(".bin"), index.name.removesuffix(".idx") + ".bin")


def index_path(path_text: str, base: Path) -> str:
    """The path of an index where only the stem of its two files is named."""
    start = base / Path(path_text).expanduser()
    is_stem = not remote.is_remote(path_text) and not start.exists() and Path(f"{start}.idx").exists()
    return f"{path_text}.idx" if is_stem else path_text


def _broken(what: str, entry: Input, found: str, wanted: str) -> DataError:
    return DataError(
        f"{what}: {place_of(entry)} is no usable file of tokens",
        found=found,
        wanted=wanted,
        fix="write both files again with the tool that made them, or leave them out of `path`",
    )
