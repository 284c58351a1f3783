"""Documents from databases: SQLite files, PostgreSQL, MySQL and MariaDB; read in parts, nothing written.

A part is a range of keys with about `_ROWS_A_PART` rows (sql_ranges); without a key (`split_by`, or a primary
key of one whole number) all is one part. Only the columns for text, id and group are read, and the key.

What is promised: each part is one consistent state of the database, and each row comes at most once as long
as keys do not change. Parts are read one after another or in parallel, each in a transaction of its own: rows
that are inserted or deleted between the first and the last may or may not be seen. The hash of a server's
Input is that of what is asked, not of the rows: what was read is kept until the user asks to read it again.
A row without an id of its own is named by its key: `postgresql:posts:17`, and `…:17#2` the second one of it.
Cost, of 100,000 rows of 3 kB and per CPU second here: PostgreSQL 143,000 rows or 429 MB, MariaDB 103,000 rows
or 310 MB; cutting 2,000,000 short rows into parts takes 0.4 s and 0.9 s.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import xxhash

from bessemer.data.sources.inputs import check_unchanged, find_inputs
from bessemer.data.sources.parts import Document, Input, Part, Record, Wanted, wanted_columns
from bessemer.data.sources.sql_address import Address, file_address, server_address
from bessemer.data.sources.sql_ranges import ranges, rows_of
from bessemer.data.sources.sql_session import session, told
from bessemer.data.sources.sql_tables import names_of, selection
from bessemer.data.sources.values import MISSING, usable_label, usable_text
from bessemer.errors import DataError
from bessemer.recipe.schema import Source

_ROWS_A_PART = 50_000


def sql_inputs(source: Source, base: Path) -> list[Input]:
    return database_inputs(wanted_columns(source), source.path, base)


def database_inputs(wanted: Wanted, path: str | None, base: Path) -> list[Input]:
    """SQLite files by their content; of a server, what is asked of it. No server is reached here."""
    if wanted.url_env is None:
        return find_inputs(wanted.what, path or "", base)
    return [_server_input(wanted, server_address(wanted.what, wanted.url_env))]


def sql_parts(source: Source, inputs: list[Input], rows_a_part: int = _ROWS_A_PART) -> list[Part]:
    """Ranges of keys that hold all rows, or the first `source.limit` ones."""
    wanted = wanted_columns(source)
    parts: list[Part] = []
    for entry in inputs:
        address = _address(wanted, entry)
        left = None if source.limit is None else source.limit - sum(part.most_rows or 0 for part in parts)
        cut = _parts(wanted, entry, address, rows_a_part, left)
        parts += told(wanted.what, address, wanted.query, cut)
    return parts


def read_sql(source: Source, part: Part) -> Iterator[Document]:
    """Every row of the part, in order of its key. A row that is no document comes with the reason."""
    for place, row, is_json in _told_rows(wanted_columns(source), part):
        yield _document(source, place, row, is_json)


def read_sql_records(wanted: Wanted, part: Part) -> Iterator[Record]:
    """The same rows with whatever is in their fields: JSON is taken apart by the database's driver."""
    for place, row, _ in _told_rows(wanted, part):
        values = row[: len(wanted.columns)]
        filled = tuple(MISSING if value is None else _plain(value) for value in values)
        yield Record(place, filled, sum(map(_num_bytes, values)))


def columns_of(wanted: Wanted, entry: Input) -> list[str]:
    """The names of all columns that the table or query has."""
    address = _address(wanted, entry)

    def names() -> Iterator[str]:
        with session(address) as connection:
            yield from names_of(wanted, address.shown, connection)

    return list(told(wanted.what, address, wanted.query, names()))


def _told_rows(wanted: Wanted, part: Part) -> Iterator[tuple[str, tuple[Any, ...], list[bool]]]:
    entry = part.inputs[0]
    address = _address(wanted, entry)
    for place, row, is_json in told(wanted.what, address, wanted.query, _rows(wanted, part, address)):
        yield f"{entry.name}:{place}", row, is_json
    if address.kind == "sqlite":
        check_unchanged(entry, wanted.what)


def _server_input(wanted: Wanted, address: Address) -> Input:
    asked = (address.public, wanted.table, wanted.query, *wanted.asked)
    name = wanted.table
    if wanted.query is not None:
        name = f"query-{xxhash.xxh32_hexdigest(wanted.query.encode())}"
    digest = xxhash.xxh3_128_hexdigest(repr(asked).encode())
    return Input(Path(), f"{address.kind}:{name}", 0, 0, digest, url=address.shown)


def _address(wanted: Wanted, entry: Input) -> Address:
    """Of an input, checked to be what it was when the inputs were listed."""
    if wanted.url_env is None:
        if entry.url is not None:
            raise _not_here(wanted.what, entry.url)
        check_unchanged(entry, wanted.what)
        return file_address(entry.path)
    address = server_address(wanted.what, wanted.url_env)
    asked = _server_input(wanted, address)
    if (asked.at(entry.reading) if entry.reading else asked).xxh3_128 != entry.xxh3_128:
        raise DataError(
            f"{wanted.what}: another database than when its parts were listed",
            found=f"{wanted.url_env} names {address.shown}",
            wanted=f"{entry.url}, with the same table or query and columns",
            fix=f"set {wanted.url_env} alike on all machines, then run the same command again",
        )
    return address


def _not_here(what: str, url: str) -> DataError:
    return DataError(
        f"{what}: a SQLite file must lie on this machine",
        found=url,
        wanted="a path: SQLite reads here and there in the file",
        fix="copy it here first, or read the database that it comes from through `url_env`",
    )


def _parts(
    wanted: Wanted, entry: Input, address: Address, rows_a_part: int, limit: int | None
) -> Iterator[Part]:
    with session(address) as connection:
        chosen = selection(wanted, address.shown, connection)
        for keys, first_row, most_rows in ranges(connection, chosen, wanted.what, rows_a_part, limit):
            yield Part((entry,), keys.begin or 0, keys.end, first_row, most_rows)


def _rows(wanted: Wanted, part: Part, address: Address) -> Iterator[tuple[str, tuple[Any, ...], list[bool]]]:
    """(place, values of the wanted columns, which of them are JSON)."""
    last_key, same_key = object(), 0
    with session(address) as connection:
        chosen = selection(wanted, address.shown, connection)
        for number, (row, is_json) in enumerate(rows_of(connection, chosen, part), part.first_row):
            place = str(number)
            if chosen.key is not None:
                key = row[-1]
                same_key = same_key + 1 if key == last_key else 1
                last_key = key
                place = _key_text(key) + (f"#{same_key}" if same_key > 1 else "")
            yield place, row[: len(chosen.columns)], is_json


def _key_text(key: Any) -> str:
    if key is None:
        return "null"
    return str(key) if type(key) is int else repr(key)


def _document(source: Source, place: str, row: tuple[Any, ...], is_json: list[bool]) -> Document:
    fields = iter(row)
    value = next(fields)
    text, error = (None, "not_text") if is_json[0] and value is not None else usable_text(value)
    own_id, id_error = (None, None) if source.id is None else usable_label(_plain(next(fields)))
    group, group_error = (None, None) if source.group is None else usable_label(_plain(next(fields)))
    error = error or id_error or group_error
    identity = own_id if own_id is not None else place
    num_bytes = sum(map(_num_bytes, row))
    text = text if error is None else None
    return Document(identity, group, num_bytes, text, None, error, own_id is not None)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


def _num_bytes(value: Any) -> int:
    """UTF-8 bytes of a field."""
    if value is None:
        return 0
    return len(value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass"))
