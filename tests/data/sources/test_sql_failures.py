"""What goes wrong with databases: each failure says what to do, none writes, and none shows a password."""

import socket
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from making_postgres import PASSWORD, Server, free_port
from making_sql import VARIABLE, Database, texts

from bessemer.data.sources import sql_session
from bessemer.data.sources.sql import read_sql, sql_inputs
from bessemer.errors import DataError
from bessemer.recipe.schema import Source

WRONG = "not the pass/word@%&é:#"
SPELLINGS = [
    spelling
    for word in (PASSWORD, WRONG)
    for spelling in (word, quote(word), quote(word, safe=""), quote_plus(word), repr(word)[1:-1])
]


def failure(database: Database, more: str = 'table = "posts"') -> DataError:
    """The error of reading it all; no form of the password is anywhere in it, nor in what --debug prints."""
    with pytest.raises(DataError) as caught:
        database.read(more)
    error = caught.value
    shown = [str(error), repr(error), "".join(traceback.format_exception(error)), caught.exconly()]
    link: BaseException | None = error
    while link is not None:
        shown += [str(link), repr(link), repr(link.args), repr(vars(link))]
        link = link.__cause__ or link.__context__
    for text in shown:
        for spelling in SPELLINGS:
            assert spelling not in text
    return error


def server(database: Database) -> Server:
    assert database.server is not None
    return database.server


@pytest.fixture
def posts(on_server: Database) -> Database:
    on_server.run("drop view if exists v_posts")
    on_server.fill("posts", "id int primary key, text text", [(1, "one"), (2, "two")])
    return on_server


def test_wrong_password_says_which_variable_to_look_at(
    posts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, server(posts).url(password=WRONG))
    error = failure(posts)
    assert "password" in error.found and f"user and password in {VARIABLE}" in error.fix
    assert f"owner@127.0.0.1:{server(posts).port}/proof" in error.problem


def test_unknown_user_and_database_are_told(posts: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, server(posts).url("nobody-here"))
    assert VARIABLE in failure(posts).fix
    monkeypatch.setenv(VARIABLE, server(posts).url(database="nothing"))
    error = failure(posts)
    assert "nothing" in error.found and "database" in error.fix and VARIABLE in error.fix


def test_server_that_is_not_there_or_answers_nonsense_is_told(
    posts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Server(server(posts).scheme, "owner", free_port())
    monkeypatch.setenv(VARIABLE, elsewhere.url())
    assert "check host and port" in failure(posts).fix
    monkeypatch.setenv(VARIABLE, elsewhere.url().replace("127.0.0.1", "no-such-host.invalid"))
    assert "check host and port" in failure(posts).fix
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        late = Server(elsewhere.scheme, "owner", silent.getsockname()[1])
        monkeypatch.setenv(VARIABLE, late.url(more="?connect_timeout=2"))
        assert "check host and port" in failure(posts).fix


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('table = "post"', "did you mean 'posts'"),
        ('table = "nowhere.posts"', "has no table 'nowhere.posts'"),
        ('table = "posts"\ntext = "txt"', "did you mean 'text'"),
        ('table = "posts"\nsplit_by = "ids"', "did you mean 'id'"),
        ('query = "select text from nowhere"', "query: select text from nowhere"),
        ('query = "select txt from posts"', "txt"),
        ('query = "selec text from posts"', "syntax"),
        ('query = "select text from posts; select text from posts"', "syntax"),
        ('query = ""', "syntax"),
    ],
)
def test_wrong_name_or_query_is_told_with_what_there_is(posts: Database, more: str, told: str) -> None:
    error = failure(posts, more)
    assert told in str(error) and "source 'db'" in error.problem


@pytest.mark.parametrize(
    "query",
    [
        "delete from posts",
        "delete from posts returning text",
        "select 'x' as text) as q; commit; delete from posts; select text from (select 'x' as text",
        "select 'x' as text) as q; delete from posts where (1 = 1",
        "drop table posts",
        "with gone as (delete from posts returning text) select text from gone",
        "select erase() as text",
    ],
)
def test_query_that_writes_is_refused_and_changes_nothing(
    posts: Database, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts.run("drop function if exists erase")
    if posts.kind == "postgresql":
        body = "$$ delete from posts; select text from (values ('x')) as v(text) $$"
        posts.run(f"create function erase() returns text language sql as {body}")
    else:
        posts.run("create function erase() returns text begin delete from posts; return 'x'; end")
        # Asks for several statements in one, which would let the second one write.
        monkeypatch.setenv(VARIABLE, server(posts).url(more="?client_flag=65536"))
    error = failure(posts, f'query = "{query}"')
    assert " ".join(query.split())[:20] in error.found
    if query == "select erase() as text":
        assert "only reads" in error.fix
    assert texts(posts.read('table = "posts"')) == ["one", "two"]


def test_table_that_the_user_may_not_read_is_told(posts: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if posts.kind == "postgresql":
        posts.run("drop role if exists guest", "create role guest login password 'little'")
        told = "permission denied"
    else:
        posts.run("create or replace user guest@'127.0.0.1' identified by 'little'")
        posts.run("create database if not exists empty", "grant select on empty.* to guest@'127.0.0.1'")
        told = "denied"
    database = "proof" if posts.kind == "postgresql" else "empty"
    monkeypatch.setenv(VARIABLE, server(posts).url("guest", "little", database))
    schema = "public" if posts.kind == "postgresql" else "proof"
    error = failure(posts, f'query = "select text from {schema}.posts"')
    assert told in error.found and "grant" in error.fix


@pytest.mark.parametrize("value", [None, "", "  "])
def test_variable_that_is_not_set_is_named(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    error = failure(Database("postgresql", Path(), Server("postgresql", "owner", 1)))
    assert f"{VARIABLE} is not set" in error.problem and f"export {VARIABLE}=" in error.fix


LOGIN = f"owner:{quote(PASSWORD, safe='')}"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (f"host=localhost password={PASSWORD}", "no address with ://"),
        (PASSWORD, "no address with ://"),
        (f"{PASSWORD}://localhost/proof", "no address with ://"),
        (f"postgresql+psycopg2://{LOGIN}@localhost/proof", "with nothing after a +"),
        (f"mysql+aiomysql://{LOGIN}@localhost/proof", "with nothing after a +"),
        (f"oracle://{LOGIN}@localhost/proof", "begins with oracle://"),
        ("sqlite:///a.sqlite", "as `path` instead of `url_env`"),
        (f"postgresql://owner:{PASSWORD}@localhost/proof@x", "percent-encode"),
        (f"mysql://owner:a@{WRONG}@localhost/proof", "percent-encode"),
        (f"postgresql://{LOGIN}@localhost:{quote(PASSWORD, safe='')}/proof", "cannot be read"),
        (f"postgresql://{LOGIN}@localhost:99999/proof", "check host and port"),
        (f"mysql://{LOGIN}@localhost:99999/proof", "check"),
        (f"postgresql://{LOGIN}@/proof?host=/nowhere", "check host and port"),
        (f"postgresql://{LOGIN}@127.0.0.1:1/proof?nonsense={quote(WRONG)}", "nonsense"),
        (f"mysql://{LOGIN}@127.0.0.1:1/proof?nonsense=1", "nonsense"),
        (f"postgresql://owner@127.0.0.1:1/proof?password={quote(PASSWORD, safe='')}", "check host and port"),
        (f"mysql://127.0.0.1:1/proof?password={quote_plus(PASSWORD)}", "check"),
        (
            f"postgresql://{LOGIN}@127.0.0.1:1/proof?sslmode=verify-full&sslpassword={quote(WRONG)}",
            "check host",
        ),
    ],
)
def test_address_that_cannot_be_used_is_told_and_not_shown(
    value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    error = failure(Database("postgresql", Path(), Server("postgresql", "owner", 1)))
    assert told in str(error) and VARIABLE in str(error)


def test_query_may_take_longer_than_connecting(posts: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_session, "_CONNECT_TIMEOUT_S", 1)
    wait = "pg_sleep(1.2)" if posts.kind == "postgresql" else "sleep(1.2)"
    assert texts(posts.read(f"query = \"select 'late' as text from (select {wait}) as w\"")) == ["late"]


def test_password_in_a_query_of_the_recipe_is_hidden_in_its_error(posts: Database) -> None:
    quoted = PASSWORD.replace("'", "''").replace('"', '\\"')
    error = failure(posts, f"query = \"select text from nowhere where text = '{quoted}'\"")
    assert "***" in error.found


def test_addresses_with_any_spelling_of_the_scheme_are_read(
    posts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"postgresql": ["postgres", "postgresql", "postgresql+psycopg", "PostgreSQL"],
             "mysql": ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"]}  # fmt: skip
    hashes = set()
    for name in names[posts.kind]:
        monkeypatch.setenv(VARIABLE, server(posts).url().replace(posts.kind, name, 1))
        assert texts(posts.read('table = "posts"')) == ["one", "two"]
        hashes.add(sql_inputs(posts.source('table = "posts"'), Path())[0].xxh3_128)
    assert len(hashes) == 1


def test_password_that_is_not_latin_1_logs_in(on_server: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    on_server.fill("posts", "id int primary key, text text", [(1, "one")])
    if on_server.kind == "postgresql":
        on_server.run("drop role if exists euro", "create role euro superuser login password '€ ☃'")
    else:
        on_server.run("create or replace user euro@'127.0.0.1' identified by '€ ☃'")
        on_server.run("grant all on *.* to euro@'127.0.0.1'")
    monkeypatch.setenv(VARIABLE, server(on_server).url("euro", "€ ☃"))
    assert texts(on_server.read('table = "posts"')) == ["one"]


def test_server_that_dies_while_it_is_read_is_told(posts: Database) -> None:
    rows = [(key, "x" * 5000) for key in range(2000)]
    posts.fill("posts", "id int primary key, text text", rows)
    source: Source = posts.source('table = "posts"')
    reading = read_sql(source, posts.parts(source)[0])
    next(reading)
    if posts.kind == "postgresql":
        others = "pid <> pg_backend_pid() and datname = current_database()"
        posts.run(f"select pg_terminate_backend(pid) from pg_stat_activity where {others}")
    else:
        posts.run(
            "begin not atomic declare c bigint; select max(id) into c from information_schema.processlist "
            "where user = 'owner' and id <> connection_id(); kill c; end"
        )
    with pytest.raises(DataError, match="cannot read the database"):
        list(reading)
