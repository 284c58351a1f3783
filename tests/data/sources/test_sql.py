"""Rows of real databases: each exactly once, in parts, as they were at one moment, and nothing written."""

import json
import random
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from making_sql import VARIABLE, Database, errors, texts

from bessemer.data.sources.parts import Part
from bessemer.data.sources.sql import read_sql, sql_inputs
from bessemer.errors import DataError

_LOW, _HIGH = -(2**63), 2**63 - 1
KEYS = {
    "dense": list(range(1, 14)),
    "negative and sparse": [-(10**12), -70, -1, 0, 3, 4, 5, 10**6, 10**15],
    "64 bits": [_LOW, _LOW + 1, -1, 0, 1, _HIGH - 1, _HIGH],
    "one": [7],
    "none": [],
}


@pytest.mark.parametrize("rows_a_part", [1, 3, 1000])
@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS.keys())
def test_parts_hold_every_row_exactly_once_in_order_of_keys(
    database: Database, keys: list[int], rows_a_part: int
) -> None:
    rows = [(key, f"text {key}") for key in keys]
    database.fill("posts", "id bigint primary key, text text", random.Random(0).sample(rows, len(rows)))
    source = database.source('table = "posts"')
    parts = database.parts(source, rows_a_part)
    assert len(parts) == max(1, -(-len(rows) // rows_a_part))
    found = [list(read_sql(source, part)) for part in parts]
    assert [row.text for part in found for row in part] == [text for _, text in rows]
    assert max(map(len, found)) <= rows_a_part
    name = "a.sqlite" if database.kind == "sqlite" else f"{database.kind}:posts"
    assert [row.id for part in found for row in part] == [f"{name}:{key}" for key in keys]


@pytest.mark.parametrize("rows_a_part", [1, 5])
def test_parts_of_any_column_hold_rows_without_a_key_and_many_rows_of_one_key(
    database: Database, rows_a_part: int
) -> None:
    keys = [None, None, None, -4, -4, -4, -4, -4, -4, -4, 0, 1, 1, 9, 9, 9]
    rows = [(f"n{number:02d}", f"text {number}", key) for number, key in enumerate(keys)]
    database.fill("posts", "id varchar(9) primary key, text text, k int", rows[::-1])
    more = 'split_by = "k"\ntable = "posts"'
    found = database.read(more, rows_a_part)
    assert texts(found) == [text for _, text, _ in rows]
    places = [row.id.rpartition(":")[2] for row in found]
    assert len(set(places)) == len(rows) and places[1:4] == ["null#2", "null#3", "-4"]
    for limit in (2, 10, 15):
        assert texts(database.read(f"{more}\nlimit = {limit}", rows_a_part)) == texts(found)[:limit]
    query = (
        "select k as kk, text || '' as t from posts"
        if database.kind != "mysql"
        else "select k as kk, text as t from posts"
    )
    asked = database.read(f'query = "{query} -- all"\ntext = "t"\nsplit_by = "KK"', rows_a_part)
    assert sorted(map(str, texts(asked))) == sorted(map(str, texts(found)))


def test_table_without_a_whole_key_is_one_part_in_order_of_its_primary_key(database: Database) -> None:
    rows = [(f"k{number % 7}{number}", number, f"text {number}") for number in range(40)]
    database.fill("posts", "a varchar(9), b int, text text, primary key (a, b)", rows)
    source = database.source('table = "posts"\nlimit = 30')
    parts = database.parts(source, 3)
    assert len(parts) == 1
    assert texts(list(read_sql(source, parts[0]))) == [text for _, _, text in sorted(rows)[:30]]
    database.fill("posts", "text text", [(f"text {number}",) for number in range(40)])
    found = database.read('table = "posts"', 3)
    assert sorted(map(str, texts(found))) == sorted(f"text {number}" for number in range(40))
    assert [row.id.rpartition(":")[2] for row in found] == [str(number) for number in range(1, 41)]


def test_limit_counts_over_several_files(in_file: Database) -> None:
    (in_file.folder / "dbs").mkdir()
    for name in "abc":
        in_file.fill("posts", "id integer primary key, text text", [(n, f"{name}{n}") for n in range(4)])
        (in_file.folder / "a.sqlite").rename(in_file.folder / "dbs" / name)
    source = in_file.source('table = "posts"\nlimit = 6').model_copy(update={"path": "dbs"})
    found = [row for part in in_file.parts(source, 3) for row in read_sql(source, part)]
    assert texts(found) == ["a0", "a1", "a2", "a3", "b0", "b1"]


def test_sqlite_rows_whose_key_is_no_number_are_not_lost(in_file: Database) -> None:
    rows = [(1, "a"), (2, "b"), (2.5, "c"), (3, "d"), ("x", "e"), (b"y", "f"), (None, "g")]
    in_file.fill("posts", "id int primary key, text text", rows)
    for rows_a_part in (1, 2, 3, 9):
        assert texts(in_file.read('table = "posts"', rows_a_part)) == ["g", "a", "b", "c", "d", "e", "f"]
    with pytest.raises(DataError, match="no column of whole numbers"):
        in_file.read('table = "posts"\nsplit_by = "id"', 1)


def test_split_by_a_column_of_texts_is_an_error(database: Database) -> None:
    database.fill("posts", "id varchar(9) primary key, text text", [("a", "text")])
    with pytest.raises(DataError, match="no column of whole numbers"):
        database.read('table = "posts"\nsplit_by = "id"')


def test_value_that_is_no_text_is_counted_with_its_reason(database: Database) -> None:
    binary = {"sqlite": "blob", "postgresql": "bytea", "mysql": "blob"}[database.kind]
    columns = f"id int primary key, body text, raw {binary}, number int, day date"
    database.fill("posts", columns, [(1, "é\r\nb", b"raw", 5, "2024-01-31"), (2, None, None, None, None)])
    more = 'table = "posts"\nid = "id"\n'
    (first, second) = database.read(more + 'text = "body"\ngroup = "number"')
    assert (first.id, first.group, first.text, first.has_own_id) == ("1", "5", "é\nb", True)
    assert first.num_bytes == len("é\r\nb".encode()) + len("1") + len("5")
    assert (second.id, second.text, second.error, second.num_bytes) == ("2", None, "missing", 1)
    for column in ("raw", "number"):
        assert errors(database.read(f'{more}text = "{column}"')) == ["not_text", "missing"]
    if database.kind != "sqlite":  # where a day is a text
        assert errors(database.read(f'{more}text = "day"')) == ["not_text", "missing"]


def test_json_of_postgres_is_no_text_and_uuids_are_ids(on_postgres: Database) -> None:
    key = uuid.uuid4()
    on_postgres.fill(
        "posts", "id uuid primary key, a json, b jsonb, text text", [(key, '"a"', '{"b": 1}', "t")]
    )
    assert errors(on_postgres.read('table = "posts"\ntext = "a"')) == ["not_text"]
    assert errors(on_postgres.read('table = "posts"\ntext = "b"')) == ["not_text"]
    assert on_postgres.read('table = "posts"\nid = "id"')[0].id == str(key)


def test_sqlite_text_that_is_not_utf_8_is_undecodable(in_file: Database) -> None:
    in_file.fill("posts", "id integer primary key, text text", [(1, "good")])
    in_file.run("insert into posts values (2, cast(x'62ff' as text))")
    assert errors(in_file.read('table = "posts"')) == [None, "undecodable"]


def test_postgres_database_of_any_bytes_gives_its_good_rows(
    on_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = "encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0"
    on_postgres.run("drop database if exists bytes", f"create database bytes {made}")
    assert on_postgres.server is not None
    monkeypatch.setenv(VARIABLE, on_postgres.server.url(database="bytes"))
    query = "select 1 as id, 'good' as text union all select 2, convert_from('\\\\x62ff'::bytea, 'SQL_ASCII')"
    found = on_postgres.read(f'query = "{query}"\nsplit_by = "id"')
    assert texts(found) == ["good", None] and errors(found) == [None, "undecodable"]


def test_names_are_found_as_sql_finds_them(on_server: Database) -> None:
    quote = '"' if on_server.kind == "postgresql" else "`"
    schema = "public" if on_server.kind == "postgresql" else "proof"
    odd = f"{quote}My.Posts %s :x{quote}"
    on_server.run("drop view if exists v_posts")
    on_server.fill(odd, f"id int primary key, {quote}The Text{quote} text", [])
    on_server.run(f"insert into {odd} values (1, 'odd')")
    on_server.fill("posts", "id int primary key, text text", [(1, "plain")])
    on_server.run("create view v_posts as select id, text from posts")
    for name in ("posts", "Posts", f"{schema}.posts", f'\\"{schema}\\".\\"posts\\"', "V_POSTS", "`posts`"):
        assert texts(on_server.read(f'table = "{name}"')) == ["plain"], name
    assert texts(on_server.read('table = "My.Posts %s :x"\ntext = "the text"')) == ["odd"]
    assert texts(on_server.read("query = \"select '%s :x 100%' as text\"")) == ["%s :x 100%"]


def test_table_in_another_schema_and_materialized_view_are_read(on_postgres: Database) -> None:
    on_postgres.run("drop schema if exists other cascade", "create schema other")
    on_postgres.fill("other.posts2", "id int primary key, text text", [(1, "other")])
    on_postgres.run("create materialized view other.kept as select * from other.posts2")
    assert texts(on_postgres.read('table = "other.posts2"')) == ["other"]
    assert texts(on_postgres.read('table = "Other.kept"')) == ["other"]


def test_user_who_may_read_some_columns_only_can_read_those(
    on_server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_server.run("drop view if exists v_posts")
    on_server.fill("posts", "id int primary key, text text, secret text", [(1, "seen", "s"), (2, "too", "s")])
    assert on_server.server is not None
    if on_server.kind == "postgresql":
        on_server.run("drop role if exists reader", "create role reader login password 'little'")
        on_server.run("grant select (id, text) on posts to reader")
    else:
        on_server.run("create or replace user reader@'127.0.0.1' identified by 'little'")
        on_server.run("grant select (id, text) on proof.posts to reader@'127.0.0.1'")
    monkeypatch.setenv(VARIABLE, on_server.server.url("reader", "little"))
    assert texts(on_server.read('table = "posts"', 1)) == ["seen", "too"]
    with pytest.raises(DataError):
        on_server.read('table = "posts"\ntext = "secret"')
    on_server.run(
        "revoke select (id, text) on posts from reader"
        + ("@'127.0.0.1'" if on_server.kind == "mysql" else "")
    )


def test_part_is_one_state_of_the_database_whatever_others_write(on_server: Database) -> None:
    rows = [(key, f"text {key}") for key in range(1000)]
    on_server.fill("posts", "id int primary key, text text", rows)
    source = on_server.source('table = "posts"')
    parts = on_server.parts(source, 600)
    reading = read_sql(source, parts[0])
    first = next(reading)
    on_server.run("delete from posts where id % 2 = 0", "update posts set text = 'changed'")
    on_server.run("insert into posts values (-1, 'new'), (2000, 'new')")
    assert [first.text, *(row.text for row in reading)] == [text for _, text in rows[:600]]
    later = [row.id.rpartition(":")[2] for row in read_sql(source, parts[1])]
    assert later == [*(str(key) for key in range(601, 1000, 2)), "2000"]


def test_four_processes_read_all_parts_at_the_same_time(on_postgres: Database) -> None:
    rows = [(key * 7 - 5000, f"text {key}") for key in range(1000)]
    on_postgres.fill("posts", "id int primary key, text text", rows)
    source = on_postgres.source('table = "posts"\nid = "id"')
    tasks = [json.dumps(part.to_json()) for part in on_postgres.parts(source, 100)]
    program = (
        "import json, sys\n"
        "from bessemer.data.sources.parts import Part\n"
        "from bessemer.data.sources.sql import read_sql\n"
        "from bessemer.recipe.schema import Source\n"
        "source = Source.model_validate_json(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    for row in read_sql(source, Part.from_json(json.loads(line))):\n"
        "        print(row.id, row.text)\n"
    )
    words = [sys.executable, "-c", program, source.model_dump_json()]
    processes = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        told = ["\n".join(tasks[number::4]) for number in range(4)]
        lines = [out for out, _ in pool.map(lambda process, text: process.communicate(text), processes, told)]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted("".join(lines).splitlines()) == sorted(f"{key} {text}" for key, text in rows)


def test_reader_that_stops_early_leaves_no_session_behind(on_server: Database) -> None:
    on_server.fill("posts", "id int primary key, text text", [(key, "x" * 2000) for key in range(500)])
    source = on_server.source('table = "posts"')
    reading = read_sql(source, on_server.parts(source)[0])
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    on_server.run("drop table posts")  # would wait for a session that still reads it


def test_input_names_what_is_asked_and_changes_with_it(
    on_server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_server.server is not None

    def entry(more: str, url: str | None = None):  # type: ignore[no-untyped-def]
        if url is not None:
            monkeypatch.setenv(VARIABLE, url)
        (found,) = sql_inputs(on_server.source(more), Path())
        return found

    kind, port = on_server.kind, on_server.server.port
    first = entry('table = "posts"')
    assert first.name == f"{kind}:posts"
    assert first.url == f"{kind}://owner@127.0.0.1:{port}/proof"
    query = entry('query = "select text from posts"')
    assert query.name.startswith(f"{kind}:query-") and len(query.name) == len(f"{kind}:query-") + 8
    others = [query, entry('table = "post"'), entry('table = "posts"\nid = "id"'),
              entry('table = "posts"\ntext = "body"'), entry('query = "select  text from posts"'),
              entry('table = "posts"', on_server.server.url(database="other"))]  # fmt: skip
    assert len({one.xxh3_128 for one in [first, *others]}) == 7
    same = entry('table = "posts"', on_server.server.url("someone", "else", more="?ssl_key_password=word"))
    assert same.xxh3_128 == first.xxh3_128
    assert same.url == f"{kind}://someone@127.0.0.1:{port}/proof"


def test_part_of_another_database_than_was_listed_is_not_read(
    on_server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_server.fill("posts", "id int primary key, text text", [(1, "text")])
    source = on_server.source('table = "posts"')
    part = Part.from_json(json.loads(json.dumps(on_server.parts(source)[0].to_json())))
    assert on_server.server is not None
    monkeypatch.setenv(VARIABLE, on_server.server.url(database="another"))
    with pytest.raises(DataError, match="another database than"):
        list(read_sql(source, part))


def test_sqlite_file_that_changes_while_it_is_read_is_an_error(in_file: Database) -> None:
    in_file.fill("posts", "id integer primary key, text text", [(key, "text") for key in range(5000)])
    source = in_file.source('table = "posts"')
    (part,) = in_file.parts(source)
    reading = read_sql(source, part)
    next(reading)
    (in_file.folder / "a.sqlite").touch()
    with pytest.raises(DataError, match="changed while"):
        list(reading)
    with pytest.raises(DataError, match="changed while"):
        list(read_sql(source, part))


@pytest.mark.parametrize("megabytes", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_memory_holds_a_few_rows_and_never_the_table(on_server: Database, megabytes: int) -> None:
    on_server.run("drop table if exists large", "create table large (id int primary key, text text)")
    series = "generate_series(1, {})" if on_server.kind == "postgresql" else "seq_1_to_{}"
    column = "g" if on_server.kind == "postgresql" else "seq"
    rows = series.format(megabytes * 100)
    on_server.run(f"insert into large select {column}, repeat('ten bytes ', 1000) from {rows} as g")
    source = on_server.source('table = "large"')
    (part,) = on_server.parts(source)
    program = (
        "import json, resource, sys\n"
        "from bessemer.data.sources.parts import Part\n"
        "from bessemer.data.sources.sql import read_sql\n"
        "from bessemer.recipe.schema import Source\n"
        "rows = read_sql(Source.model_validate_json(sys.argv[1]), Part.from_json(json.loads(sys.argv[2])))\n"
        "next(rows)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "total = sum(len(row.text) for row in rows)\n"
        "print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    words = [sys.executable, "-c", program, source.model_dump_json(), json.dumps(part.to_json())]
    total, growth_kib = map(int, subprocess.run(words, check=True, capture_output=True).stdout.split())
    on_server.run("drop table large")
    assert total == (megabytes * 100 - 1) * 10_000
    assert growth_kib < 16 * 1024, growth_kib
