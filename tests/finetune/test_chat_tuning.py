"""A model tuned on chats: its template goes with it, to whoever asks it and into what is exported."""

import argparse
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from making_runs import QUIET, SMALL, place, pretrained, write_recipe
from transformers import AutoTokenizer

from bessemer.cli import chat
from bessemer.data.prepared import PreparedTask
from bessemer.data.task.samples import Sample
from bessemer.errors import DataError, RecipeError
from bessemer.evaluate import answers
from bessemer.evaluate.answers import Completer
from bessemer.evaluate.run import evaluate
from bessemer.export.huggingface import export_huggingface
from bessemer.finetune.run import finetune
from bessemer.recipe.load import load
from bessemer.train.stage import read_stage

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{{ '<|pad|>' if m.role == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tuned for a few steps on chats whose turns another token closes than documents."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder, task=True, sizes=SMALL)
    text = recipe.read_text().replace('task.jsonl", prompt = "ask", answer = "tell"', 'chats.jsonl"')
    recipe.write_text(text.replace('"chats.jsonl"', '"chats.jsonl", template = "mine.jinja"'))
    (folder / "mine.jinja").write_text(TEMPLATE)
    words = ["iron", "steel", "coal", "slag", "blast", "rail"]
    chats = [
        [{"role": "user", "content": f"{a} {b}?"}, {"role": "assistant", "content": f"{b}."}]
        for a in words
        for b in words
    ]
    rows = "".join(json.dumps({"messages": row}) + "\n" for row in chats)
    (folder / "chats.jsonl").write_text(rows)
    settings = ["pretrain.steps=2", "finetune.epochs=1"]
    pretrained(folder, *settings)
    finetune(load(str(recipe), settings), place(folder))
    return folder / "run"


def data_of(run: Path) -> PreparedTask:
    data = read_stage(run / "finetune").data
    assert isinstance(data, PreparedTask)
    return data


def test_model_is_asked_with_the_template_that_it_was_tuned_with(run: Path) -> None:
    completer, data = Completer.load(run / "finetune", None, QUIET), data_of(run)
    example = data.examples("train")[0]
    assert completer._ids(example.prompt, []) == example.prompt_ids
    assert completer.eos_id == data.stop_id(1) != 1
    assert isinstance(completer.complete(example.prompt, max_tokens=3), str)
    before = Completer.load(run / "pretrain", None, QUIET)
    assert before.chat is None and before.eos_id == 1


def test_what_was_said_before_is_asked_with_the_tokens_that_are_learnt(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completer = Completer.load(run / "finetune", None, QUIET)
    assert completer.chat is not None
    said = [{"role": "user", "content": "iron?"}, {"role": "assistant", "content": "coal."}]
    turn = ({"role": "user", "content": "steel?"}, {"role": "assistant", "content": "slag."})
    ((document,),) = completer.chat.documents([Sample("p", "i", chats=((*said, *turn),))])  # type: ignore[misc]
    assert completer._ids("steel?", said) == document.tokens[: document.spans[0][0]]
    blank = completer.tokenizer.encode(" coal.", add_special_tokens=False).ids
    monkeypatch.setattr(answers, "generate", lambda *_, **__: [blank])
    assert completer.complete("iron?", max_tokens=3) == "coal."


def test_conversation_goes_on_with_what_was_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[dict[str, Any]]] = []

    def complete(_: Completer, prompt: str, *, said: list[dict[str, Any]], **__: object) -> str:
        asked.append([*said, {"role": "user", "content": prompt}])
        return f"so {prompt}"

    monkeypatch.setattr(Completer, "complete", complete)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    parser = argparse.ArgumentParser()
    chat.arguments(parser)
    args = parser.parse_args([str(run)])
    args.console, args.json = QUIET, False
    assert chat.run(args)["turns"] == 2
    assert [row["content"] for row in asked[1]] == ["one", "so one", "two"]


def test_exported_folder_has_the_template_and_stops_where_a_turn_is_closed(run: Path, tmp_path: Path) -> None:
    export_huggingface(run / "finetune", tmp_path / "out", step=None, dtype=None, console=QUIET)
    example = data_of(run).examples("train")[0]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": example.prompt}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == example.prompt_ids
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [data_of(run).stop_id(1), 1]


def test_answers_are_measured_up_to_the_token_that_closes_a_turn(run: Path) -> None:
    results = evaluate(run, load(str(run.parent / "tiny.toml"), []).recipe, QUIET)
    result = results["stages"]["finetune"]
    assert result["examples"] > 0 and result["task_loss"] > 0


WITH_TOOLS = "{{ tools | tojson if tools else '' }}" + TEMPLATE
TOOL = {"type": "function", "function": {"name": "melt", "parameters": {}}}


def asked_with(run: Path, *words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    chat.arguments(parser)
    args = parser.parse_args([str(run), *words])
    args.console, args.json = QUIET, False
    return chat.run(args)


def test_a_model_is_asked_with_tools_and_its_call_is_printed_as_it_writes_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = copy / "finetune/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": WITH_TOOLS}))
    prompts: list[list[int]] = []
    tokenizer = Completer.load(copy / "finetune", None, QUIET).tokenizer
    call = tokenizer.encode("melt<|bos|>1", add_special_tokens=False).ids

    def generate(_: object, asked: list[list[int]], **__: object) -> list[list[int]]:
        prompts.extend(asked)
        return [call]

    monkeypatch.setattr(answers, "generate", generate)
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    words = ("--prompt", "iron?", "--tools", str(tmp_path / "tools.json"))
    assert asked_with(copy, *words)["text"] == "melt<|bos|>1"
    assert asked_with(copy, *words[:2])["text"] == "melt1"
    theirs = AutoTokenizer.from_pretrained(copy / "finetune")
    messages = [{"role": "user", "content": "iron?"}]
    wanted = [
        theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True)["input_ids"]
        for tools in ([TOOL], None)
    ]
    assert prompts == wanted and wanted[0] != wanted[1]
    with pytest.raises(DataError, match="cannot write this") as caught:
        asked_with(run, *words)
    assert "tools, which the template" in caught.value.found and "--tools" in caught.value.fix
    with pytest.raises(RecipeError, match="no chat template"):
        asked_with(run / "pretrain", *words)


@pytest.mark.parametrize("text", ["[]", "{}", "[1]", "[", "", None])
def test_a_file_that_gives_no_tools_is_refused_with_its_name(
    run: Path, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "tools.json").write_text(text)
    with pytest.raises(DataError, match=r"tools\.json gives no tools"):
        asked_with(run, "--prompt", "iron?", "--tools", str(tmp_path / "tools.json"))
