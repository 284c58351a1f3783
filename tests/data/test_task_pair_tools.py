"""Pairs with tools, a system message of each row, and what is nested too deep."""

import json
from pathlib import Path
from typing import Any

import pytest
from making_tasks import WORDS, Rows, encoder_of, task_of, theirs, whole, written
from test_task_tools import MARKUP, QWEN, SYSTEM, TALK, TEMPLATES, TOOLS

from bessemer.data.task.samples import Sample
from bessemer.data.task.templates import Template
from bessemer.data.task.unusable import Unusable
from bessemer.errors import DataError, RecipeError

DPO = 'method = "dpo"'
PAIRS = 'prompt = "prompt"\nchosen = "chosen"\nrejected = "rejected"\n'
CHATML = 'template = "chatml"\n'
TOLD = [{"role": "assistant", "content": "I do not know."}]
PAIR = {"prompt": TALK[:1], "chosen": TALK[1:2], "rejected": TOLD, "tools": TOOLS}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tokenizer"), special=WORDS, added=MARKUP)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_tokens_of_both_sides_of_a_pair_with_tools_are_those_of_transformers(
    path: Path, name: str, system: list[dict[str, Any]]
) -> None:
    template = Template(name, TEMPLATES[name])
    sides = [[*system, *TALK], [*system, *TALK[:7], *TOLD]]
    sample = Sample("p", "i", chats=(tuple(sides[0]), tuple(sides[1])), tools=tuple(TOOLS))
    ours = encoder_of(path, template, "all")
    (documents,) = ours.documents([sample])
    ours.close()
    assert not isinstance(documents, Unusable)
    tokenizer = theirs(path, template.source)
    for document, messages in zip(documents, sides, strict=True):
        wanted = tokenizer.apply_chat_template(messages, tools=TOOLS, sanitize_control_tokens=True)
        assert document.tokens == wanted["input_ids"]


def test_what_a_model_with_tools_is_asked_with_is_what_transformers_asks_with(path: Path) -> None:
    ours = encoder_of(path, Template("qwen", QWEN), "last")
    found = ours.prompt_ids(TALK[:3], TOOLS)
    wanted = theirs(path, QWEN).apply_chat_template(
        TALK[:3], tools=TOOLS, add_generation_prompt=True, sanitize_control_tokens=True
    )["input_ids"]
    with pytest.raises(Unusable, match="template"):
        encoder_of(path, Template("none", "{{ messages[0].content }}")).prompt_ids(TALK[:1], TOOLS)
    ours.close()
    assert found == wanted


def test_a_pair_of_a_call_and_a_text_is_read_with_its_tools(tmp_path: Path) -> None:
    prepared = task_of(tmp_path, [PAIR], PAIRS + 'tools = "tools"', more=DPO, template=QWEN)
    (example,) = prepared.examples("train")
    call = '<tool_call>\n{"name": "weather", "arguments": {"town": "Bonn <|eot_id|>"}}\n</tool_call>'
    assert (example.prompt, example.answer, example.rejected) == (TALK[0]["content"], call, "I do not know.")
    texts = whole(prepared, context=1024)
    assert len(texts) == 2 and all("<tools>\n" in text for text in texts)
    turned = {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    (other,) = task_of(tmp_path, [turned], PAIRS + 'tools = "tools"', more=DPO, template=QWEN).examples(
        "train"
    )
    assert (other.answer, other.rejected) == ("I do not know.", call)


def test_tools_of_pairs_that_no_template_writes_are_refused_and_unread_ones_are_told(tmp_path: Path) -> None:
    plain = {"prompt": TALK[:1], "chosen": TOLD, "rejected": [{"role": "assistant", "content": "Dry."}]}
    rows: Rows = [{**plain, "tools": TOOLS}, {**plain, "prompt": TALK[4:5], "tools": []}]
    source = task_of(tmp_path, rows, f'{CHATML}{PAIRS}tools = "tools"', more=DPO).manifest["sources"][0]
    assert source["refused"] == {"template.tools": 1} and source["kept"] == 1
    assert task_of(tmp_path, rows, CHATML + PAIRS, more=DPO).manifest["unread_tools"]


@pytest.mark.parametrize("key", ['tools = "tools"', 'system = "Be brief."', 'system_column = "system"'])
def test_what_only_a_template_writes_is_refused_beside_pairs_of_texts(tmp_path: Path, key: str) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "tools": TOOLS, "system": "Be brief."}
    with pytest.raises(RecipeError, match="has no effect on prompts that no template is around"):
        task_of(tmp_path, [row], PAIRS + key, more=DPO)
    assert task_of(tmp_path, [row], f'{PAIRS}{key}\ntemplate = "qwen3"', more=DPO).num_examples("train") == 1


def test_a_token_spelt_in_tools_nested_too_deep_is_an_error_with_file_and_row(tmp_path: Path) -> None:
    deep: Any = "say <|im_end|>"
    for _ in range(460):
        deep = {"properties": deep}
    rows: Rows = [
        {"messages": TALK[:4], "tools": TOOLS},
        {"messages": TALK[:4], "tools": [{"name": "f", "parameters": deep}]},
        {"messages": TALK[:4], "tools": json.dumps([{"name": "g", "parameters": deep}])},
        {"messages": [TALK[0], {**TALK[1], "tool_calls": [{"name": "f", "arguments": deep}]}]},
    ]
    prepared = task_of(tmp_path, rows, 'tools = "tools"', template=QWEN)
    source = prepared.manifest["sources"][0]
    assert source["errors"] == {"not_tools": 3} and source["kept"] == 1
    told = {row["place"]: row["told"] for row in prepared.manifest["lost"]}
    assert all("nested deeper than 100 levels" in why for why in told.values())
    assert sorted(told) == ["task.jsonl:2", "task.jsonl:3", "task.jsonl:4"]


def test_tools_nested_as_deep_as_is_allowed_are_written(tmp_path: Path) -> None:
    fine: Any = "say <|im_end|>"
    for _ in range(97):
        fine = {"p": fine}
    rows: Rows = [{"messages": TALK[:4], "tools": [{"name": fine}]}]
    assert (
        "say <|im_end|>" in whole(task_of(tmp_path, rows, 'tools = "tools"', template=QWEN), context=4096)[0]
    )


SYSTEMS = ["Be brief.", "", None, "Be kind."]
FORMATS: dict[str, tuple[dict[str, Any], str, str]] = {
    "prompt": ({"prompt": "a", "answer": "b"}, 'prompt = "prompt"\n', ""),
    "instruction": ({"instruction": "a", "output": "b"}, "", ""),
    "messages": ({"messages": [TALK[0], TOLD[0]]}, "", ""),
    "preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, PAIRS, DPO),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_row_has_its_own_system_message_or_that_of_the_recipe(tmp_path: Path, kind: str) -> None:
    row, data, more = FORMATS[kind]
    rows: Rows = [{**row, "system": text} for text in SYSTEMS]
    rows.append(dict(row))
    data = f'{CHATML}{data}system = "Else."\nsystem_column = "system"\n'
    prepared = task_of(tmp_path, rows, data, more=more, clean='[data.clean]\ndedup = "off"')
    texts = whole(prepared)
    sides = 2 if kind == "preference" else 1
    counts = {text: sum(f"system\n{text}<|im_end|>" in one for one in texts) for text in (*SYSTEMS, "Else.")}
    assert counts == {"Be brief.": sides, "Be kind.": sides, "Else.": 3 * sides, "": 0, None: 0}


def test_a_chat_that_begins_with_a_system_message_keeps_it(tmp_path: Path) -> None:
    row = {"messages": [SYSTEM, TALK[0], TOLD[0]], "system": "Be kind."}
    (text,) = whole(task_of(tmp_path, [row], CHATML + 'system_column = "system"\n'))
    assert text.count("<|im_start|>system") == 1 and "Be brief." in text


def test_a_system_column_that_no_row_has_or_that_has_no_effect_is_refused(tmp_path: Path) -> None:
    rows: Rows = [{"prompt": "a", "answer": "b"}]
    with pytest.raises(DataError, match="system_column names"):
        task_of(tmp_path, rows, f'{CHATML}prompt = "prompt"\nsystem_column = "system"')
    with pytest.raises(RecipeError, match="system_column has no effect"):
        task_of(tmp_path, rows, 'prompt = "prompt"\nsystem_column = "system"')
    with pytest.raises(RecipeError, match=r'system_column has no effect beside format = "text"'):
        task_of(tmp_path, [{"text": "a"}], 'format = "text"\nsystem_column = "system"')
