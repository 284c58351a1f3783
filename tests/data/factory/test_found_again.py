"""What changes the data is never answered with the old data; and what may stand in for us does not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from making import QUIET, build, make, text_source

from bessemer.data.factory import encode as encoding
from bessemer.data.factory.how import How
from bessemer.data.ledger import funnel_lines
from bessemer.data.store import prepare, prepare_task
from bessemer.durable import publish_folder
from bessemer.errors import RecipeError
from bessemer.recipe.load import load, parse

RECIPE = 'name = "made"\n[tokenizer]\nvocab = 300\n[[data.source]]\n'
TASK = '[finetune]\ndata = { kind = "jsonl", path = "task.jsonl", prompt = "prompt", answer = "answer" }\n'
CODE = """
import pyarrow as pa

def clean(batch):
    text = pa.array([str(text)%s for text in batch["text"]], batch["text"].type)
    return pa.record_batch([batch["id"], text, batch["source"]], names=["id", "text", "source"])
"""


def test_code_that_was_edited_makes_other_data(texts: Path) -> None:
    recipe, how = make(text_source(), more='[data.clean]\ncode = "mine:clean"\n'), How(allow_code=True)
    found = []
    for ending in (".upper()", ".lower()"):
        (texts / "mine.py").write_text(CODE % ending)
        found.append(prepare(recipe, texts, texts / "store", QUIET, how))
    assert found[0].hash != found[1].hash
    assert prepare(recipe, texts, texts / "store", QUIET).hash == found[1].hash  # nothing has to run


def test_other_end_of_documents_makes_other_data(texts: Path) -> None:
    learnt = build(make(text_source()), texts)
    ready = texts / "ready"
    ready.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (ready / name).write_bytes((learnt.folder / name).read_bytes())
    rows = [{"prompt": f"What is {n}?", "answer": f"A number, {n}."} for n in range(30)]
    (texts / "task.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = parse(
        f'name = "made"\n[tokenizer]\npath = "ready"\n[[data.source]]\n{text_source()}{TASK}',
        "made",
        [],
    )

    def made() -> list[Any]:
        prepared = build(recipe, texts)
        task = prepare_task(recipe, texts, texts / "store", ready / "tokenizer.json", QUIET)
        return [prepared.hash, task.hash, int(prepared.streams("train")[0].document(0)[-1])]

    before = made()
    config = json.loads((ready / "tokenizer_config.json").read_text())
    (ready / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": config["pad_token"]}))
    after = made()
    assert all(one != other for one, other in zip(before, after, strict=True)), (before, after)


def test_shards_that_another_build_has_just_written_are_taken(tmp_path: Path) -> None:
    for name, content in (("first", b"same"), ("second", b"same")):
        folder = tmp_path / f".{name}"
        folder.mkdir()
        (folder / "train.bin").write_bytes(content)
        summary = {"splits": {}, "files": {"train.bin": len(content)}}
        (folder / "summary.json").write_text(json.dumps(summary))
    publish_folder(tmp_path / ".first", tmp_path / "final")
    encoding._publish(tmp_path / ".second", tmp_path / "final")
    assert encoding.encoded(tmp_path / "final") is not None and not (tmp_path / ".second").exists()


def test_two_builds_at_once_that_share_a_source_both_end(texts: Path) -> None:
    learnt = build(make(text_source()), texts)
    (texts / "more").mkdir()
    (texts / "more" / "a.txt").write_text("Nothing of this is said elsewhere.\n" * 3)
    children = []
    for number, sources in enumerate(([text_source()], [text_source(), text_source("more", name="more")])):
        blocks = "".join(f"[[data.source]]\n{source}\n" for source in sources)
        path = texts / f"{number}.toml"
        path.write_text(f'name = "made"\n[tokenizer]\npath = "store/{learnt.hash}"\n{blocks}')
        words = [sys.executable, "-m", "bessemer", "data", "build", str(path), "--store", str(texts / "new")]
        children.append(subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for child in children:
        _, told = child.communicate()
        assert child.returncode == 0, told


@pytest.mark.parametrize("name", ["xxhash", "tokenize", "numpy"])
def test_file_in_the_current_folder_is_never_taken_for_a_package(texts: Path, name: str) -> None:
    (texts / f"{name}.py").write_text("raise SystemExit('taken')\n")
    (texts / "r.toml").write_text(f"{RECIPE}{text_source()}")
    bessemer = str(Path(sys.executable).with_name("bessemer"))
    done = subprocess.run([bessemer, "data", "build", "r.toml"], cwd=texts, capture_output=True, text=True)
    assert done.returncode == 0 and "taken" not in done.stderr, done.stderr


def test_near_duplicates_ask_for_exact_ones_of_a_task_too(texts: Path) -> None:
    rows = [{"prompt": f"What is {n % 10}?", "answer": f"A number, {n % 10}."} for n in range(30)]
    (texts / "task.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (texts / "r.toml").write_text(f'{RECIPE}{text_source()}[data.clean]\ndedup = "minhash"\n{TASK}')
    loaded = load(str(texts / "r.toml"), [])
    prepared = build(loaded.recipe, texts)
    task = prepare_task(loaded.recipe, texts, texts / "store", prepared.tokenizer_path, QUIET)
    assert task.manifest["sources"][0]["refused"]["dedup.exact"] == 20


def test_a_rule_and_an_error_of_one_name_are_both_told() -> None:
    row = {"name": "a", "kind": "text", "rows_in": 9, "kept": 1, "bytes_in": 9, "documents": 1, "tokens": 5}
    lines = funnel_lines([{**row, "refused": {"code": 5}, "errors": {"code": 3}}])
    assert "5 code, 3 code" in lines[1]


def test_schedule_of_a_source_that_is_not_there_is_refused_before_building(texts: Path) -> None:
    more = "[data.mixture]\nschedule = [{ tokens = 5, weights = { text = 1.0 } }]\n"
    with pytest.raises(RecipeError, match="names a source that is not there: 'text'"):
        build(make(text_source(), more=more), texts)
    assert not (texts / "store").exists()
