"""A column that is not there is named at once, with what there is, for every key and kind of file."""

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_tasks import chat, task_of

from bessemer.data.task.inputs import task_inputs
from bessemer.data.task.reading import Reading
from bessemer.errors import DataError
from bessemer.recipe.schema import FinetuneData

SAID = chat("a", "b")["messages"]
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("full", {"prompt": "a", "answer": "b", "id": "1", "group": "g"}),
    "messages": ("full", {"messages": SAID, "tools": [{"name": "f"}]}),
    "instruction": ("full", {"instruction": "a", "input": "b", "output": "c"}),
    "preference": ("dpo", {"prompt": "a", "chosen": "b", "rejected": "c"}),
    "classification": ("classify", {"text": "a", "label": "b"}),
    "text": ("full", {"text": "a"}),
}
CASES = [(name, key) for name, (_, row) in ROWS.items() for key in row]


def write(folder: Path, kind: str, row: dict[str, Any]) -> None:
    texts = [value if isinstance(value, str) else json.dumps(value) for value in row.values()]
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text(f"{json.dumps(row)}\n\n{json.dumps(row)}\n")
    elif kind == "json":
        path.write_text(json.dumps([row, row], indent=1))
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([list(row), texts])
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        connection = sqlite3.connect(path)
        columns = ", ".join(f'"{name}" text' for name in row)
        connection.execute(f"create table rows ({columns})")
        connection.execute(f"insert into rows values ({', '.join('?' * len(row))})", texts)
        connection.commit()
        connection.close()


def reading(folder: Path, kind: str, method: str, **keys: str) -> Reading:
    table = {"table": "rows"} if kind == "sql" else {}
    data = FinetuneData.model_validate({"kind": kind, "path": f"rows.{kind}", **table, **keys})
    return Reading.of(data, method, task_inputs(data, folder))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "sql"])
@pytest.mark.parametrize(("name", "key"), CASES)
def test_column_that_no_row_has_is_told_with_its_key_and_the_nearest_one(
    tmp_path: Path, name: str, key: str, kind: str
) -> None:
    method, row = ROWS[name]
    write(tmp_path, kind, row)
    wrong, others = f"{key}_1", {other: other for other in row if other != key}
    with pytest.raises(DataError) as caught:
        reading(tmp_path, kind, method, format=name, **{**others, key: wrong})
    problem, error = caught.value.problem, caught.value
    assert f"rows.{kind} has no column '{wrong}', which finetune.data.{key} names" in problem
    assert error.found.endswith(", ".join(row)) and error.exit_code == 65
    assert error.fix.startswith(f"did you mean '{key}'? ") and f"finetune.data.{key}" in error.fix
    assert reading(tmp_path, kind, method, format=name, **{**others, key: key}).columns[key] == key


def test_wrong_column_of_a_preference_is_told_and_not_counted_as_no_text(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    with pytest.raises(DataError, match=r"no column 'good', which finetune\.data\.chosen names") as caught:
        task_of(tmp_path, rows, 'chosen = "good"', more='method = "dpo"')
    assert "prompt, chosen, rejected" in caught.value.found
    assert caught.value.fix.startswith("did you mean 'chosen'?")
    lacking = [*rows, {"prompt": "q", "rejected": "b"}, {"prompt": "q", "chosen": None, "rejected": "b"}]
    prepared = task_of(tmp_path, lacking, more='method = "dpo"')
    assert prepared.manifest["sources"][0]["errors"] == {"missing": 2}


def test_rows_without_any_usual_column_are_told_what_they_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'prompt'") as caught:
        task_of(tmp_path, [{"question": "a", "reply": "b"}])
    assert "question, reply" in caught.value.found and "finetune.data.prompt" in caught.value.fix


def test_field_that_only_a_late_row_has_is_there(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{n}", "answer": "a"} for n in range(300)]
    rows[-1]["topic"] = "t"
    with pytest.raises(DataError, match="no column 'subject'"):
        task_of(tmp_path, rows, 'group = "subject"')
    prepared = task_of(tmp_path, rows, 'group = "topic"')
    assert prepared.manifest["sources"][0]["errors"] == {"missing": 299}


def test_array_that_is_taken_for_json_lines_is_told_which_kind_it_is(tmp_path: Path) -> None:
    rows = [{"instruction": f"i{n}", "input": "", "output": f"o{n}"} for n in range(9)]
    for text in (json.dumps(rows), json.dumps(rows, indent=4)):
        (tmp_path / "alpaca_data.json").write_text(text)
        with pytest.raises(DataError, match="holds no JSON lines") as caught:
            task_of(tmp_path, None, 'path = "alpaca_data.json"')
        assert 'finetune.data.kind = "json"' in caught.value.fix
        prepared = task_of(tmp_path, None, 'kind = "json"\npath = "alpaca_data.json"')
        assert prepared.task_format == "instruction" and prepared.num_examples("train") == 9


def test_broken_element_of_an_array_is_counted_with_its_file_and_number(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(
        '[{"prompt": "a", "answer": "b"}, {"prompt": "c",}, 7, {"prompt": "d"}]'
    )
    prepared = task_of(tmp_path, None, 'kind = "json"\npath = "rows.json"')
    assert prepared.num_examples("train") == 1
    assert prepared.manifest["sources"][0]["errors"] == {"missing": 1, "unparsable": 2}
    places = [(row["place"], row["reason"]) for row in prepared.manifest["lost"]]
    assert places == [
        ("rows.json:2", "unparsable"),
        ("rows.json:3", "unparsable"),
        ("rows.json:4", "missing"),
    ]


def test_pairs_without_a_method_for_pairs_are_told_which_one_learns_them(tmp_path: Path) -> None:
    for row in ({"prompt": "p", "chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": "b"}):
        with pytest.raises(DataError, match="no column") as caught:
            task_of(tmp_path, [row])
        assert 'finetune.method = "dpo"' in caught.value.fix
