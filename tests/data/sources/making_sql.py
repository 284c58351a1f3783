"""A database of each kind for the tests of SQL sources, filled and read in the same few words."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import making_mariadb
import making_postgres
from making import make

from bessemer.data.sources.parts import Document, Part
from bessemer.data.sources.sql import read_sql, sql_inputs, sql_parts
from bessemer.recipe.schema import Source

VARIABLE = "PROOF_DSN"


@dataclass(frozen=True)
class Database:
    kind: str
    folder: Path
    server: making_postgres.Server | None

    def run(self, *statements: str) -> None:
        with closing(self._connect()) as connection:
            for statement in statements:
                connection.cursor().execute(statement)
            if self.kind == "sqlite":
                connection.commit()

    def fill(self, table: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """A new table with these rows, in this order."""
        more = " cascade" if self.kind == "postgresql" else ""
        self.run(f"drop table if exists {table}{more}", f"create table {table} ({columns})")
        mark = "?" if self.kind == "sqlite" else "%s"
        with closing(self._connect()) as connection:
            if rows:
                marks = ", ".join([mark] * len(rows[0]))
                connection.cursor().executemany(f"insert into {table} values ({marks})", rows)
            if self.kind == "sqlite":
                connection.commit()

    def source(self, more: str) -> Source:
        origin = 'path = "a.sqlite"' if self.server is None else f'url_env = "{VARIABLE}"'
        return make(f'name = "db"\nkind = "sql"\n{origin}\n{more}').data.source[0]

    def parts(self, source: Source, rows_a_part: int = 50_000) -> list[Part]:
        return sql_parts(source, sql_inputs(source, self.folder), rows_a_part)

    def read(self, more: str, rows_a_part: int = 50_000) -> list[Document]:
        source = self.source(more)
        return [row for part in self.parts(source, rows_a_part) for row in read_sql(source, part)]

    def _connect(self) -> Any:
        if self.server is None:
            return sqlite3.connect(self.folder / "a.sqlite")
        making = making_postgres if self.kind == "postgresql" else making_mariadb
        return making.connected(self.server)


def texts(documents: list[Document]) -> list[str | None]:
    return [document.text for document in documents]


def errors(documents: list[Document]) -> list[str | None]:
    return [document.error for document in documents]
