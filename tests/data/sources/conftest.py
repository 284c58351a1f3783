"""The servers that the tests of SQL sources read from, and one database after another of all three kinds."""

from pathlib import Path

import pytest
from making_mariadb import mariadb  # noqa: F401 (a fixture)
from making_postgres import Server, postgres  # noqa: F401 (a fixture)
from making_sql import VARIABLE, Database


def of_kind(kind: str, request: pytest.FixtureRequest, folder: Path) -> Database:
    if kind == "sqlite":
        return Database(kind, folder, None)
    server: Server = request.getfixturevalue({"postgresql": "postgres", "mysql": "mariadb"}[kind])
    request.getfixturevalue("monkeypatch").setenv(VARIABLE, server.url())
    return Database(kind, folder, server)


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return of_kind(request.param, request, tmp_path)


@pytest.fixture(params=["postgresql", "mysql"])
def on_server(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return of_kind(request.param, request, tmp_path)


@pytest.fixture
def on_postgres(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return of_kind("postgresql", request, tmp_path)


@pytest.fixture
def on_mariadb(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return of_kind("mysql", request, tmp_path)


@pytest.fixture
def in_file(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return of_kind("sqlite", request, tmp_path)
