"""Examples of a task from real databases: chats as JSON, pairs, and what was read first stays the task."""

import json

from making import QUIET, make, text_source
from making_sql import VARIABLE, Database
from making_tasks import chat, chat_tokenizer

from bessemer.data.prepared import PreparedTask
from bessemer.data.store import prepare_task


def task(database: Database, data: str, *, refresh: bool = False, method: str = "full") -> PreparedTask:
    origin = 'path = "a.sqlite"' if database.server is None else f'url_env = "{VARIABLE}"'
    text = f'[finetune]\nmethod = "{method}"\n[finetune.data]\nkind = "sql"\n{origin}\n{data}'
    recipe = make(text_source(), validation=0, more=text)
    base = database.folder
    tokenizer = chat_tokenizer(base / "tokenizer")
    return prepare_task(recipe, base, base / "store", tokenizer, QUIET, 64, refresh=refresh)


def test_chats_of_a_database_are_read_as_text_or_as_json(database: Database) -> None:
    rows = [(n, json.dumps(chat(f"q{n}", f"a{n}")["messages"])) for n in range(5)]
    kind = {"sqlite": "text", "postgresql": "jsonb", "mysql": "json"}[database.kind]
    for name, column in (("as_text", "text"), ("as_json", kind)):
        database.fill(name, f"n bigint primary key, messages {column}", rows)
        prepared = task(database, f'table = "{name}"\nid = "n"')
        assert prepared.task_format == "messages"
        found = {row.id: row.answer for row in prepared.examples("train")}
        assert found == {str(n): f"a{n}" for n in range(5)}


def test_rows_of_a_database_that_are_no_pairs_are_told_by_their_key(database: Database) -> None:
    rows = [(n, f"q{n}", "good", "good" if n == 17 else "bad") for n in (3, 17, 40)]
    database.fill("pairs", "n bigint primary key, prompt text, chosen text, rejected text", rows)
    prepared = task(database, 'table = "pairs"', method="dpo")
    assert prepared.num_examples("train") == 2
    (lost,) = prepared.manifest["lost"]
    assert lost["place"].endswith(":17") and lost["reason"] == "same"


def test_what_a_server_held_first_is_the_task_until_it_is_read_anew(on_server: Database) -> None:
    columns, rows = "n bigint primary key, prompt text, answer text", [(1, "p", "a"), (2, "q", "b")]
    on_server.fill("rows_of_task", columns, rows)
    first = task(on_server, 'table = "rows_of_task"')
    on_server.fill("rows_of_task", columns, [*rows, (3, "r", "c")])
    assert task(on_server, 'table = "rows_of_task"').hash == first.hash
    again = task(on_server, 'table = "rows_of_task"', refresh=True)
    assert again.num_examples("train") == 3 == first.num_examples("train") + 1
    assert task(on_server, 'table = "rows_of_task"').hash == again.hash
