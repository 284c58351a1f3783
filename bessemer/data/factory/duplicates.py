"""Which documents are refused as duplicates, and for which other: more rows than fit in memory, by DuckDB.

The lowest (priority, number) stays: priority 0 is held-out data, so that a copy of it in training data goes.
Exact: all with the same 128 bits but the lowest.
Near: documents that share a band are compared, by their sketches, with the lowest of that band, in order: one
that is `similarity` alike to a document, and to the one for which that was refused, if it was, is refused. So
whoever is refused is like the one that stays. Connected components, which others use, join chains of
versions whose ends have nothing in common: of 10,000 documents and 1,000 edited copies they refuse 2,532, of
which 72 % share half of their grams with the one that stays. Here, at 0.75: 1,461, of which 99.4 % share 0.70
and all share 0.65; 98 % of the copies are found either way. The rows alone decide, not their order, nor
threads, nor memory.
Cost: 24 M rows of which half are duplicates, 512 MiB allowed: 11 CPU-s, peak 0.70 GB of the process. Near:
4 CPU-s a million documents, and 4 bytes of memory each. On disk meanwhile: 60 bytes a row, near 300.
DuckDB writes into the folder given and nowhere else, and neither loads extensions nor opens other files. What
a killed process left there is removed by the next call.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bessemer.data.clean.minhash import similarity as similarity_of
from bessemer.data.duck import configure, explained
from bessemer.durable import guard_write

PAIRS = pa.schema([("number", pa.int64()), ("stays", pa.int64())])
_FIX = "allow the build more memory, or set data.clean.dedup to off"
_INSERT_ROWS = 1 << 17
_BLOCK_ROWS = 1 << 14  # pairs compared at once: at worst 4 KiB of file for each side are in memory, 128 MiB
# A rank is the priority above 56 bits of the number: one whole number to sort by.
_RANK = "(priority::BIGINT << 56) + number AS rank"
_EXACT = """
    SELECT rank % (1::BIGINT << 56) AS number, lowest % (1::BIGINT << 56) AS stays FROM rows JOIN
    (SELECT high, low, min(rank) AS lowest FROM rows GROUP BY high, low HAVING count(*) > 1)
    USING (high, low) WHERE rank <> lowest ORDER BY rank"""
_SHARE_A_BAND = """
    INSERT INTO pairs SELECT rank, place, other, other_place FROM rows JOIN
    (SELECT {band}, min(rank) AS other, arg_min(place, rank) AS other_place
    FROM rows GROUP BY {band} HAVING count(*) > 1) USING ({band}) WHERE rank <> other"""


def exact_duplicates(
    rows: Iterable[pa.RecordBatch], folder: Path, memory_bytes: int
) -> Iterator[pa.RecordBatch]:
    """PAIRS, by priority and number. rows: number int64, priority int8 (0 and up), high and low uint64."""
    with _database(folder / "duplicates.exact", memory_bytes) as database:
        database.execute("CREATE TABLE rows (rank BIGINT, high UBIGINT, low UBIGINT)")
        for table in _gathered(rows):
            _insert(database, table, f"{_RANK}, high, low")
        yield from _streamed(database.sql(_EXACT), _INSERT_ROWS, folder, memory_bytes)


def near_duplicates(
    rows: Iterable[pa.RecordBatch], folder: Path, memory_bytes: int, similarity: float
) -> Iterator[pa.RecordBatch]:
    """PAIRS, by priority and number. rows: number, priority, bands and sketch as `signatures` makes them.

    A row whose bands are null is like no other.
    """
    with _database(folder / "duplicates.near", memory_bytes) as database:
        path = folder / "duplicates.near" / "sketches"
        with open(path, "wb") as file:
            num_bands, width = _store_rows(database, rows, file)
        if num_bands == 0:
            return
        database.execute("CREATE TABLE pairs (rank BIGINT, place INTEGER, other BIGINT, other_place INTEGER)")
        for band in range(num_bands):
            database.execute(_SHARE_A_BAND.format(band=f"b{band}"))
        database.execute("DROP TABLE rows")
        pairs = database.sql(
            "SELECT DISTINCT rank, place, other, other_place FROM pairs ORDER BY rank, other"
        )
        yield from _refuse(_streamed(pairs, _BLOCK_ROWS, folder, memory_bytes), path, width, similarity)


def _store_rows(database: Any, rows: Iterable[pa.RecordBatch], file: BinaryIO) -> tuple[int, int]:
    """(bands, bytes of a sketch). Ranks and bands go into the database, numbers and sketches into the file.

    A row's place is its record in the file.
    """
    num_bands, width, place = 0, 0, 0
    for table in _gathered(rows):
        table = table.filter(table["bands"].is_valid()).combine_chunks()
        if table.num_rows == 0:
            continue
        if num_bands == 0:
            num_bands, width = table["bands"].type.list_size, table["sketch"].type.byte_width
            names = [f"b{band}" for band in range(num_bands)]
            columns = ", ".join(f"{name} UBIGINT" for name in names)
            database.execute(f"CREATE TABLE rows (rank BIGINT, place INTEGER, {columns})")
        bands = _fixed(table["bands"], np.dtype((np.uint64, num_bands)))
        records = np.empty(table.num_rows, dtype=_record(width))
        records["number"] = table["number"].to_numpy()
        records["sketch"] = _fixed(table["sketch"], np.dtype((np.uint8, width)))
        guard_write(Path(file.name), partial(file.write, records))
        guard_write(Path(file.name), file.flush)
        places = pa.array(np.arange(place, place + table.num_rows, dtype=np.int32))
        place += table.num_rows
        flat = table.select(["number", "priority"]).append_column("place", places)
        for name, column in zip(names, bands.T, strict=True):
            flat = flat.append_column(name, pa.array(column))
        _insert(database, flat, f"{_RANK}, place, {', '.join(names)}")
    return num_bands, width


def _refuse(
    pairs: Iterable[pa.RecordBatch], path: Path, width: int, similarity: float
) -> Iterator[pa.RecordBatch]:
    """Of candidate pairs by rank: `other`, the lower, is decided before anything asks for it."""
    num_rows = path.stat().st_size // _record(width).itemsize
    stays = np.full(num_rows, -1, dtype=np.int32)  # place of the one for which a row is refused
    for block in pairs:
        # Opened anew for each block: pages of the file that were read would count as our memory.
        records = np.memmap(path, dtype=_record(width), mode="r")
        place, other = block["place"].to_numpy(), block["other_place"].to_numpy()
        alike = similarity_of(records["sketch"][place], records["sketch"][other]) >= similarity
        refused = []
        for one, two in zip(place[alike].tolist(), other[alike].tolist(), strict=True):
            if stays[one] >= 0:
                continue
            if (root := int(stays[two])) >= 0:
                sketches = records["sketch"][[one, root]]
                if similarity_of(sketches[:1], sketches[1:])[0] < similarity:
                    continue
                two = root
            stays[one] = two
            refused.append(one)
        numbers = records["number"]
        columns = [pa.array(numbers[refused]), pa.array(numbers[stays[refused]])]
        del records, numbers
        if refused:
            yield pa.record_batch(columns, schema=PAIRS)


def _record(width: int) -> np.dtype[Any]:
    return np.dtype([("number", np.int64), ("sketch", np.uint8, (width,))])


def _fixed(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rows of a column of lists or bytes of one length, without nulls."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    if pa.types.is_fixed_size_list(array.type):
        return np.frombuffer(array.flatten().to_numpy(), dtype=dtype)
    return np.frombuffer(array.buffers()[1], dtype=dtype)[array.offset : array.offset + len(array)]


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Larger tables: an insert costs a millisecond, however few rows it has."""
    waiting: list[pa.RecordBatch] = []
    num_rows = 0
    for batch in batches:
        waiting.append(batch)
        num_rows += batch.num_rows
        if num_rows >= _INSERT_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting, num_rows = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _insert(database: Any, table: pa.Table, columns: str) -> None:
    """columns: names of our own, so nobody's text becomes SQL."""
    database.register("incoming", table)
    database.execute(f"INSERT INTO rows SELECT {columns} FROM incoming")  # noqa: S608
    database.unregister("incoming")


@contextmanager
def _database(folder: Path, memory_bytes: int) -> Iterator[Any]:
    """A database in a new `folder` that holds to `memory_bytes`; the folder is removed in the end."""
    shutil.rmtree(folder, ignore_errors=True)
    guard_write(folder, partial(folder.mkdir, parents=True))
    try:
        with duckdb.connect(str(folder / "rows.duckdb")) as database:
            configure(database, folder, memory_bytes, threads=2)
            database.execute("SET preserve_insertion_order = false")
            database.execute("SET enable_external_access = false")  # no file but those here; from here on
            database.execute("SET lock_configuration = true")
            yield database
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise explained(error, folder, memory_bytes, "find duplicates", _FIX) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _streamed(query: Any, num_rows: int, folder: Path, memory_bytes: int) -> Iterator[pa.RecordBatch]:
    """Batches of a result. What goes wrong with DuckDB meanwhile comes as an error of Arrow."""
    try:
        yield from query.to_arrow_reader(num_rows)
    except (pa.ArrowException, OSError) as error:
        raise explained(error, folder, memory_bytes, "find duplicates", _FIX) from error
