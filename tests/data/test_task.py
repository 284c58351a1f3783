import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from making import QUIET, TEXTS, build, make, text_source

from bessemer.data.labels import labels
from bessemer.data.prepared import PreparedTask, open_prepared
from bessemer.data.rows import NO_LOSS
from bessemer.data.store import prepare_task
from bessemer.errors import DataError

Rows = list[dict[str, object]]


def task(base: Path, rows: Rows, *, more: str = "", data: str = "", validation: float = 0.2) -> PreparedTask:
    (base / "task.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = data or 'kind = "jsonl"\npath = "task.jsonl"\n'
    finetune = f"[finetune]\n{more}\n[finetune.data]\n{data}"
    recipe = make(text_source(), validation=validation, more=finetune)
    return prepare_task(recipe, base, base / "store", build(recipe, base).tokenizer_path, QUIET)


def plain(count: int) -> Rows:
    return [{"prompt": f"What is {n}? ", "answer": f"It is the number {n}."} for n in range(count)]


def test_loss_is_on_the_answer_and_its_end_only(texts: Path) -> None:
    from tokenizers import Tokenizer

    prepared = task(texts, plain(40))
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    learnt = []
    rows = prepared.rows("train", 64)
    for index in range(len(rows)):
        row = rows.row(index)
        targets = row.targets_T[row.targets_T != NO_LOSS].tolist()
        learnt += engine.decode(targets, skip_special_tokens=False).split("<|eos|>")[:-1]
    examples = prepared.examples("train")
    assert sorted(learnt) == sorted(example.answer for example in examples)
    for example in examples:
        assert engine.decode(example.prompt_ids, skip_special_tokens=False) == "<|bos|>" + example.prompt
        assert engine.decode(example.answer_ids, skip_special_tokens=False) == example.answer + "<|eos|>"
    assert prepared.num_examples("train") + prepared.num_examples("validation") == 40
    assert prepared.num_examples("validation") == len(prepared.examples("validation")) > 0


def test_rows_that_are_no_examples_are_counted(texts: Path) -> None:
    bad: Rows = [
        {"prompt": "p"},
        {"answer": "a"},
        {"prompt": 1, "answer": "a"},
        {"prompt": "p", "answer": None},
        {"prompt": " ", "answer": "a"},
        {"prompt": "p", "answer": "\n"},
        plain(1)[0],
    ]
    source = task(texts, [*plain(10), *bad]).manifest["sources"][0]
    assert source["rows_in"] == 17 and source["kept"] == source["documents"] == 10
    assert source["refused"] == {"dedup.exact": 1, "empty": 2}
    assert source["errors"] == {"missing": 3, "not_text": 1}


def test_task_without_one_example_is_an_error(texts: Path) -> None:
    with pytest.raises(DataError, match=r"'finetune.data' gave no document"):
        task(texts, [{"prompt": "", "answer": "a"}, {"prompt": "b", "answer": ""}])


def test_held_out_group_of_the_data_is_held_out_of_the_task(texts: Path) -> None:
    rows: Rows = [{**row, "module": f"{n % 15:02d}"} for n, row in enumerate(plain(90))]
    data = 'kind = "jsonl"\npath = "task.jsonl"\ngroup = "module"\n'
    prepared = task(texts, rows, data=data)
    recipe = make(text_source(more='group = "stem"'))
    for split in ("train", "validation"):
        groups = {row["group"] for row in labels(build(recipe, texts), split)}  # type: ignore[arg-type]
        assert {row["group"] for row in labels(prepared, split)} == groups  # type: ignore[arg-type]


def test_held_out_prompt_is_not_trained_on_with_another_answer(texts: Path) -> None:
    rows: Rows = [{**row, "id": n} for n, row in enumerate(plain(100) + [
        {"prompt": f"What  is {n}?", "answer": "Another answer."} for n in range(100)
    ])]  # fmt: skip
    prepared = task(texts, rows, data='kind = "jsonl"\npath = "task.jsonl"\nid = "id"\n')
    held_out = {" ".join(example.prompt.split()) for example in prepared.examples("validation")}
    training = {" ".join(example.prompt.split()) for example in prepared.examples("train")}
    assert held_out and not held_out & training
    assert prepared.manifest["sources"][0]["refused"]["leak"] > 0


def test_long_prompt_is_cut_and_counted_and_answers_stay_whole(texts: Path) -> None:
    rows = plain(20)
    rows[3]["prompt"] = "A beginning. " + "filling " * 500 + "A question? "
    prepared = task(texts, rows, more="context = 64", validation=0)
    splits = prepared.manifest["splits"]
    assert splits["train"]["prompts_cut"] == 1 and splits["train"]["answers_cut"] == 0
    (example,) = [one for one in prepared.examples("train") if one.prompt == rows[3]["prompt"]]
    assert len(example.prompt_ids) + len(example.answer_ids) == 64
    shorter = prepared.rows("train", 40)
    assert shorter.truncated == 1 and prepared.rows("train", 64).truncated == 0


def test_answer_longer_than_a_row_is_counted(texts: Path) -> None:
    rows = plain(5)
    rows[0]["answer"] = "word " * 300
    split = task(texts, rows, more="context = 64", validation=0).manifest["splits"]["train"]
    assert split["answers_cut"] == 1 and split["prompts_cut"] == 1


def test_fewer_examples_are_the_first_of_all(texts: Path) -> None:
    prepared = task(texts, plain(60), validation=0)
    first = [example.answer_ids for example in prepared.examples("train")[:12]]
    rows = prepared.rows("train", 64, examples=12)
    targets = np.concatenate([rows.row(index).targets_T for index in range(len(rows))])
    assert sorted(targets[targets != NO_LOSS].tolist()) == sorted(token for ids in first for token in ids)


def test_examples_come_from_a_database_too_and_are_found_again(texts: Path) -> None:
    connection = sqlite3.connect(texts / "a.sqlite")
    connection.execute("create table pairs (question text, reply text)")
    connection.executemany("insert into pairs values (?, ?)", [(text, text[:20]) for text in TEXTS])
    connection.commit()
    connection.close()
    data = (
        'kind = "sql"\npath = "a.sqlite"\nquery = "select question as prompt, reply as answer from pairs"\n'
    )
    prepared = task(texts, [], data=data)
    assert prepared.manifest["sources"][0]["kept"] == len(TEXTS)
    again = open_prepared(prepared.folder)
    assert isinstance(again, PreparedTask) and again.examples("train") == prepared.examples("train")
    with pytest.raises(DataError, match="no column 'reply2'"):
        task(texts, [], data=data + 'answer = "reply2"\n')
