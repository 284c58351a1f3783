"""What is measured is not trained on, whatever chats begin alike; and few chats are lost to that."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from making_tasks import Rows, chat, learnt, task_of
from tokenizers import Tokenizer

from bessemer.data.prepared import PreparedTask
from bessemer.errors import DataError

CHATML = 'template = "chatml"\n'


def asked(prepared: PreparedTask, split: Any) -> Counter[str]:
    """All before each answer with loss, as the model reads it: of the tokens and spans that were written."""
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    found: Counter[str] = Counter()
    examples = zip(prepared.lines(split), prepared.examples(split), strict=True)
    for line, example in examples:
        tokens = example.prompt_ids + example.answer_ids
        (spans,) = line["spans"]
        found.update(engine.decode(tokens[:begin], skip_special_tokens=False) for begin, _ in spans)
    return found


def leaks(prepared: PreparedTask) -> int:
    return int(prepared.manifest["sources"][0]["refused"].get("leak", 0))


def greeted(count: int, opening: str = "Hello") -> Rows:
    return [chat(opening, "Hi! How can I help?", f"q{n}", f"a{n}") for n in range(count)]


def test_common_opening_is_learnt_and_not_measured_and_no_chat_is_lost(tmp_path: Path) -> None:
    prepared = task_of(tmp_path, greeted(60), CHATML, validation=0.2)
    held_out = prepared.num_examples("validation")
    assert held_out > 5 and prepared.num_examples("train") == 60 - held_out and leaks(prepared) == 0
    assert all(text.startswith("a") for text in learnt(prepared, "validation"))
    assert all(text.startswith("Hi! How can I help?<|im_end|>a") for text in learnt(prepared))
    assert not asked(prepared, "validation").keys() & asked(prepared, "train").keys()
    assert prepared.manifest["common_beginnings"] == held_out


def test_opening_of_a_few_chats_is_a_leak(tmp_path: Path) -> None:
    few = [row for number in range(10) for row in greeted(5, f"Opening {number}")]
    prepared = task_of(tmp_path, [*few, *greeted(60)], CHATML, validation=0.2)
    measured, trained = asked(prepared, "validation"), asked(prepared, "train")
    assert not measured.keys() & trained.keys() and any("Opening" in text for text in measured)
    assert 0 < leaks(prepared) <= 50 and prepared.num_examples("train") > 60 * 0.6


def test_chat_of_nothing_but_a_common_exchange_is_not_held_out(tmp_path: Path) -> None:
    alone = [{**chat("Hello", f"Hi number {n}"), "id": f"alone {n}"} for n in range(30)]
    rows = [*({**row, "id": f"long {n}"} for n, row in enumerate(greeted(60))), *alone]
    prepared = task_of(tmp_path, rows, f'{CHATML}id = "id"', validation=0.2)
    names = [example.id for example in prepared.examples("validation")]
    assert names and all(name.startswith("long") for name in names)
    assert leaks(prepared) == len(rows) - len(names) - prepared.num_examples("train") > 0
    assert not asked(prepared, "validation").keys() & asked(prepared, "train").keys()
    assert "Hi number" in "".join(learnt(prepared))


@pytest.mark.parametrize("learn", ["answers", "last"])
@pytest.mark.parametrize("named", ["", 'id = "id"', 'group = "of"'])
def test_no_measured_answer_has_a_prompt_that_is_trained_on(tmp_path: Path, learn: str, named: str) -> None:
    draw = random.Random(5)

    def turns() -> list[str]:
        said = ["Hello", *(f"{draw.choice('abc')}{draw.randint(0, 30)}" for _ in range(draw.randint(0, 2)))]
        return [text for word in said for text in (word, f"{word}! {draw.randint(0, 1)}")]

    rows = [{**chat(*turns()), "id": n, "of": n % 50} for n in range(400)]
    prepared = task_of(tmp_path, rows, f'{CHATML}learn = "{learn}"\n{named}', validation=0.15)
    measured, trained = asked(prepared, "validation"), asked(prepared, "train")
    assert measured and not measured.keys() & trained.keys()
    if learn == "answers":
        hello = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        assert trained[hello] > 40 and prepared.manifest["common_beginnings"] > 0


def test_with_loss_on_all_a_common_opening_is_not_measured_either(tmp_path: Path) -> None:
    prepared = task_of(tmp_path, greeted(60), f'{CHATML}learn = "all"', validation=0.2)
    assert prepared.num_examples("train") + prepared.num_examples("validation") == 60
    assert all(text.startswith("a") and "Hi!" not in text for text in learnt(prepared, "validation"))
    assert all("Hi! How can I help?" in text for text in learnt(prepared))


def test_oldest_turns_that_are_cut_leave_what_is_measured(tmp_path: Path) -> None:
    rows = [chat("Hello", "Hi!", "w " * 20 + f"{n}", f"b{n}", f"q{n}", f"a{n}") for n in range(40)]
    prepared = task_of(tmp_path, rows, CHATML, more="context = 64", validation=0.2)
    assert prepared.manifest["splits"]["validation"]["turns_dropped"] > 0
    measured = learnt(prepared, "validation", context=64)
    assert measured and all("Hi!" not in text and "a" in text for text in measured)


def test_nothing_left_to_measure_is_an_error(tmp_path: Path) -> None:
    rows = [{**chat("Tell a story", f"Story {n}"), "id": n} for n in range(80)]
    with pytest.raises(DataError, match="no held-out answer is left to measure"):
        task_of(tmp_path, rows, f'{CHATML}id = "id"', validation=0.2)
    assert task_of(tmp_path, rows, f'{CHATML}id = "id"').num_examples("train") == 80


def test_prompts_that_differ_in_what_no_template_writes_are_one(tmp_path: Path) -> None:
    rows: Rows = [chat(f"p{n % 40}", f"a{n}") for n in range(200)]
    for number, row in enumerate(rows):
        for message in row["messages"]:
            message |= {"timestamp": number}
        row["messages"][-1] |= {"thinking": f"t{number}"}
    prepared = task_of(tmp_path, [*rows, *rows], CHATML, validation=0.2)
    measured, trained = asked(prepared, "validation"), asked(prepared, "train")
    assert measured and not measured.keys() & trained.keys()
    assert prepared.manifest["sources"][0]["refused"] == {"dedup.exact": 200}
