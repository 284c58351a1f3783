"""Ranges of keys: where a table is cut into parts, and the queries that read one of them.

Borders are found by walking the key's index (`order by key limit 1 offset n`): one pass over that index, no
sort, no window function and no temporary table on the server (where `split_by` has no index, a sort of all
keys for each part: as reading such a part is a scan of all rows). Ranges hold about as many rows each
whatever the keys are (negative, sparse, of 64 bits, many rows of one key). The first range also takes the
rows whose key is NULL, the last one has no end (SQLite holds texts in columns of numbers, which sort after
all numbers), so that every row is in exactly one.
"""

# ruff: noqa: S608 (names in these queries are quoted, and all else is whole numbers)

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from bessemer.data.sources.parts import Part
from bessemer.data.sources.sql_session import one, select
from bessemer.data.sources.sql_tables import Selection
from bessemer.errors import DataError


@dataclass(frozen=True)
class KeyRange:
    """Keys from `begin`, before `end`. Without begin: also the rows without a key."""

    key: str | None
    begin: int | None
    end: int | None

    def conditions(self) -> list[str]:
        """A query each, one after another, as NULL sorts first in one database and last in the other."""
        if self.key is None:
            return ["1 = 1"]
        below = f"{self.key} < {self.end}" if self.end is not None else f"{self.key} is not null"
        if self.begin is None:
            return [f"{self.key} is null", below]
        return [f"{self.key} >= {self.begin} and {below}"]


def ranges(
    connection: Connection, chosen: Selection, what: str, rows_each: int, limit: int | None
) -> Iterator[tuple[KeyRange, int, int | None]]:
    """(range, number of its first row, most rows to read of it), of all rows or of the first `limit`."""
    borders: Iterator[int] = iter(())
    if chosen.key is not None:
        borders = _borders(connection, chosen, chosen.key, what, rows_each)
    first_row, begin, left = 1, None, limit
    while left is None or left > 0:
        keys = KeyRange(chosen.key, begin, next(borders, None))
        num_rows = rows_each  # about: more where many rows have one key
        if left is not None:
            num_rows = _count(connection, chosen, keys, left)
            left -= num_rows
        yield keys, first_row, None if limit is None else num_rows
        if keys.end is None:
            return
        first_row, begin = first_row + num_rows, keys.end


def rows_of(
    connection: Connection, chosen: Selection, part: Part
) -> Iterator[tuple[tuple[Any, ...], list[bool]]]:
    """Rows of the wanted columns, and last the key; with which of them are JSON."""
    keys = KeyRange(chosen.key, None if part.first_row == 1 else part.begin, part.end)
    own_key = () if chosen.key is None else (chosen.key,)
    columns = ", ".join((*chosen.columns, *own_key))
    order = f" order by {', '.join((*own_key, *chosen.ties))}" if own_key or chosen.ties else ""
    left = part.most_rows
    for condition in keys.conditions():
        limit = "" if left is None else f" limit {left}"
        rows, _, is_json = select(
            connection, f"select {columns} from {chosen.origin} where {condition}{order}{limit}"
        )
        for row in rows:
            yield row, is_json
            left = None if left is None else left - 1


def _borders(connection: Connection, chosen: Selection, key: str, what: str, rows_each: int) -> Iterator[int]:
    """The keys at which a range after the first one begins."""
    begin = one(connection, f"select min({key}) from {chosen.origin}")
    while begin is not None:
        if type(begin) is not int:
            if not chosen.is_asked:  # SQLite holds anything in a column of numbers; unasked, it is one part
                return
            raise _not_whole(what, key, begin)
        ahead = f"from {chosen.origin} where {key} >= {begin} order by {key} limit 1 offset {rows_each}"
        border = one(connection, f"select {key} {ahead}")
        if border == begin:  # more rows of one key than a range should have: they stay together
            border = one(connection, f"select min({key}) from {chosen.origin} where {key} > {begin}")
        if type(border) is int:
            yield border
        begin = border


def _not_whole(what: str, key: str, value: Any) -> DataError:
    return DataError(
        f"{what}: split_by names {key}, which is no column of whole numbers",
        found=f"the value {value!r}"[:100],
        wanted="whole numbers, by whose ranges the rows can be read in parts",
        fix="name another column, or leave `split_by` out",
    )


def _count(connection: Connection, chosen: Selection, keys: KeyRange, at_most: int) -> int:
    total = 0
    for condition in keys.conditions():
        rows = f"select 1 as one from {chosen.origin} where {condition} limit {at_most - total}"
        total += int(one(connection, f"select count(*) from ({rows}) as counted"))
    return total
