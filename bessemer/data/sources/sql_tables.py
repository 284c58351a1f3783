"""What is read of a database: the table or query, its columns, and the key that its rows are ordered by.

Names are found as SQL finds them: exactly, or else whatever their case. A table may be named with its schema
(`public.posts`), each part quoted or not. Of a table only the catalog is asked, never `select *`, so that a
user who may read some columns only can still read those; SQLAlchemy's reflection would need more rights
(MySQL's `show view`) and warns of every type that it does not know.
The key is `split_by`, or else the only column of the primary key where that holds whole numbers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from bessemer.data.sources.inputs import near
from bessemer.data.sources.parts import Wanted
from bessemer.data.sources.sql_session import select
from bessemer.errors import DataError

_NAMES_SHOWN = 50
_NAME_PARTS = re.compile(r'"(?:[^"]|"")*"|`(?:[^`]|``)*`|[^.]+')
# (schema, table) of tables and views: in the named schema, or else in those that need no name.
_TABLES = {
    "postgresql": """
        select n.nspname, c.relname from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p', 'v', 'm', 'f') and case when cast(:schema as text) is null
        then n.nspname = any (current_schemas(false)) else lower(n.nspname) = lower(:schema) end
        order by array_position(current_schemas(false), n.nspname), c.relname""",
    "mysql": """
        select table_schema, table_name from information_schema.tables
        where table_schema = coalesce(:schema, database()) order by table_name""",
    "sqlite": """
        select 'main', name from sqlite_master
        where type in ('table', 'view') and lower(coalesce(:schema, 'main')) = 'main' order by name""",
}
# (name, type, place in the primary key or 0) of columns, in their order.
_COLUMNS = {
    "postgresql": """
        select a.attname, t.typname, coalesce(array_position(i.indkey::int2[], a.attnum) + 1, 0)
        from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
        join pg_catalog.pg_class c on c.oid = a.attrelid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        left join pg_catalog.pg_index i on i.indrelid = c.oid and i.indisprimary
        where n.nspname = :schema and c.relname = :name and a.attnum > 0 and not a.attisdropped
        order by a.attnum""",
    "mysql": """
        select c.column_name, c.data_type, coalesce(k.ordinal_position, 0)
        from information_schema.columns c left join information_schema.key_column_usage k
        on k.table_schema = c.table_schema and k.table_name = c.table_name
        and k.column_name = c.column_name and k.constraint_name = 'PRIMARY'
        where c.table_schema = :schema and c.table_name = :name order by c.ordinal_position""",
    "sqlite": """
        select name, lower(type), pk from pragma_table_xinfo(:name, :schema)
        where hidden <> 1 order by cid""",
}
_WHOLE = {"int2", "int4", "int8", "tinyint", "smallint", "mediumint", "int", "integer", "bigint"}


@dataclass(frozen=True)
class Selection:
    """All names are quoted for SQL."""

    origin: str  # a table, or a query in brackets
    columns: tuple[str, ...]  # the wanted ones, in their order
    key: str | None  # rows are ordered and cut by it
    ties: tuple[str, ...]  # what orders rows of one key, or all rows where there is no key
    is_asked: bool  # the recipe names the key: it must be one


def selection(wanted: Wanted, shown: str, connection: Connection) -> Selection:
    """`shown` names the database in errors."""
    origin, names, primary, key = _origin(wanted, shown, connection)
    if wanted.split_by is not None:
        key = _column(wanted.split_by, names, wanted.what, shown)
    columns = tuple(_quoted(_column(name, names, wanted.what, shown), connection) for name in wanted.columns)
    ties = tuple(_quoted(name, connection) for name in primary if name != key)
    ordered = _quoted(key, connection) if key else None
    return Selection(origin, columns, ordered, ties, wanted.split_by is not None)


def names_of(wanted: Wanted, shown: str, connection: Connection) -> list[str]:
    """The columns of the table or query."""
    return _origin(wanted, shown, connection)[1]


def _origin(
    wanted: Wanted, shown: str, connection: Connection
) -> tuple[str, list[str], list[str], str | None]:
    """(table or query in brackets, its columns, those of the primary key, the key by which it can be cut)."""
    if wanted.query is not None:
        # The line break ends a comment in the query.
        origin = f"({wanted.query.strip().rstrip(';')}\n) as rows_of_query"
        rows, names, _ = select(connection, f"select * from {origin} limit 0")  # noqa: S608
        list(rows)
        return origin, names, [], None
    schema, table = _found_table(wanted.table or "", wanted.what, shown, connection)
    origin = f"{_quoted(schema, connection)}.{_quoted(table, connection)}"
    return origin, *_described(schema, table, connection)


def _quoted(name: str, connection: Connection) -> str:
    """Not SQLAlchemy's way, which doubles each % for queries with parameters."""
    mark = '"' if connection.dialect.name != "mysql" else "`"
    return mark + name.replace(mark, mark * 2) + mark


def _found_table(wanted: str, what: str, shown: str, connection: Connection) -> tuple[str, str]:
    """(schema, name) as the database writes them."""
    parts = [_unquoted(part) for part in _NAME_PARTS.findall(wanted)] or [""]
    tries: list[tuple[str | None, str]] = [(None, wanted)]  # a name may hold a dot
    if len(parts) == 1:
        tries.append((None, parts[0]))
    elif len(parts) == 2:
        tries.append((parts[0], parts[1]))
    names: list[str] = []
    for schema, name in tries:
        found = connection.execute(text(_TABLES[connection.dialect.name]), {"schema": schema}).all()
        names = [str(row[1]) for row in found] or names
        place = _place(name, [str(row[1]) for row in found])
        if place is not None:
            return str(found[place][0]), str(found[place][1])
    more = ", …" if len(names) > _NAMES_SHOWN else ""
    raise DataError(
        f"{what}: {shown} has no table {wanted!r}",
        found="its tables: " + (", ".join(names[:_NAMES_SHOWN]) or "none that this user may see") + more,
        wanted=f"a table or view named {wanted!r}",
        fix=near(parts[-1], names) + "Name another `table`, or write a `query`",
    )


def _described(schema: str, table: str, connection: Connection) -> tuple[list[str], list[str], str | None]:
    """(columns, columns of the primary key, the key by which it can be cut)."""
    parameters = {"schema": schema, "name": table}
    rows = connection.execute(text(_COLUMNS[connection.dialect.name]), parameters).all()
    primary = [str(row[0]) for row in sorted(rows, key=lambda row: int(row[2])) if row[2]]
    whole = {str(row[0]) for row in rows if row[1] in _WHOLE}
    key = primary[0] if len(primary) == 1 and primary[0] in whole else None
    return [str(row[0]) for row in rows], primary, key


def _unquoted(part: str) -> str:
    mark = part[0]
    return part[1:-1].replace(mark * 2, mark) if mark in '"`' and part[-1] == mark else part


def _place(name: str, known: Sequence[str]) -> int | None:
    if name in known:
        return list(known).index(name)
    lower = [one.lower() for one in known]
    return lower.index(name.lower()) if name.lower() in lower else None


def _column(name: str, known: list[str], what: str, shown: str) -> str:
    """As the database writes it."""
    place = _place(name, known)
    if place is not None:
        return known[place]
    raise DataError(
        f"{what}: {shown} has no column {name!r}",
        found="its columns: " + (", ".join(known) or "none that this user may read"),
        wanted=f"a column named {name!r}",
        fix=near(name, known) + "Name the columns of the table or query in the recipe",
    )
