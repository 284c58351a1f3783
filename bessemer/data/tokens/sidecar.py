"""Where each document of a shard comes from: `<stem>.parquet`, one row a document, in the shard's order.

    source, id, group, licence, origin, language   text, null where unknown
    begin, tokens, bytes                           its first token and size in the shard; UTF-8 of its text
    …                                              whatever else the writer gives

Parquet, because people ask of it with DuckDB or pandas; never read while training (there a window would
cost 1,800 times what it costs in `.bin`). The bytes depend on the rows and on pyarrow's version, which
stands in the footer, and on nothing else: not on time, threads or machine.
Cost: 1 M rows a second to write, 40 bytes a row.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bessemer.data.tokens.shards import shard_file
from bessemer.durable import guard_write
from bessemer.errors import DataError

COLUMNS = ("source", "id", "group", "licence", "origin", "language", "begin", "tokens", "bytes")
_GROUP_ROWS = 65_536


def write_sidecar(
    stem: Path,
    rows: pa.Table | pa.RecordBatch,
    constant: Mapping[str, pa.Array | str | None],
    lengths: np.ndarray[Any, np.dtype[Any]],
) -> None:
    """`rows`: columns of the documents; `constant`: the same for all; `lengths`: tokens of each."""
    known = {name: rows.column(name) for name in rows.schema.names}
    for name, value in constant.items():
        known[name] = value if isinstance(value, pa.Array) else pa.array([value] * len(lengths), pa.string())
    known["begin"] = pa.array(np.cumsum(lengths, dtype=np.int64) - lengths)
    known["tokens"] = pa.array(lengths, pa.int32())
    names = [name for name in COLUMNS if name in known] + sorted(known.keys() - set(COLUMNS))
    table = pa.table({name: known[name] for name in names})
    path = shard_file(stem, ".parquet")
    guard_write(
        path,
        lambda: pq.write_table(
            table, path, compression="zstd", row_group_size=_GROUP_ROWS, store_schema=False
        ),
    )


def read_sidecar(stem: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows; only the named columns, or all."""
    path = _existing(stem)
    return pq.read_table(path, columns=None if columns is None else list(columns))


def read_row(stem: Path, number: int) -> dict[str, Any]:
    """What is known of one document. Raises IndexError beyond the last."""
    with pq.ParquetFile(_existing(stem)) as file:
        if not 0 <= number < file.metadata.num_rows:
            raise IndexError(f"document {number} of {file.metadata.num_rows}")
        group = file.read_row_group(number // _GROUP_ROWS)
        return dict(group.slice(number % _GROUP_ROWS, 1).to_pylist()[0])


def _existing(stem: Path) -> Path:
    path = shard_file(stem, ".parquet")
    if not path.is_file():
        raise DataError(
            f"{path} is missing",
            found="a shard that does not say where its documents come from",
            wanted="the file that was written with it",
            fix="prepare this data again: `bessemer data build`",
        )
    return path
