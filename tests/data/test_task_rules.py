"""What is held out, told apart, asked and refused of chats, pairs and texts that are learnt whole."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from making import QUIET, build
from making_tasks import Rows, chat, learnt, task_of, whole
from tokenizers import Tokenizer

from bessemer.data.prepared import PreparedTask
from bessemer.data.store import prepare_task
from bessemer.errors import RecipeError
from bessemer.recipe.load import load

CHATML = 'template = "chatml"\n'


def text_of(prepared: PreparedTask, ids: list[int]) -> str:
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    return str(engine.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("learn", ["answers", "last", "all"])
def test_no_learnt_answer_has_a_prompt_that_is_held_out(tmp_path: Path, learn: str) -> None:
    short = [chat(f"q{n}", f"a{n}") for n in range(40)]
    long = [chat(f"q{n}", f"a{n}", f"r{n}", f"b{n}") for n in range(40)]
    data = f'{CHATML}learn = "{learn}"'
    prepared = task_of(tmp_path, [*short, *long], data, validation=0.3)

    def asked(split: Any) -> set[str]:
        """Everything before an answer that is learnt, as the model reads it."""
        found = set()
        for example in prepared.examples(split):
            text = text_of(prepared, example.prompt_ids + example.answer_ids)
            parts = text.split("assistant\n")
            places = range(1, len(parts)) if learn != "last" else [len(parts) - 1]
            found |= {"assistant\n".join(parts[:place]) for place in places}
        return found

    held_out = asked("validation")
    assert held_out and not held_out & asked("train")
    refused = prepared.manifest["sources"][0]["refused"]
    assert ("leak" in refused) == (learn != "last")


def test_a_pair_is_not_trained_on_whose_prompt_is_held_out(tmp_path: Path) -> None:
    def sides(n: int, *answers: str) -> dict[str, Any]:
        both = [chat(f"q{n % 30}", answer)["messages"] for answer in answers]
        return {"id": n, "chosen": both[0], "rejected": both[1]}

    rows = [sides(n, f"good {n}", "bad") for n in range(60)]
    prepared = task_of(tmp_path, rows, f'{CHATML}id = "id"', more='method = "dpo"', validation=0.3)
    prompts = [{one.prompt for one in prepared.examples(split)} for split in ("train", "validation")]  # type: ignore[arg-type]
    assert prompts[1] and not prompts[0] & prompts[1]
    assert prepared.manifest["sources"][0]["refused"]["leak"] > 0


def test_a_model_that_learns_all_is_asked_with_all_before_the_last_answer(tmp_path: Path) -> None:
    rows = [chat("one", "two", "three", "four", system="sys")]
    answers = task_of(tmp_path, rows, CHATML).examples("train")[0]
    prepared = task_of(tmp_path, rows, f'{CHATML}learn = "all"')
    (example,) = prepared.examples("train")
    assert example.prompt_ids == answers.prompt_ids
    assert example.answer_ids[: len(answers.answer_ids)] == answers.answer_ids
    assert text_of(prepared, example.answer_ids) == "four<|im_end|>\n"
    assert learnt(prepared)[0].startswith("system\nsys<|im_end|>")
    texts = task_of(tmp_path, [{"prompt": "ask ", "answer": "told"}], 'learn = "all"')
    (example,) = texts.examples("train")
    assert text_of(texts, example.prompt_ids) == "<|bos|>ask " and learnt(texts) == ["ask told<|eos|>"]


def test_the_last_answer_outlives_every_cut_of_what_is_learnt_whole(tmp_path: Path) -> None:
    rows = [{"prompt": "filling " * 40, "answer": "the answer"}]
    prepared = task_of(tmp_path, rows, 'learn = "all"', more="context = 64")
    (example,) = prepared.examples("train")
    assert text_of(prepared, example.answer_ids) == "the answer<|eos|>"
    assert len(example.prompt_ids) + len(example.answer_ids) == 64
    for context in (64, 40):  # cut again where the rows of a model are shorter
        assert whole(prepared, context=context)[0].endswith("the answer<|eos|>")
        assert learnt(prepared, context=context)[0].startswith("filling ")


def call(name: str, asked: str = "Weather?") -> dict[str, Any]:
    about = {"name": "look", "arguments": {"town": name}}
    said = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": about}]}
    told = {"role": "tool", "content": "It rains."}
    begin, end = chat(asked, "It is wet.")["messages"]
    return {"messages": [begin, said, told, end]}


def test_chats_that_differ_in_a_call_of_a_tool_or_a_thought_are_no_duplicates(tmp_path: Path) -> None:
    calls = [call("Bonn"), call("Rome"), call("Bonn")]
    ends = [{"messages": row["messages"][:2]} for row in calls]
    thoughts: Rows = [chat("1+1", "2") for _ in range(3)]
    for row, thought in zip(thoughts, ("a", "b", "a"), strict=True):
        row["messages"][1]["reasoning_content"] = thought
    tool = (
        "{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls }}{{ m.reasoning_content }}"
        "{{ eos_token }}{% endfor %}"
    )
    for rows in (calls, ends, thoughts):
        source = task_of(tmp_path, rows, template=tool).manifest["sources"][0]
        assert source["refused"] == {"dedup.exact": 1} and source["kept"] == 2


def test_answers_of_a_pair_may_be_lists_of_json(tmp_path: Path) -> None:
    pair = {"prompt": "points ", "chosen": '[{"x": 0}]', "rejected": '[{"x": 1, "of": "[{"}]'}
    prepared = task_of(tmp_path, [pair], more='method = "dpo"')
    assert learnt(prepared) == [f"{pair['chosen']}<|eos|>", f"{pair['rejected']}<|eos|>"]
    said = {key: json.dumps(chat("one", key)["messages"]) for key in ("chosen", "rejected")}
    broken = {**said, "chosen": said["chosen"][:-1]}
    prepared = task_of(tmp_path, [said, broken], CHATML, more='method = "dpo"')
    assert learnt(prepared) == ["chosen<|im_end|>", "rejected<|im_end|>"]
    assert prepared.manifest["sources"][0]["errors"] == {"not_messages": 1}


@pytest.mark.parametrize(
    ("row", "data", "told"),
    [
        ({"prompt": "a ", "answer": "b"}, 'system = "S"', "system has no effect on prompts"),
        ({"prompt": "a ", "completion": "b"}, 'system = "S"', "system has no effect on prompts"),
        ({"text": "a"}, CHATML, "template has no effect"),
        ({"text": "a"}, 'learn = "all"', "learn has no effect"),
        (chat("a", "b"), 'labels = ["a", "b"]', "labels has no effect"),
    ],
)
def test_setting_that_the_columns_leave_without_effect_is_refused(
    tmp_path: Path, row: dict[str, Any], data: str, told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        task_of(tmp_path, [row], data)


def test_own_template_is_written_beside_the_tokenizer_whatever_was_prepared_before(tmp_path: Path) -> None:
    rows = [{"prompt": "a ", "answer": "b"}]
    bare = task_of(tmp_path, rows)
    own = task_of(tmp_path, rows, template="{{ messages }}")
    assert own.hash != bare.hash and whole(own) == whole(bare)
    config = json.loads((own.folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"
    assert "chat_template" not in json.loads((bare.folder / "tokenizer_config.json").read_text())


def test_sum_that_is_held_out_is_in_nothing_that_grpo_arithmetic_reads(tmp_path: Path) -> None:
    recipes = resources.files("bessemer.recipes")
    for name in ("grpo-arithmetic.toml", "grpo-arithmetic.jsonl"):
        (tmp_path / name).write_text((recipes / name).read_text(encoding="utf-8"), encoding="utf-8")
    recipe = load(str(tmp_path / "grpo-arithmetic.toml"), []).recipe
    data = build(recipe, tmp_path)
    task = prepare_task(recipe, tmp_path, tmp_path / "store", data.tokenizer_path, QUIET)
    prompts = [example.prompt for example in task.examples("validation")]
    engine = Tokenizer.from_file(str(data.tokenizer_path))
    sums = {
        engine.decode(stream.document(number).tolist()).split("=")[0] + "="
        for stream in data.streams("train")
        for number in range(len(stream.borders) - 1)
    }
    assert len(prompts) > 20 and len(sums) > 300 and not set(prompts) & sums
