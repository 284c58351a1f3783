"""Reading hostile and plain inputs: every row is counted once, as a document or with its reason."""

import json
import os
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from making import TEXTS, build, make, text_source

from bessemer.data.sources.documents import documents, html_text, source_inputs
from bessemer.errors import DataError


def read(tmp_path: Path, body: str) -> list[tuple[str, str | None, str | None, str | None]]:
    """(id, group, text, error) of each row of a source."""
    source = make(body).data.source[0]
    rows = documents(source, source_inputs(source, tmp_path))
    return [(row.id, row.group, row.text, row.error) for row in rows]


def errors(tmp_path: Path, body: str) -> Counter[str | None]:
    return Counter(error for _, _, _, error in read(tmp_path, body))


def database(path: Path, *rows: tuple[object, ...]) -> None:
    connection = sqlite3.connect(path)
    connection.execute('create table "my posts" (id integer, "the text" text, team text, secret text)')
    connection.executemany('insert into "my posts" values (?, ?, ?, ?)', rows)
    connection.commit()
    connection.close()


SQL = 'name = "db"\nkind = "sql"\npath = "a.sqlite"\ntable = "my posts"\ntext = "the text"\n'


def test_files_come_in_order_of_names_with_the_stem_as_group(tmp_path: Path) -> None:
    for name in ("b.x.txt", "a.txt", "sub/c.txt", ".hidden/d.txt", "sub/.e.txt"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    rows = read(tmp_path, text_source(more='group = "stem"'))
    assert rows == [
        ("texts/a.txt", "a", "a.txt", None),
        ("texts/b.x.txt", "b", "b.x.txt", None),
        ("texts/sub/c.txt", "c", "sub/c.txt", None),
    ]
    assert [row[0] for row in read(tmp_path, text_source("texts/**/c*"))] == ["texts/sub/c.txt"]
    assert len(read(tmp_path, text_source("texts/a.txt"))) == 1


def test_files_that_are_no_text_are_counted(tmp_path: Path) -> None:
    contents = [
        b"good",
        b"\xef\xbb\xbfmarked\r\n",
        b"\xff\xfe\x00",
        b"bad \xc3",
        b"nul \0 byte",
        b"\xed\xa0\x80",
    ]
    (tmp_path / "texts").mkdir()
    for number, content in enumerate(contents):
        (tmp_path / "texts" / f"{number}").write_bytes(content)
    rows = read(tmp_path, text_source())
    assert [text for _, _, text, _ in rows] == ["good", "marked\n", None, None, None, None]
    assert errors(tmp_path, text_source()) == {None: 2, "undecodable": 3, "binary": 1}


def test_pipes_and_broken_links_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text", encoding="utf-8")
    os.mkfifo(tmp_path / "texts" / "pipe")
    (tmp_path / "texts" / "broken").symlink_to("nowhere")
    assert len(read(tmp_path, text_source())) == 1


def test_html_gives_its_main_content_or_else_all_text() -> None:
    page = "<body><nav>Home</nav><main><h1>Steel</h1><p>Made&nbsp;of iron &amp; coal.</p></main></body>"
    assert "Made of iron & coal." in html_text(page) and "\xa0" not in html_text(page)
    assert "Only a menu" in html_text("<nav>Only a menu</nav>")
    assert html_text("") == ""


def test_json_lines_are_rows_whatever_is_in_them(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good", "n": 7, "g": "x"}',
        b'{"text": "", "n": 1, "g": "x"}',
        b"",
        b"not json",
        b'["a list"]',
        b'{"n": 1, "g": "x"}',
        b'{"text": null, "n": 1, "g": "x"}',
        b'{"text": 5, "n": 1, "g": "x"}',
        b'{"text": "lone \\ud800", "n": 1, "g": "x"}',
        b'{"text": "bad \xff", "n": 1, "g": "x"}',
        b'{"text": "no group", "n": 1}',
        b'{"text": "odd id", "n": 1.5, "g": "x"}',
        b"[" * 5000,
        b'{"text": "last", "n": "z", "g": "y"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    body = 'name = "j"\nkind = "jsonl"\npath = "a.jsonl"\nid = "n"\ngroup = "g"'
    rows = read(tmp_path, body)
    assert len(rows) == len(lines)
    assert rows[0] == ("7", "x", "good", None) and rows[-1] == ("z", "y", "last", None)
    assert errors(tmp_path, body) == {
        None: 4, "unparsable": 3, "missing": 3, "not_text": 2, "undecodable": 2,
    }  # fmt: skip


def test_csv_counts_short_rows_and_bad_bytes(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,text\n1,"two\nlines"\n2\n3,\xff\n\n4,"a"b\n5,good\n'
    (tmp_path / "a.csv").write_bytes(content)
    rows = read(tmp_path, 'name = "c"\nkind = "csv"\npath = "a.csv"\nid = "id"')
    assert [row[2] for row in rows] == ["two\nlines", None, None, None, "good"]
    assert [row[3] for row in rows] == [None, "missing", "undecodable", "unparsable", None]


def test_database_gives_text_only_from_text(tmp_path: Path) -> None:
    database(
        tmp_path / "a.sqlite",
        (1, "good", "x", "s"),
        (2, None, "x", "s"),
        (3, b"blob", "x", "s"),
        (4, 5, "x", "s"),
    )
    rows = read(tmp_path, SQL + 'id = "id"\ngroup = "team"')
    # A number in a column declared as text is stored as text: SQLite made it so.
    assert rows[0] == ("1", "x", "good", None) and rows[3] == ("4", "x", "5", None)
    assert errors(tmp_path, SQL) == {None: 2, "missing": 1, "not_text": 1}


def test_database_reads_only_the_columns_it_needs(tmp_path: Path) -> None:
    database(tmp_path / "a.sqlite", (1, "good", "x", "secret"))
    connection = sqlite3.connect(tmp_path / "a.sqlite")
    connection.execute(
        'create view v as select id, "the text" as body, abs(secret, 1, 2) as broken from "my posts"'
    )
    connection.commit()
    connection.close()
    body = 'name = "db"\nkind = "sql"\npath = "a.sqlite"\n'
    with pytest.raises(DataError, match="cannot read the database"):
        read(tmp_path, body + 'table = "v"\ntext = "broken"')
    query = "query = '''select id, \"the text\" as body from \"my posts\" -- all\n'''"
    assert read(tmp_path, body + query + '\ntext = "body"')[0][2] == "good"


def test_database_is_never_written_and_its_name_may_hold_anything(tmp_path: Path) -> None:
    database(tmp_path / "a.sqlite", (1, "good", "x", "s"))
    odd = tmp_path / "odd ?mode=rwc#%20.sqlite"
    (tmp_path / "a.sqlite").rename(odd)
    odd.chmod(0o444)
    before = odd.read_bytes()
    assert len(read(tmp_path, SQL.replace("a.sqlite", odd.name))) == 1
    with pytest.raises(DataError, match="cannot read the database"):
        read(
            tmp_path,
            SQL.replace("a.sqlite", odd.name).replace('table = "my posts"', 'query = "delete from x"'),
        )
    assert odd.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('"my posts"', '"my post"'), "did you mean 'my posts'"),
        (('"the text"', '"text"'), "did you mean 'the text'"),
        (("a.sqlite", "b.sqlite"), "did you mean 'a.sqlite'"),
        (("a.sqlite", "notes.txt"), "not a database"),
        (("a.sqlite", "empty"), "empty folder"),
        (('table = "my posts"', 'query = "selec 1"'), "syntax error"),
    ],
)
def test_wrong_name_in_a_database_source_says_what_there_is(
    tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    database(tmp_path / "a.sqlite", (1, "good", "x", "s"))
    (tmp_path / "notes.txt").write_text("no database, but long enough to be looked at " * 9, encoding="utf-8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        read(tmp_path, SQL.replace(*change))
    assert told in str(caught.value)


def test_missing_csv_column_names_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,texts\n1,a\n", encoding="utf-8")
    with pytest.raises(DataError, match="did you mean 'texts'"):
        read(tmp_path, 'name = "c"\nkind = "csv"\npath = "a.csv"')


@pytest.mark.parametrize("path", ["nothing.txt", "none/*.txt", "none"])
def test_source_without_a_file_is_an_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="source 'texts'"):
        read(tmp_path, text_source(path))


def test_file_that_vanishes_or_changes_after_it_was_listed_is_an_error(texts: Path) -> None:
    source = make(text_source()).data.source[0]
    inputs = source_inputs(source, texts)
    (texts / "texts" / "03.txt").write_text("something else", encoding="utf-8")
    with pytest.raises(DataError, match="changed while"):
        list(documents(source, inputs))
    (texts / "texts" / "03.txt").unlink()
    with pytest.raises(DataError, match="cannot read") as caught:
        list(documents(source, inputs))
    assert "did you mean" in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        ([b""], "1 empty"),
        ([b" \n\t"], "1 empty"),
        ([b"\xff"], "1 undecodable"),
        ([TEXTS[0].encode()], "1 dedup.exact"),
    ],
)
def test_source_that_gives_no_document_is_named(texts: Path, contents: list[bytes], told: str) -> None:
    (texts / "others").mkdir()
    for number, content in enumerate(contents):
        (texts / "others" / f"{number}.txt").write_bytes(content)
    with pytest.raises(DataError, match="source 'others' gave no") as caught:
        build(make(text_source(), text_source("others", name="others"), validation=0), texts)
    assert told in str(caught.value)


def test_empty_csv_gives_no_row(texts: Path) -> None:
    (texts / "a.csv").write_text("text\n", encoding="utf-8")
    with pytest.raises(DataError, match="gave no row"):
        build(make(text_source(), 'name = "c"\nkind = "csv"\npath = "a.csv"'), texts)


def test_counts_add_up_and_name_every_reason(texts: Path) -> None:
    lines = [{"text": text} for text in TEXTS[:4]] + [{"text": f"new text {n}"} for n in range(6)]
    rows = [*map(json.dumps, lines), json.dumps({"text": "new  text\n3"}), "", "{", '{"text": 3}', "{}"]
    (texts / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    prepared = build(make(text_source(), 'name = "j"\nkind = "jsonl"\npath = "a.jsonl"', validation=0), texts)
    first, second = prepared.manifest["sources"]
    assert first["rows_in"] == first["kept"] == first["documents"] == len(TEXTS)
    assert first["bytes_in"] == sum(len(text.encode()) for text in TEXTS)
    assert second["rows_in"] == 15 and second["kept"] == 6
    assert second["refused"] == {"dedup.exact": 5, "empty": 1}
    assert second["errors"] == {"unparsable": 1, "not_text": 1, "missing": 1}
    splits = prepared.manifest["splits"]
    assert first["tokens"] + second["tokens"] == splits["train"]["tokens"] == prepared.train_tokens
    assert splits["validation"] == {"documents": 0, "tokens": 0, "bytes": 0}
