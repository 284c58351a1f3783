"""Every format of a task's rows, from every kind of file; a row that is wrong is counted with its place."""

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_tasks import Rows, chat, learnt, task_of, whole

from bessemer.data.labels import labels
from bessemer.data.rows import NO_LOSS
from bessemer.data.supported import check_task
from bessemer.errors import DataError, RecipeError
from bessemer.recipe.schema import FinetuneData

TALK = [chat(f"Ask {n}", f"Told {n}", f"More {n}", f"Again {n}") for n in range(6)]
CHATML = 'template = "chatml"\n'


def sharegpt(rows: Rows) -> Rows:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [
        {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]}
        for row in rows
    ]


def test_loss_is_on_every_answer_with_its_end_or_on_the_last_or_on_all(tmp_path: Path) -> None:
    rows = [chat("one", "two", "three", "four", system="sys")]
    text = (
        "<|im_start|>system\nsys<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>"
    )
    for learn, wanted in (
        ("answers", "two<|im_end|>four<|im_end|>"),
        ("last", "four<|im_end|>"),
        ("all", text.removeprefix("<|im_start|>") + "\n"),
    ):
        prepared = task_of(tmp_path, rows, f'{CHATML}learn = "{learn}"')
        assert learnt(prepared) == [wanted]
        assert whole(prepared) == [text + ("\n" if learn == "all" else "")]
    (example,) = task_of(tmp_path, rows, CHATML).examples("train")
    assert (
        example.answer == "four" and example.prompt == "system: sys\nuser: one\nassistant: two\nuser: three"
    )


def test_sharegpt_and_other_spellings_are_the_same_chats(tmp_path: Path) -> None:
    wanted = learnt(task_of(tmp_path, TALK, CHATML))
    assert wanted[0] == "Told 0<|im_end|>Again 0<|im_end|>"
    tails = [{"messages": [*row["messages"], {"role": "user", "content": "bye"}]} for row in TALK]
    columns = [
        {"messages": {key: [m[key] for m in row["messages"]] for key in ("role", "content")}} for row in TALK
    ]
    texts = [{"talk": json.dumps(row["messages"])} for row in TALK]
    for rows, data in ((sharegpt(TALK), ""), (tails, ""), (columns, ""), (texts, 'messages = "talk"\n')):
        assert learnt(task_of(tmp_path, rows, CHATML + data)) == wanted


def test_chats_come_from_every_kind_of_file(tmp_path: Path) -> None:
    wanted = learnt(task_of(tmp_path, TALK, CHATML))
    pq.write_table(pa.Table.from_pylist(TALK), tmp_path / "chats.parquet")
    with open(tmp_path / "chats.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["messages"])
        writer.writerows([[json.dumps(row["messages"])] for row in TALK])
    connection = sqlite3.connect(tmp_path / "chats.sqlite")
    connection.execute("create table chats (n integer primary key, messages text)")
    connection.executemany(
        "insert into chats values (?, ?)",
        [(n, json.dumps(row["messages"])) for n, row in enumerate(TALK)],
    )
    connection.commit()
    connection.close()
    folder = tmp_path / "saved"
    folder.mkdir()
    table = pa.Table.from_pylist(TALK)
    with pa.OSFile(str(folder / "data-0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    for data in (
        'kind = "parquet"\npath = "chats.parquet"',
        'kind = "csv"\npath = "chats.csv"',
        'kind = "sql"\npath = "chats.sqlite"\ntable = "chats"',
        'kind = "huggingface"\npath = "saved"',
    ):
        assert learnt(task_of(tmp_path, None, f"{CHATML}{data}\n")) == wanted, data


def test_instruction_triples_are_a_turn_each(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hi."},
        {"instruction": "Part.", "output": "Bye."},
    ]
    prepared = task_of(tmp_path, rows, 'system = "S"\n')
    assert prepared.task_format == "instruction" and prepared.manifest["template"]["name"] == "plain"
    assert whole(prepared) == [
        "<|bos|>System: S\nUser: Add.\n\n1 2\nAssistant: 3<|eos|>",
        "<|bos|>System: S\nUser: Greet.\nAssistant: Hi.<|eos|>",
        "<|bos|>System: S\nUser: Part.\nAssistant: Bye.<|eos|>",
    ]
    assert learnt(prepared) == [" 3<|eos|>", " Bye.<|eos|>", " Hi.<|eos|>"]


def test_prompts_stand_as_they_are_unless_a_template_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a ", "completion": "b"}]
    own = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    assert whole(task_of(tmp_path, rows, template=own)) == ["<|bos|>a b<|eos|>"]
    named = task_of(tmp_path, rows, 'template = "plain"\nanswer = "completion"')
    assert whole(named) == ["<|bos|>User: a \nAssistant: b<|eos|>"]


def test_both_documents_of_a_pair_are_in_one_row_and_only_their_answers_are_learnt(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n} ", "chosen": "good" * (n % 5 + 1), "rejected": "bad"} for n in range(25)]
    prepared = task_of(tmp_path, rows, more='method = "dpo"', validation=0.2)
    train, pairs = prepared.rows("train", 64), 0
    for index in range(len(train)):
        row, documents = train.row(index), train.documents(index)
        partner = row.columns["partner"]
        chosen = np.flatnonzero(partner).tolist()
        assert row.units == len(chosen) == len(documents) // 2
        assert chosen == [begin for number, begin, _ in documents if number % 2 == 0]
        assert partner[chosen].tolist() == [begin for number, begin, _ in documents if number % 2]
        assert (row.starts_T[partner[chosen]] == partner[chosen]).all()
        pairs += len(chosen)
    assert pairs == prepared.num_examples("train") == prepared.num_documents("train") // 2
    assert {text.replace("good", "") for text in learnt(prepared, context=64)} == {"<|eos|>", "bad<|eos|>"}
    example = prepared.examples("train")[0]
    assert example.rejected == "bad" and example.rejected_ids and "good" in example.answer
    assert [row["role"] for row in labels(prepared, "train")[:2]] == ["chosen", "rejected"]


def test_pairs_of_conversations_learn_what_is_behind_their_common_beginning(tmp_path: Path) -> None:
    talk = chat("one", "two", "three", "yes")["messages"]
    other = [*talk[:3], {"role": "assistant", "content": "no"}]
    rows = [{"chosen": talk, "rejected": other}]
    apart = [{"prompt": talk[:3], "chosen": talk[3:], "rejected": other[3:]}]
    for given in (rows, apart):
        prepared = task_of(tmp_path, given, CHATML, more='method = "orpo"')
        assert learnt(prepared) == ["no<|im_end|>", "yes<|im_end|>"]
        assert all(text.count("two") == 1 for text in whole(prepared))


def test_pairs_of_conversations_have_the_tokenizers_own_template_and_texts_have_none(tmp_path: Path) -> None:
    own = "{% for m in messages %}{{ m.role }}={{ m.content }}{{ eos_token }}{% endfor %}"
    sides = [chat("one", answer)["messages"] for answer in ("yes", "no")]
    pair = {"chosen": sides[0], "rejected": sides[1]}
    texts = {"prompt": "one", "chosen": "yes", "rejected": "no"}
    prepared = task_of(tmp_path, [pair, texts], more='method = "dpo"', template=own)
    wanted = ["user=one<|eos|>assistant=no<|eos|>", "user=one<|eos|>assistant=yes<|eos|>"]
    assert whole(prepared) == wanted and prepared.manifest["template"]["name"] == "of the tokenizer"
    assert prepared.manifest["sources"][0]["refused"] == {"dedup.exact": 1}  # the same, told otherwise
    prepared = task_of(tmp_path, [texts, pair], more='method = "dpo"', template=own)
    assert whole(prepared) == ["<|bos|>oneno<|eos|>", "<|bos|>oneyes<|eos|>"]
    assert prepared.manifest["template"] is None
    assert prepared.manifest["sources"][0]["errors"] == {"not_text": 1}


def test_target_of_a_text_is_its_label_at_the_last_token(tmp_path: Path) -> None:
    rows = [{"text": f"A case of number {n}.", "label": ["ill", "well", 3][n % 3]} for n in range(30)]
    prepared = task_of(tmp_path, rows, more='method = "classify"', validation=0.2)
    assert prepared.labels == ["3", "ill", "well"]
    assert sum(prepared.label_counts("train")) == prepared.num_examples("train")
    train, seen = prepared.rows("train", 64), []
    for index in range(len(train)):
        row = train.row(index)
        ends = [end - 1 for _, _, end in train.documents(index)]
        assert np.flatnonzero(row.targets_T != NO_LOSS).tolist() == ends
        seen += row.targets_T[ends].tolist()
    assert np.bincount(seen).tolist() == prepared.label_counts("train")
    example = prepared.examples("validation")[0]
    assert example.label == prepared.labels.index(example.answer) and not example.answer_ids


def test_numbers_of_a_saved_data_set_have_the_names_that_it_keeps(tmp_path: Path) -> None:
    feature = {"names": ["ill", "well"], "_type": "ClassLabel"}
    about = json.dumps({"info": {"features": {"label": feature, "text": {"_type": "Value"}}}})
    rows = [{"text": f"Case {n}", "label": n % 2 if n else -1} for n in range(21)]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": about})
    pq.write_table(table, tmp_path / "cases.parquet")
    data = 'kind = "parquet"\npath = "cases.parquet"'
    prepared = task_of(tmp_path, None, data, more='method = "classify"')
    assert prepared.labels == ["ill", "well"] and prepared.label_counts("train") == [10, 10]
    assert prepared.manifest["lost"][0]["told"] == "label -1"


def test_label_without_a_training_row_is_refused_with_its_place(tmp_path: Path) -> None:
    rows: Rows = [{"text": f"Case {n}", "label": n % 2, "id": n} for n in range(40)]
    once = task_of(tmp_path, rows, 'id = "id"', more='method = "classify"', validation=0.3)
    (held_out, *_) = [int(example.id) for example in once.examples("validation")]
    rows[held_out]["label"] = "rare"
    prepared = task_of(tmp_path, rows, 'id = "id"', more='method = "classify"', validation=0.3)
    assert prepared.manifest["sources"][0]["refused"] == {"label.unseen": 1}
    place = f"task.jsonl:{held_out + 1}"
    assert prepared.manifest["lost"] == [
        {"place": place, "reason": "label.unseen", "told": "'rare', which no training row has"}
    ]
    named = 'id = "id"\nlabels = ["1", "0"]'
    prepared = task_of(tmp_path, rows, named, more='method = "classify"', validation=0.3)
    assert prepared.labels == ["1", "0"] and prepared.manifest["sources"][0]["kept"] == 39
    with pytest.raises(DataError, match="labels that are none"):
        task_of(tmp_path, [{"text": "a", "label": 1}], more='method = "classify"')


def test_long_text_goes_on_in_further_documents(tmp_path: Path) -> None:
    text = "word " * 60
    prepared = task_of(tmp_path, [{"text": text}, {"text": "short"}], more="context = 32")
    assert prepared.task_format == "text" and prepared.num_documents("train") > 3
    assert sum(len(part) for part in whole(prepared)) == len("<|bos|><|eos|>" * 2 + text + "short")


TWO = chat("a", "b")["messages"]
BAD: list[tuple[Any, str, str]] = [
    ({"messages": [{"role": "assistant", "content": "x"}]}, "role.order", "message 1: assistant begins"),
    (chat("a", "b", "c", "d")["messages"][1:3], "role.order", "message 1: assistant begins"),
    ([*TWO, {"role": "assistant", "content": "c"}], "role.order", "assistant after assistant"),
    ([*TWO, {"role": "system", "content": "c"}], "role.order", "system after assistant"),
    ([{"role": "usr", "content": "a"}], "role.unknown", "'usr'"),
    (chat("a", " ")["messages"], "empty", "message 2: assistant says nothing"),
    (chat("a", ["b"])["messages"], "not_text", "message 2"),
    ([{"role": "user"}, {"role": "assistant", "content": "b"}], "missing", "message 1: no content"),
    ([{"content": "a"}], "missing", "no role"),
    (["a"], "not_messages", "message 1: str"),
    ("a", "not_messages", "'a'"),
    ([], "empty", "no message"),
    (None, "missing", ""),
]  # fmt: skip


def test_chats_that_are_none_are_counted_by_reason_with_file_and_row(tmp_path: Path) -> None:
    bad = [value if isinstance(value, dict) else {"messages": value} for value, _, _ in BAD]
    prepared = task_of(tmp_path, [*TALK, *bad], CHATML)
    source, lost = prepared.manifest["sources"][0], prepared.manifest["lost"]
    assert source["rows_in"] == len(TALK) + len(BAD) and source["kept"] == len(TALK)
    assert sum((source["refused"] | source["errors"]).values()) == len(BAD)
    assert source["refused"] == {"empty": 2, "role.order": 4}
    assert source["errors"] == {"missing": 3, "not_messages": 2, "not_text": 1, "role.unknown": 1}
    for number, (_, reason, told) in enumerate(BAD, len(TALK) + 1):
        (row,) = [row for row in lost if row["place"] == f"task.jsonl:{number}"]
        assert row["reason"] == reason and told in row["told"]


def test_rows_that_are_there_already_are_told_with_their_places_too(tmp_path: Path) -> None:
    prepared = task_of(tmp_path, [*TALK, TALK[2]], CHATML)
    assert prepared.manifest["sources"][0]["refused"] == {"dedup.exact": 1}
    assert prepared.manifest["lost"] == [{"place": "task.jsonl:7", "reason": "dedup.exact", "told": ""}]


def test_two_users_in_a_row_are_left_to_the_template(tmp_path: Path) -> None:
    twice = {"messages": [{"role": "user", "content": "a"}, *chat("b", "c")["messages"]]}
    assert learnt(task_of(tmp_path, [twice], CHATML)) == ["c<|im_end|>"]
    strict = (
        "{% for m in messages %}{% if loop.index0 > 0 and m.role == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    prepared = task_of(tmp_path, [twice, *TALK], template=strict)
    assert prepared.manifest["sources"][0]["refused"] == {"template": 1}
    assert "roles must alternate" in prepared.manifest["lost"][0]["told"]


def test_over_a_percent_of_rows_with_nothing_to_learn_is_an_error_unless_allowed(tmp_path: Path) -> None:
    silent = {"messages": chat("a")["messages"]}
    few = [chat(f"a{n}", "b") for n in range(199)]
    assert task_of(tmp_path, [*few, silent], CHATML).manifest["sources"][0]["refused"] == {"masked": 1}
    with pytest.raises(DataError, match=r"2 of 8 rows have nothing to learn") as caught:
        task_of(tmp_path, [*TALK, silent, silent], CHATML)
    assert "task.jsonl:7" in caught.value.found and caught.value.exit_code == 65
    prepared = task_of(tmp_path, [*TALK, silent, silent], f"{CHATML}allow_masked = true")
    assert prepared.num_examples("train") == len(TALK)


def test_long_chat_loses_its_oldest_turns_and_answers_that_are_cut_are_counted(tmp_path: Path) -> None:
    short = [chat(f"q{n}", "fine") for n in range(150)]
    long = chat("oldest " * 9, "first", "older " * 9, "second", "new", "third", system="sys")
    prepared = task_of(tmp_path, [*short, long], CHATML, more="context = 64")
    counts = prepared.manifest["splits"]["train"]
    assert counts["turns_dropped"] == 4 and counts["prompts_cut"] == counts["answers_cut"] == 0
    (kept,) = [text for text in whole(prepared, context=64) if "sys" in text]
    assert "older" not in kept and kept.endswith("new<|im_end|>\n<|im_start|>assistant\nthird<|im_end|>")
    wordy = [chat(f"q{n}", "word " * 40) for n in range(30)]
    prepared = task_of(tmp_path, [*short, *wordy], CHATML, more="context = 64")
    counts = prepared.manifest["splits"]["train"]
    assert counts["answers_cut"] == 30 and prepared.manifest["context_99"] > 64
    again = task_of(tmp_path, wordy, CHATML, more=f"context = {prepared.manifest['context_99']}")
    assert again.manifest["splits"]["train"]["answers_cut"] == 0 and again.manifest["context_99"] is None


def test_one_example_a_row_without_packing(tmp_path: Path) -> None:
    prepared = task_of(tmp_path, TALK, f"{CHATML}packing = false")
    assert len(prepared.rows("train", 256)) == len(TALK)
    assert len(task_of(tmp_path, TALK, CHATML).rows("train", 256)) < len(TALK)


def test_held_out_group_of_chats_is_not_trained_on(tmp_path: Path) -> None:
    rows = [{**row, "from_": n % 9} for n, row in enumerate(chat(f"q{n}", "a") for n in range(90))]
    prepared = task_of(tmp_path, rows, f'{CHATML}group = "from_"', validation=0.2)
    groups = [{row["group"] for row in labels(prepared, split)} for split in ("train", "validation")]  # type: ignore[arg-type]
    assert groups[1] and not groups[0] & groups[1]


@pytest.mark.parametrize(
    ("values", "method", "told"),
    [
        ({"format": "prompt"}, "dpo", "is of no use to method"),
        ({"format": "preference"}, "full", "is of no use to method"),
        ({"format": "text"}, "classify", "is of no use to method"),
        ({"labels": ["a", "b"], "prompt": "p"}, "lora", r"labels has no effect beside format = \"prompt\""),
        ({"messages": "m", "answer": "a"}, "full", "answer has no effect"),
        ({"text": "t", "template": "chatml"}, "full", "template has no effect"),
        ({"learn": "last"}, "dpo", "learn has no effect"),
        ({"prompt": "p", "system": "s"}, "full", "system has no effect on prompts"),
        ({"kind": "jsonl", "url_env": "DSN"}, "full", "url_env has no effect"),
    ],
)
def test_setting_that_would_do_nothing_is_refused(values: dict[str, Any], method: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        check_task(FinetuneData.model_validate({"path": "a", **values}), method)
    check_task(FinetuneData.model_validate({"path": "a"}), method)
