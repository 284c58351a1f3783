"""A read-only look at a database: one connection, one transaction, rows that come as they are read.

One transaction sees one state of the database (PostgreSQL, MySQL's InnoDB: repeatable read; SQLite: a read
lock) and can write nothing; a second statement behind a `;` is refused by the protocol. Rows come through a
server-side cursor, so memory holds `_ROWS_AT_ONCE` rows, never a table.
Not done: one state for parts that are read in parallel. That needs a session held open for as long as all of
them are read (`pg_export_snapshot`), which would not outlive a restart.

Every failure of a driver leaves here as a DataError with the secrets of the address hidden in its text, and
without the driver's own exception behind it, as `--debug` would print that one.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import psycopg
import pymysql
import pymysql.connections
from psycopg.types.string import TextLoader
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from bessemer.data.sources.sql_address import Address
from bessemer.errors import DataError

Item = TypeVar("Item")
# RuntimeError: PyMySQL lacks a package for the server's way to log in. TypeError: an unknown option in the
# address. OSError, ValueError: a host that is none, a certificate that is not there.
_FAILURES = (SQLAlchemyError, psycopg.Error, pymysql.MySQLError, sqlite3.Error,
             OSError, ValueError, TypeError, RuntimeError)  # fmt: skip
_ROWS_AT_ONCE = 100  # of PostgreSQL 429 MB per CPU second of ours; with 1,000, and their memory, 465
_CONNECT_TIMEOUT_S = 10
_SILENT_S = 3600  # a slow query may take long to give its first row
_JSON_TYPES = {"postgresql": {114, 3802}, "mysql": {245}, "sqlite": set[int]()}
_TEXT_TYPES = (0, 19, 25, 1042, 1043)  # PostgreSQL's unknown, name, text, bpchar, varchar
_QUERY_SHOWN = 500

_LOGIN = "check user and password in {variable}"
_REACH = "check host and port in {variable}, that the server runs, and that it lets this machine in"
_RIGHT = "let an administrator grant `select` on it to the user in {variable}"
_QUERY = "check `table`, `query` and the columns in the recipe; try the query with the database's own client"
_READ_ONLY = "write a query that only reads: one `select`"
_SLOW = "raise the server's time limit for this user, or name an indexed column as `split_by`"
# By SQLSTATE (PostgreSQL) and error number (MySQL, MariaDB); connecting to PostgreSQL only gives a text.
_FIXES: dict[str | int, str] = {
    "28P01": _LOGIN, "28000": _LOGIN, "3D000": "check the database's name in {variable}",
    "42P01": _QUERY, "42703": _QUERY, "42601": _QUERY, "42501": _RIGHT, "25006": _READ_ONLY, "57014": _SLOW,
    1045: _LOGIN, 1698: _LOGIN, 1049: "check the database's name in {variable}", 1044: _RIGHT, 1142: _RIGHT,
    1143: _RIGHT, 1146: _QUERY, 1054: _QUERY, 1064: _QUERY, 1792: _READ_ONLY, 1969: _SLOW, 3024: _SLOW,
    2003: _REACH, 2013: _REACH, 2006: _REACH,
}  # fmt: skip
_FIXES_BY_TEXT = {
    "password authentication failed": _LOGIN,
    "no password supplied": _LOGIN,
    "does not exist": "check user and database in {variable}",
    "no pg_hba.conf entry": _REACH,
    "connection": _REACH,
    "resolve": _REACH,
    "timeout": _REACH,
    "cryptography": "install it: pip install cryptography",
    "keyword argument": "remove that option from {variable}",
}


@contextmanager
def session(address: Address) -> Iterator[Connection]:
    """A connection in a read-only transaction. Use it inside `told`."""
    engine = create_engine(address.url, poolclass=NullPool, **_engine_options(address))
    try:
        with engine.connect() as connection:
            _begin(address.kind, connection)
            yield connection
    finally:
        engine.dispose()


def select(connection: Connection, sql: str) -> tuple[Iterator[tuple[Any, ...]], list[str], list[bool]]:
    """(rows, names of columns, which of them are JSON). Rows are read from the server as they are taken."""
    # no_parameters: a % in the query is a %, and stays one.
    options = {"yield_per": _ROWS_AT_ONCE, "no_parameters": True}
    result = connection.exec_driver_sql(sql, execution_options=options)
    described = result.cursor.description if result.cursor is not None else []
    json_types = _JSON_TYPES[connection.dialect.name]
    is_json = [column[1] in json_types for column in described]
    return _rows(connection, result), [column[0] for column in described], is_json


def one(connection: Connection, sql: str) -> Any:
    """The value of a query with at most one row; None where there is none."""
    rows, _, _ = select(connection, sql)
    values = [row[0] for row in rows]
    return values[0] if values else None


def told(what: str, address: Address, query: str | None, rows: Iterator[Item]) -> Iterator[Item]:
    """The same rows; a failure of the driver on the way becomes a DataError that holds no secret."""
    failure = None
    try:
        yield from rows
    except _FAILURES as error:
        failure = _explained(what, address, query, error)
    if failure is not None:  # raised here, outside: as its __context__ the driver's exception would stay
        raise failure


def _rows(connection: Connection, result: Any) -> Iterator[tuple[Any, ...]]:
    is_read = False
    try:
        yield from result
        is_read = True
    finally:
        unread = getattr(result.cursor, "_result", None)
        if not is_read and isinstance(unread, pymysql.connections.MySQLResult):
            # PyMySQL would read all other rows first: of a large table, or from a server that is gone.
            unread.unbuffered_active = False
            connection.invalidate()
        result.close()


def _engine_options(address: Address) -> dict[str, Any]:
    if address.kind == "sqlite":
        path = Path(address.url.database or "")
        return {"creator": lambda: _open_file(path)}
    given = address.url.query
    timeout_s = int(str(given.get("connect_timeout", _CONNECT_TIMEOUT_S)))
    if address.kind == "postgresql":
        # A server that vanished is noticed after a minute, not after the two hours of Linux.
        options = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        options = {name: value for name, value in options.items() if name not in given}
        return {"connect_args": {**options, "connect_timeout": timeout_s, "client_encoding": "UTF8"}}
    options = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "local_infile": False}
    # client_flag: MULTI_STATEMENTS would let a query hold a second one, which could begin to write.
    # As bytes: PyMySQL would encode a text as Latin-1, and fail with others.
    password = (address.url.password or "").encode()
    login = {"password": password} if password else {}
    return {"connect_args": {**options, **login, "client_flag": 0}}


def _open_file(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)
    # TEXT that is not UTF-8 becomes lone surrogates; a BLOB stays bytes, which are no text.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def _begin(kind: str, connection: Connection) -> None:
    if kind == "sqlite":
        connection.exec_driver_sql("begin")
    elif kind == "postgresql":
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # Between two fetches the reader may work for long; the server must not take it for idle.
        connection.exec_driver_sql("set local idle_in_transaction_session_timeout = 0")
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection), type(driver)
        if driver.info.parameter_status("server_encoding") == "SQL_ASCII":  # holds any bytes
            connection.exec_driver_sql(
                "set client_encoding to 'SQL_ASCII'"
            )  # UTF8 would make the server check
            for type_number in _TEXT_TYPES:
                driver.adapters.register_loader(type_number, _AnyBytesLoader)
    else:
        connection.execution_options(isolation_level="REPEATABLE READ")
        driver = connection.connection.driver_connection
        assert isinstance(driver, pymysql.Connection), type(driver)
        # PyMySQL has one time limit for the greeting of a silent server and for the rows of a slow query.
        assert driver._read_timeout is not None, "renamed in PyMySQL"
        driver._read_timeout = _SILENT_S
        connection.exec_driver_sql(f"set session net_write_timeout = {_SILENT_S}")  # 60 s: as PostgreSQL's
        connection.exec_driver_sql("start transaction with consistent snapshot, read only")


class _AnyBytesLoader(TextLoader):
    def load(self, data: Any) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


def _explained(what: str, address: Address, query: str | None, error: Exception) -> DataError:
    driver_error = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    numbered = isinstance(driver_error, pymysql.MySQLError) and len(driver_error.args) > 1
    text = str(driver_error.args[1]) if numbered else str(driver_error)
    found = " ".join(address.hidden(text).split()) or type(driver_error).__name__
    if query is not None:
        shown = " ".join(address.hidden(query).split())  # hidden first: what is cut off would not be found
        found += f"; query: {shown[:_QUERY_SHOWN]}" + ("…" if len(shown) > _QUERY_SHOWN else "")
    wanted = "a database that can be reached and read, and a query that it understands"
    if address.kind == "sqlite":
        wanted = "a SQLite database that is not being written to, and a query that it understands"
    fix = "check `path`, `table` and `query`; try the query with `sqlite3`"
    if address.variable is not None:
        fix = _fix(driver_error, text).format(variable=address.variable)
    problem = f"{what}: cannot read the database {address.shown}"
    return DataError(problem, found=found, wanted=wanted, fix=fix)


def _fix(error: BaseException, text: str) -> str:
    code = (
        error.args[0] if error.args and isinstance(error.args[0], int) else getattr(error, "sqlstate", None)
    )
    if isinstance(code, str | int) and code in _FIXES:
        return _FIXES[code]
    known = (fix for words, fix in _FIXES_BY_TEXT.items() if words in text)
    return next(known, f"check {{variable}}; {_QUERY}")
