"""`bessemer data`: a document that is JSON as the contract says, and text for a person."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from making import QUIET, build, make, text_source

from bessemer.cli import data
from bessemer.data.supported import check_recipe
from bessemer.errors import DataError, RecipeError

RECIPE = (
    f'name = "made"\n[tokenizer]\nvocab = 300\n[data]\nvalidation = 0.2\n[[data.source]]\n{text_source()}'
)
TASK = '[finetune.data]\nkind = "jsonl"\npath = "task.jsonl"\n'
FIELDS = {"name", "kind", "rows_in", "kept", "refused", "errors", "bytes_in", "documents", "tokens"}


def call(*words: str, store: Path) -> tuple[dict[str, Any], str]:
    parser = argparse.ArgumentParser()
    data.arguments(parser)
    args = parser.parse_args(list(words))
    args.set, args.store, args.console = [], store, QUIET
    document = data.run(args)
    json.dumps(document, allow_nan=False)
    return document, data.show(document)


@pytest.fixture
def recipe(texts: Path) -> Path:
    rows = [{"prompt": f"What is {n}?", "answer": f"A number, {n}."} for n in range(30)]
    (texts / "task.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (texts / "recipe.toml").write_text(f"{RECIPE}\n{TASK}", encoding="utf-8")
    return texts / "recipe.toml"


def test_build_and_report_tell_what_each_source_gave(recipe: Path, texts: Path) -> None:
    built, text = call("build", str(recipe), store=texts / "store")
    assert set(built["sources"][0]) >= FIELDS and built["sources"][0]["kept"] == 15
    assert built["finetune"]["sources"][0]["rows_in"] == 30
    assert "texts" in text and "finetune.data" in text and built["manifest"] in text
    for part in (built, built["finetune"]):
        folder = Path(part["manifest"]).parent
        told, _ = call("report", str(folder), store=texts)
        for row, was in zip(told["sources"], part["sources"], strict=True):
            assert {name: row[name] for name in FIELDS} == {name: was[name] for name in FIELDS}
        assert told["manifest"] == part["manifest"] and "<svg" in Path(told["page"]).read_text()
    with pytest.raises(RecipeError, match="several sets"):
        call("report", str(texts / "store"), store=texts)


def test_inspect_shows_tokens_with_mask_and_borders(recipe: Path, texts: Path) -> None:
    built, _ = call("build", str(recipe), store=texts / "store")
    folder = str(Path(built["manifest"]).parent)
    row, text = call("inspect", folder, "--row", "1", "--split", "train", "--context", "200", store=texts)
    assert len(row["tokens"]) == 200 and row["targets"] == sum(t["target"] != -100 for t in row["tokens"])
    assert {(part["begin"]) for part in row["documents"]} == {token["start"] for token in row["tokens"]}
    for part in row["documents"]:
        first = row["tokens"][part["begin"]]
        assert part["begin"] == 0 or (first["text"] == "<|bos|>" and not first["loss"])
        if part["end"] < 200 - row["padding"]:
            assert row["tokens"][part["end"] - 1]["text"] == "<|eos|>"
    assert "‹<|bos|>›" in text and "--- texts: texts/" in text
    task = str(Path(built["finetune"]["manifest"]).parent)
    row, text = call("inspect", task, "--split", "validation", store=texts)
    answer = "".join(token["text"] for token in row["tokens"] if token["loss"])
    assert answer.startswith("A number, ") and answer.endswith("<|eos|>")
    assert "What is" not in answer and row["context"] == 1024
    with pytest.raises(RecipeError, match="--row 99999"):
        call("inspect", folder, "--row", "99999", store=texts)


def test_run_leads_to_its_data(recipe: Path, texts: Path) -> None:
    built, _ = call("build", str(recipe), store=texts / "store")
    stage = texts / "runs" / "made" / "pretrain"
    (stage / "checkpoints").mkdir(parents=True)
    folder = {"folder": str(Path(built["manifest"]).parent)}
    (stage / "stage.json").write_text(json.dumps({"data": folder, "context": 64}), encoding="utf-8")
    (stage / "metrics.jsonl").write_text("", encoding="utf-8")
    shutil.copy(recipe, texts / "runs" / "made" / "recipe.toml")
    told, _ = call("report", str(texts / "runs" / "made"), store=texts)
    assert told["manifest"] == built["manifest"] and told["sources"][0]["kept"] == 15
    row, _ = call("inspect", str(texts / "runs" / "made"), store=texts)
    assert row["context"] == 64  # as the model gets it


def test_options_without_effect_are_refused(recipe: Path, texts: Path) -> None:
    for words in (["--row", "1"], ["--split", "train"], ["--context", "8"], ["--out", "x"]):
        with pytest.raises(RecipeError, match="has no effect on `data build`"):
            call("build", str(recipe), *words, store=texts)
    for words, told in (
        (["build", str(recipe), "text"], "takes no TEXT"),
        (["search", "data"], "needs a passage"),
        (["report", "data", "--strict"], "--strict has no effect"),
        (["build", str(recipe), "--workers", "0"], "--workers is too small"),
    ):
        with pytest.raises(RecipeError, match=told):
            call(*words, store=texts)
    with pytest.raises(DataError, match="no prepared data"):
        call("report", str(texts / "nowhere"), store=texts)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ('kind = "text"', "has no path"),
        ('kind = "text"\npath = "a"\ntext = "b"', "has no effect"),
        ('kind = "html"\npath = "a"\nid = "b"', "has no effect"),
        ('kind = "jsonl"\npath = "a"\ntable = "b"', "has no effect"),
        ('kind = "code"\npath = "a"\ngroup = "folder"', 'can only be "stem"'),
        ('kind = "sql"\npath = "a"', "one of table and query"),
        ('kind = "sql"\npath = "a"\ntable = "t"\nquery = "q"', "one of table and query"),
        ('kind = "jsonl"\npath = "a"\nurl_env = "DSN"', "url_env has no effect"),
        ('kind = "sql"\npath = "a"\nurl_env = "DSN"\ntable = "t"', "both path and url_env"),
        ('kind = "sql"\ntable = "t"', "or url_env, for a database server"),
        ('kind = "csv"\npath = "a"\nsplit_by = "n"', "split_by has no effect"),
        ('kind = "warc"\npath = "a"\ngroup = "stem"', 'can only be "host"'),
    ],
)
def test_contradiction_in_a_source_is_refused(source: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        check_recipe(make(f'name = "s"\n{source}'))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("language_score = 0.5", "language_score has no effect without data.clean.language"),
        ('thresholds = { "gopher.min_words" = 5.0 }', "thresholds has no effect without data.clean.rules"),
        ("quality_score = 0.7", "quality_score has no effect without data.clean.quality"),
    ],
)
def test_cleaning_that_would_do_nothing_is_refused(more: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        check_recipe(make(text_source(), more=f"[data.clean]\n{more}"))


def test_ready_tokens_beside_text_need_the_tokenizer_that_made_them() -> None:
    tokens = 'name = "t"\nkind = "tokens"\npath = "a"'
    with pytest.raises(RecipeError, match="need the tokenizer that made them"):
        check_recipe(make(text_source(), tokens))
    check_recipe(make(tokens))


def test_recipe_without_data_or_with_twins_or_a_tiny_vocabulary_is_refused() -> None:
    with pytest.raises(RecipeError, match="names no data"):
        check_recipe(make())
    with pytest.raises(RecipeError, match="two sources are named 'texts'"):
        check_recipe(make(text_source(), text_source()))
    with pytest.raises(RecipeError, match=r"tokenizer\.vocab is too small"):
        check_recipe(make(text_source(), vocab=258))


def test_learnt_tokens_are_coloured_on_a_terminal_only(
    recipe: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = call("build", str(recipe), store=texts / "store")
    task = str(Path(built["finetune"]["manifest"]).parent)
    row, piped = call("inspect", task, store=texts)
    share = row["shares"]
    assert 0 < share["masked"] < 100 and share["truncated"] == share["empty"] == share["fully_masked"] == 0
    assert f"train split: {share['masked']:.1f} % of tokens masked, 0.0 % of examples truncated" in piped
    assert "\x1b" not in piped and "‹What› is" not in piped and "[<|eos|>]" in piped
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    coloured = data.show(row)
    assert "\x1b[32mA number, " in coloured and "[<|eos|>]" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert data.show(row) == piped


def test_build_prints_one_table_and_nothing_twice(
    recipe: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bessemer.data.store import prepare
    from bessemer.log import Console

    loaded = make(text_source())
    for expected in (1, 0):
        prepare(loaded, texts, texts / "store", Console())
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("source  kind") == expected
    assert build(loaded, texts).train_tokens > 0
