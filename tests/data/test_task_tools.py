"""Chats with tools: written as transformers writes them, learnt where the assistant speaks or calls."""
# ruff: noqa: E501 (templates are as their makers wrote them)

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_tasks import WORDS, Rows, chat, encoder_of, learnt, sample_of, task_of, theirs, whole, written

from bessemer.data.task.messages import messages_of, tools_of
from bessemer.data.task.telling import told_lines
from bessemer.data.task.templates import Template, find_template, shipped

# Shortened from Qwen2.5-Instruct's: what it writes of tools, calls and results is as it is there.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nYou are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <json>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
# Shortened from Llama 3.1's: tools stand in the first user's turn, a call is the whole turn.
LLAMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- set first_user_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nGiven the following functions, answer in JSON.\\n\\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
TEMPLATES = {"qwen": QWEN, "llama": LLAMA, "qwen3": shipped("qwen3").source}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    about = {"name": name, "description": f"Say {name}, and ü, or <|im_end|>.", "parameters": parameters}
    return {"type": "function", "function": about}


def called(name: str, **arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


TOOLS = [tool("weather", town={"type": "string"}), tool("add", a={"type": "number"}, b={"enum": [1, None]})]
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Is it wet in Bonn?"},
    called("weather", town="Bonn <|eot_id|>"),
    {"role": "tool", "content": "It rains <|im_end|> there."},
    {"role": "assistant", "content": "Yes, it is."},
    {"role": "user", "content": "And 1 + 2?"},
    called("add", a=1, b=2),
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]
ROW = {"messages": TALK, "tools": TOOLS}
SYSTEM = {"role": "system", "content": "Be brief."}
MARKUP = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tokenizer"), special=WORDS, added=MARKUP)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("has_tools", [True, False])
@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_tokens_of_chats_with_tools_are_those_of_transformers(
    path: Path, name: str, has_tools: bool, system: list[dict[str, Any]]
) -> None:
    template, messages = Template(name, TEMPLATES[name]), [*system, *TALK]
    tools = TOOLS if has_tools else None
    wanted = theirs(path, template.source).apply_chat_template(
        messages, tools=tools, sanitize_control_tokens=True
    )["input_ids"]
    ours = encoder_of(path, template, "all")
    ((document,),) = ours.documents([sample_of({"messages": messages, "tools": tools or ()})])
    ours.close()
    assert document.tokens == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_loss_is_on_what_the_assistant_says_and_calls_and_never_on_what_a_tool_answers(
    path: Path, name: str
) -> None:
    ours = encoder_of(path, Template(name, TEMPLATES[name]))
    ((document,),) = ours.documents([sample_of(ROW)])
    ours.close()
    said = [ours._tokenizer.decode(document.tokens[begin:end]).strip() for begin, end in document.spans]
    end = "<|eot_id|>" if name == "llama" else "<|im_end|>"
    think = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    key, left, right = "arguments", "<tool_call>\n", "\n</tool_call>"
    if name == "llama":
        key, left, right = "parameters", "", ""
    assert said == [
        f'{think}{left}{{"name": "weather", "{key}": {{"town": "Bonn <|eot_id|>"}}}}{right}{end}',
        f"{think}Yes, it is.{end}",
        f'{think}{left}{{"name": "add", "{key}": {{"a": 1, "b": 2}}}}{right}{end}',
        f"{think}It is 3.{end}",
    ]
    assert all(document.tokens[end - 1] == document.tokens[-1] for _, end in document.spans)


def test_answer_that_is_a_call_is_told_as_a_model_writes_it(tmp_path: Path) -> None:
    rows = [{"messages": TALK[:2], "tools": TOOLS}]
    (example,) = task_of(tmp_path, rows, 'tools = "tools"', template=QWEN).examples("train")
    call = '<tool_call>\n{"name": "weather", "arguments": {"town": "Bonn <|eot_id|>"}}\n</tool_call>'
    assert example.prompt == "Is it wet in Bonn?" and example.answer == call
    (later,) = task_of(tmp_path, [ROW], 'tools = "tools"', template=QWEN).examples("train")
    assert '"arguments": {"town": "Bonn <|eot_id|>"}' in later.prompt


def test_several_calls_and_results_of_one_turn_are_written_together(path: Path) -> None:
    both = {**called("weather", town="Bonn"), "content": "I look."}
    both["tool_calls"] += called("weather", town="Rome")["tool_calls"]
    results = [{"role": "tool", "content": text} for text in ("wet", "dry")]
    messages = [TALK[0], both, *results, {"role": "assistant", "content": "Wet and dry."}]
    ours = encoder_of(path, Template("qwen", QWEN), "all")
    ((document,),) = ours.documents([sample_of({"messages": messages, "tools": TOOLS})])
    ours.close()
    wanted = theirs(path, QWEN).apply_chat_template(messages, tools=TOOLS, sanitize_control_tokens=True)
    assert document.tokens == wanted["input_ids"]


def test_tools_come_from_every_kind_of_file_as_lists_or_as_texts(tmp_path: Path) -> None:
    rows = [{"messages": TALK, "tools": TOOLS}, {"messages": TALK[:2] + TALK[6:], "tools": []}]
    data = 'tools = "tools"\n'
    wanted = whole(task_of(tmp_path, rows, data, template=QWEN), context=1024)
    assert "<tools>" in wanted[0] + wanted[1] and len(wanted) == 2
    texts = [{key: json.dumps(value) for key, value in row.items()} for row in rows]
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["messages", "tools"])
        writer.writeheader()
        writer.writerows(texts)
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=2))
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "rows.parquet")
    for kind in ("csv", "json", "parquet"):
        told = f'kind = "{kind}"\npath = "rows.{kind}"\n{data}'
        assert whole(task_of(tmp_path, None, told, template=QWEN), context=1024) == wanted, kind


def test_nulls_that_a_table_puts_into_tools_and_calls_are_not_written(tmp_path: Path) -> None:
    tools = [TOOLS[0], tool("add", a={"type": "number"})]
    rows = [
        {"messages": TALK[:4], "tools": tools},
        {"messages": [TALK[4], called("add", a=1)], "tools": tools},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    told = 'kind = "parquet"\npath = "rows.parquet"\ntools = "tools"'
    found = whole(task_of(tmp_path, None, told, template=QWEN), context=1024)
    assert len(found) == 2 and not any("null" in text for text in found)
    assert found == whole(task_of(tmp_path, rows, 'tools = "tools"', template=QWEN), context=1024)


def test_calls_as_others_write_them_are_the_same_calls(path: Path) -> None:
    arguments = {"town": "Bonn <|eot_id|>"}
    flat = {"name": "weather", "arguments": arguments}
    as_text = {"function": {"name": "weather", "arguments": json.dumps(arguments)}}
    others: list[list[dict[str, Any]]] = [
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", **as_text}]}],
        [{"role": "assistant", "tool_calls": [flat]}],
        [{"role": "assistant", "tool_calls": json.dumps([flat])}],
        [{"from": "function_call", "value": json.dumps(flat)}],
    ]
    ours = encoder_of(path, Template("llama", LLAMA), "all")
    ((wanted,),) = ours.documents([sample_of(ROW)])
    for call in others:
        messages = messages_of([TALK[0], *call, {"from": "observation", "value": TALK[2]["content"]}])
        ((document,),) = ours.documents([sample_of({**ROW, "messages": [*messages, *TALK[3:]]})])
        assert document == wanted, call
    ours.close()


def test_template_that_knows_no_tools_refuses_rows_that_have_some(tmp_path: Path) -> None:
    plain = {"messages": chat("a", "b")["messages"]}
    text_call = {"messages": chat("c", "d")["messages"], "tools": TOOLS}
    rows: Rows = [plain, text_call, {"messages": TALK}, {**plain, "messages": chat("e", "f")["messages"]}]
    for name in ("chatml", "llama3", "plain"):
        prepared = task_of(tmp_path, rows, f'template = "{name}"\ntools = "tools"')
        source = prepared.manifest["sources"][0]
        assert source["refused"] == {"template.tools": 2} and source["kept"] == 2
        told = {row["place"]: row["told"] for row in prepared.manifest["lost"]}
        assert told["task.jsonl:2"].startswith("tools, which the template") and name in told["task.jsonl:2"]
        assert told["task.jsonl:3"].startswith("tool_calls, which")
    assert task_of(tmp_path, rows, 'template = "qwen3"\ntools = "tools"').num_examples("train") == 4
    remarked = "{# no tools, no tool_calls #}" + shipped("chatml").source
    assert task_of(tmp_path, rows, 'tools = "tools"', template=remarked).num_examples("train") == 2


def test_tools_that_are_none_are_errors_with_their_row(tmp_path: Path) -> None:
    rows: Rows = [{**chat(f"q{n}", "a"), "tools": TOOLS} for n in range(4)]
    bad: list[Any] = ["weather", ["weather"], "[1]", {"name": "f"}]
    none: list[Any] = [None, [], "", "null", "[]"]
    rows += [{**chat(f"r{n}", "a"), "tools": value} for n, value in enumerate([*bad, *none])]
    prepared = task_of(tmp_path, rows, 'tools = "tools"', template=QWEN)
    source = prepared.manifest["sources"][0]
    assert source["errors"] == {"not_tools": 4} and source["kept"] == 4 + len(none)
    assert [row["place"] for row in prepared.manifest["lost"]] == [f"task.jsonl:{n}" for n in range(5, 9)]
    assert tools_of(json.dumps(TOOLS)) == tuple(TOOLS)


def test_chats_that_differ_in_their_tools_are_no_duplicates(tmp_path: Path) -> None:
    rows: Rows = [{**chat("a", "b"), "tools": tools} for tools in (TOOLS, TOOLS[:1], TOOLS)]
    source = task_of(tmp_path, rows, 'tools = "tools"', template=QWEN).manifest["sources"][0]
    assert source["kept"] == 2 and source["refused"] == {"dedup.exact": 1}


def test_tokenizer_with_a_template_for_tools_writes_chats_with_tools_by_it(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    found = [find_template("auto", tmp_path, tmp_path, tools=tools).source for tools in (False, True)]
    assert found == ["{{ 1 }}", "{{ 2 }}"]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thought_is_given_to_the_template_under_the_names_that_transformers_gives_it(
    path: Path, key: str
) -> None:
    source = "{% for m in messages %}{{ m.role + m.content }}{{ m.thinking }}/{{ m.reasoning_content }}/"
    source += "{{ m.reasoning }}{{ eos_token }}{% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: "well"}]
    wanted = theirs(path, source).apply_chat_template(messages)["input_ids"]
    ours = encoder_of(path, Template("t", source), "all")
    ((document,),) = ours.documents([sample_of({"messages": messages_of(messages)})])
    ours.close()
    assert document.tokens == wanted


# As multimodal families write a content that is a list: what is text, one part behind the other.
PARTS = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|image|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}"""


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def test_parts_of_text_are_one_text_as_templates_that_know_parts_write_them(path: Path) -> None:
    messages = [
        {"role": "user", "content": parts("Look", " here.\n", "What?")},
        {"role": "assistant", "content": parts("No", "thing.")},
    ]
    wanted = theirs(path, PARTS).apply_chat_template(messages, sanitize_control_tokens=True)["input_ids"]
    for source in (PARTS, shipped("chatml").source):
        ours = encoder_of(path, Template("t", source), "all")
        ((document,),) = ours.documents([sample_of({"messages": messages_of(messages)})])
        ours.close()
        assert document.tokens == wanted


def test_part_that_is_no_text_makes_its_row_an_error(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    fine = [chat(f"q{n}", "a") for n in range(3)]
    rows: Rows = [
        *fine,
        chat([*parts("a"), image], "b"),  # type: ignore[arg-type]
        chat(parts("c"), [{"type": "text", "text": 1}]),  # type: ignore[arg-type]
        chat(parts("d", "e"), "f"),  # type: ignore[arg-type]
    ]
    prepared = task_of(tmp_path, rows, 'template = "chatml"')
    source = prepared.manifest["sources"][0]
    assert source["errors"] == {"not_text": 1, "not_text_part": 1} and source["kept"] == 4
    (told,) = [row for row in prepared.manifest["lost"] if row["reason"] == "not_text_part"]
    assert told == {
        "place": "task.jsonl:4",
        "reason": "not_text_part",
        "told": "message 1: a part is 'image_url'",
    }
    assert "user\nde<|im_end|>" in "".join(whole(prepared)) and len(learnt(prepared)) == 4


def test_text_that_no_encoding_has_is_an_error_row_wherever_it_stands(tmp_path: Path) -> None:
    lone = "\ud83d"
    thought = {"role": "assistant", "content": "x", "reasoning_content": lone}
    rows: Rows = [
        {**chat("p", "a"), "tools": TOOLS},
        {**chat("q", "a"), "tools": [tool(lone)]},
        {"messages": [TALK[0], called("weather", town=lone)]},
        {"messages": [TALK[0], thought]},
    ]
    source = task_of(tmp_path, rows, 'template = "qwen3"\ntools = "tools"').manifest["sources"][0]
    assert source["kept"] == 1 and source["errors"] == {"undecodable": 3}


def test_tools_of_many_levels_are_read(tmp_path: Path) -> None:
    levels: dict[str, Any] = {}
    for _ in range(700):
        levels = {"properties": levels}
    rows: Rows = [{**chat("q", "a"), "tools": [{"name": "f", "parameters": levels}]}]
    assert task_of(tmp_path, rows, 'template = "qwen3"\ntools = "tools"').num_examples("train") == 1


def test_call_that_names_no_function_is_an_error(tmp_path: Path) -> None:
    calls: list[Any] = [["f"], [{"function": "f"}], [{"function": {"arguments": {}}}], [{"type": "custom"}]]
    bad = [{"messages": [TALK[0], {"role": "assistant", "tool_calls": call}]} for call in calls]
    source = task_of(tmp_path, [chat("a", "b"), *bad], template=QWEN).manifest["sources"][0]
    assert source["kept"] == 1 and source["errors"] == {"not_messages": len(calls)}


def test_call_under_its_older_key_is_a_call() -> None:
    call = {"name": "weather", "arguments": '{"town": "Bonn"}'}
    wanted = called("weather", town="Bonn")["tool_calls"]
    for content in ("I look.", None):
        (message,) = messages_of([{"role": "assistant", "content": content, "function_call": call}])
        assert message["tool_calls"] == wanted and message["content"] == (content or "")
        assert "function_call" not in message


def test_answers_of_no_weight_are_read_and_not_learnt(tmp_path: Path) -> None:
    rows: Rows = [chat("p", "bad", "q", "good", "r", "worse"), chat("s", "none")]
    for row in rows:
        for message in row["messages"][1::2]:
            message["weight"] = int(message["content"] == "good")
    for learn in ("answers", "last"):
        prepared = task_of(tmp_path, rows, f'template = "chatml"\nallow_masked = true\nlearn = "{learn}"')
        assert learnt(prepared) == ["good<|im_end|>"] and "bad<|im_end|>" in whole(prepared)[0]
        assert prepared.manifest["sources"][0]["refused"] == {"masked": 1}


def test_prompt_of_an_answer_of_no_weight_is_trained_on_where_all_is(tmp_path: Path) -> None:
    rows: Rows = [{**chat(f"q{n}", "a"), "id": f"short {n}"} for n in range(60)]
    long = [{**chat(f"q{n}", "b", f"r{n}", "c"), "id": f"long {n}"} for n in range(60)]
    for row in long:
        row["messages"][1]["weight"] = 0
    refused = {}
    for learn in ("all", "answers"):
        told = f'template = "chatml"\nid = "id"\nlearn = "{learn}"'
        prepared = task_of(tmp_path, [*rows, *long], told, validation=0.3)
        refused[learn] = prepared.manifest["sources"][0]["refused"]
    assert refused["all"].get("leak", 0) > 5 and "leak" not in refused["answers"]


def test_tools_that_the_recipe_does_not_name_are_told(tmp_path: Path) -> None:
    for number, (data, is_told) in enumerate([("", True), ('tools = "tools"', False)]):
        told = told_lines(task_of(tmp_path, [{**ROW, "id": number}], data, template=QWEN).manifest)
        assert any("finetune.data.tools" in line for line in told) == is_told
