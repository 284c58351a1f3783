import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from making_plans import run_plan

from bessemer.cli.plan_data import show_data
from bessemer.data import listing
from bessemer.data.format import FORMAT
from bessemer.data.listing import (
    Place,
    gathered_base,
    list_path,
    list_sources,
    listing_key,
    remember,
    remembered,
)
from bessemer.formulas.scaling.repeated import effective_tokens
from bessemer.planner.machine.facts import cluster_facts
from bessemer.planner.resolve import resolve
from bessemer.planner.sizing.data_estimate import source_estimate
from bessemer.planner.sizing.enough import advice, enough_of_listed, enough_of_prepared
from bessemer.recipe.load import load
from bessemer.recipe.schema import Recipe

RECIPE = """name = "small"
[model]
layers = 2
hidden = 64
heads = 4
context = 64
[tokenizer]
vocab = 4096
[data]
validation = 0.0
[[data.source]]
name = "texts"
kind = "text"
path = "texts"
[[data.source]]
name = "rows"
kind = "jsonl"
path = "rows/*.jsonl"
[pretrain]
steps = 100
batch_tokens = 1024
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "rows").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a" * 40_000)
    (tmp_path / "texts" / "deep" / "b.txt").write_text("b" * 20_000)
    (tmp_path / "texts" / ".hidden").write_text("c" * 9_000)
    (tmp_path / "rows" / "r.jsonl").write_text("r" * 10_000)
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path


def recipe_of(base: Path, *settings: str) -> Recipe:
    return load(str(base / "r.toml"), list(settings)).recipe


def manifest(texts: int = 20_000, rows: int = 5_000) -> dict[str, Any]:
    sources = [
        {"name": name, "splits": {"train": {"tokens": tokens}}}
        for name, tokens in (("texts", texts), ("rows", rows))
    ]
    tokenizer = {"vocab": 4096, "bos_id": 0, "eos_id": 1}
    return {
        "format": FORMAT,
        "hash": "abc",
        "tokenizer": tokenizer,
        "splits": {"train": {"tokens": texts + rows}},
        "sources": sources,
        "files": {"tokens/00/train-00000.bin": {"bytes": 50_000}},
        "timings_s": {"documents_s": 30.0, "encode_s": 6.0},
    }


def told(base: Path, *settings: str, found: dict[str, Any] | None = None) -> dict[str, Any]:
    recipe = recipe_of(base, *settings)
    plan = resolve(recipe, cluster_facts("H100-SXM5-80GB", 1))
    document = (
        enough_of_listed(recipe, plan, list_sources(recipe, base), cores=2)
        if found is None
        else enough_of_prepared(recipe, plan, found)
    )
    assert document is not None
    json.dumps(document, allow_nan=False)
    return document


def test_listing_sees_what_a_build_would_read(base: Path) -> None:
    texts, rows = list_sources(recipe_of(base), base)
    assert [Path(file.name).name for file in texts.files] == ["a.txt", "b.txt"]  # the hidden one is left out
    assert (texts.num_files, texts.num_bytes, rows.num_bytes) == (2, 60_000, 10_000)
    assert list_path("nowhere/*.txt", base).num_files == 0 and list_path("nowhere.txt", base).files == ()


def test_limit_of_files_counts_only_the_first(base: Path) -> None:
    texts = list_sources(recipe_of(base, "data.source.0.limit=1"), base)[0]
    assert (texts.num_files, texts.num_bytes) == (1, 40_000)


def test_what_is_elsewhere_is_not_counted_but_said(base: Path) -> None:
    document = told(base, "data.source.1.path=s3://bucket/rows.jsonl")
    assert document["uncounted"] == [{"name": "rows", "reason": "objects elsewhere are not listed"}]
    assert "not counted: rows: objects elsewhere" in show_data(document)
    recipe = recipe_of(base, "data.source.0.path=gone", "data.source.1.path=gone2")
    plan = resolve(recipe, cluster_facts("H100-SXM5-80GB", 1))
    assert enough_of_listed(recipe, plan, list_sources(recipe, base), cores=2) is None


def test_paths_that_match_no_file_are_said_and_the_plan_still_answers(base: Path) -> None:
    gone = ("data.source.0.path=nothere.txt", "data.source.1.path=no/*.jsonl")
    document, text = run_plan(str(base / "r.toml"), "--cluster", "1xH100", settings=gone)
    assert document["data"] is None and document["training"]["steps"] == 100
    assert "no file matches nothere.txt (source 'texts'), no/*.jsonl (source 'rows')" in text
    document, text = run_plan(str(base / "r.toml"), "--cluster", "1xH100", settings=gone[:1])
    assert document["data_missing"] == [{"name": "texts", "path": "nothere.txt"}]
    assert "not counted: texts: no such file" in text and "no file matches" not in text


def test_of_many_files_some_sizes_stand_for_all(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        (base / "rows" / f"{number:03d}.jsonl").write_text("x" * 1000)
    monkeypatch.setattr(listing, "MOST_SIZES", 10)
    (base / "rows" / "r.jsonl").unlink()
    rows = list_sources(recipe_of(base), base)[1]
    assert rows.sampled and rows.complete and rows.num_files == 40 and len(rows.files) == 10
    assert rows.num_bytes == pytest.approx(40_000)
    monkeypatch.setattr(listing, "MOST_NAMES", 20)
    assert not list_sources(recipe_of(base), base)[1].complete
    assert "rows: so many files that only some were looked at" in show_data(told(base))


def test_what_is_replayed_is_not_read_of_the_sources(base: Path) -> None:
    settings = ["data.replay.run=runs/base", "data.replay.share=0.25"]
    document = told(base, *settings, found=manifest())
    assert document["tokens_needed"] == 76_800 and document["tokens_replayed"] == 25_600
    assert sum(source["tokens_read"] for source in document["sources"]) == pytest.approx(76_800, rel=0.01)
    assert "76.8K tokens are read, and 25.6K of earlier data" in show_data(document)


def test_exact_figures_are_the_manifests(base: Path) -> None:
    document = told(base, found=manifest())
    assert document["tokens_needed"] == 102_400
    assert document["tokens"] == {"value": 25_000, "low": 25_000, "high": 25_000, "basis": "measured"}
    assert document["epochs"]["value"] == pytest.approx(4.096)
    assert document["effective_tokens"]["value"] == pytest.approx(effective_tokens(25_000, 102_400), rel=0.01)
    assert document["disk_bytes"]["value"] == 50_000 and document["build_hours"]["value"] == 0.01
    assert (
        0 < document["lost_share"]["low"] < document["lost_share"]["value"] < document["lost_share"]["high"]
    )


def test_a_small_source_with_a_large_weight_is_read_more_often(base: Path) -> None:
    document = told(base, "data.source.1.weight=4.0", found=manifest(20_480, 5_120))
    texts, rows = document["sources"]
    assert texts["epochs"]["value"] == pytest.approx(2.5, rel=0.01)  # half of 102,400 over 20,480
    assert rows["epochs"]["value"] == pytest.approx(10.0, rel=0.01)  # the other half over 5,120
    worth = effective_tokens(20_480, 51_200) + effective_tokens(5_120, 51_200)
    assert document["effective_tokens"]["value"] == pytest.approx(worth, rel=0.01)
    shown = show_data(document)
    assert "Source" in shown and "10.0" in shown and "arXiv:2305.16264" in shown


def test_a_source_that_ends_leaves_the_run_short(base: Path) -> None:
    settings = ("data.source.0.epochs=1.0", "data.source.1.epochs=2.0")
    document = told(base, *settings, found=manifest(20_480, 5_120))
    assert document["tokens_missing"] == 102_400 - 20_480 - 2 * 5_120
    assert "training would be refused" in advice(document)
    assert "`epochs` allows no more" in show_data(document)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (200_000, "nothing is read twice"),
        (40_000, "costs next to nothing"),
        (8_000, "few:"),
        (2_000, "far too little"),
    ],
)
def test_advice_goes_with_epochs(base: Path, tokens: int, words: str) -> None:
    assert words in advice(told(base, found=manifest(tokens, 0)))


def test_what_is_read_once_costs_nothing(base: Path) -> None:
    document = told(base, found=manifest(300_000, 100_000))
    assert document["lost_share"]["value"] == pytest.approx(0.0, abs=1e-3)
    assert document["added_loss"] == pytest.approx(0.0, abs=1e-3)
    assert "less" not in show_data(document)


def test_estimates_have_bands_that_hold_the_truth_of_plain_text(base: Path) -> None:
    """Measured figures of Debian's documentation: 2.8 to 4.6 bytes a token, by text and vocabulary."""
    for vocab, per_token in ((4096, (2.8, 3.6)), (8192, (3.1, 4.0)), (32768, (3.6, 4.6))):
        recipe = recipe_of(base, f"tokenizer.vocab={vocab}")
        source = source_estimate(recipe, recipe.data.source[0], list_sources(recipe, base)[0])
        assert source.tokens.low is not None and source.tokens.high is not None
        for bytes_per_token in per_token:
            assert source.tokens.low < 60_000 / bytes_per_token < source.tokens.high
        assert source.tokens.basis == "assumed"
    document = told(base)
    for name in ("tokens", "epochs", "effective_tokens", "disk_bytes", "build_hours"):
        row = document[name]
        assert row["low"] <= row["value"] <= row["high"] and set(row) == {"value", "low", "high", "basis"}


def test_a_build_is_remembered_until_an_input_or_a_key_changes(base: Path) -> None:
    store, recipe = base / "data", recipe_of(base)
    (store / "abc").mkdir(parents=True)
    (store / "abc" / "manifest.json").write_text(json.dumps(manifest()))
    assert remembered(store, recipe, Place(base, base), list_sources(recipe, base)) is None
    remember(store, listing_key(recipe, Place(base, base)), store / "abc")
    assert remembered(store, recipe, Place(base, base), list_sources(recipe, base)) == manifest()
    other = recipe_of(base, "data.source.1.weight=3.0", "pretrain.steps=7")  # decide no token
    assert remembered(store, other, Place(base, base), list_sources(other, base)) == manifest()
    changed = recipe_of(base, "tokenizer.vocab=512")
    assert remembered(store, changed, Place(base, base), list_sources(changed, base)) is None
    os.utime(base / "texts" / "a.txt", ns=(1, 1))
    assert remembered(store, recipe, Place(base, base), list_sources(recipe, base)) is None


def test_data_that_was_removed_is_not_remembered(base: Path) -> None:
    store, recipe = base / "data", recipe_of(base)
    remember(store, listing_key(recipe, Place(base, base)), store / "abc")
    assert remembered(store, recipe, Place(base, base), list_sources(recipe, base)) is None


def test_rendered_library_is_found_where_it_was_rendered(base: Path) -> None:
    recipe = recipe_of(base, "data.gather=python-stdlib")
    assert gathered_base(recipe, base, base / "data") is None
    assert list_sources(recipe, None)[0].unknown == "it is rendered when it is built"
    made = base / "data" / "gathered" / "python-3"
    made.mkdir(parents=True)
    (made / "gathered.json").write_text("{}")
    assert gathered_base(recipe, base, base / "data") == made


def test_plan_answers_within_a_second_and_without_torch_or_pyarrow(base: Path) -> None:
    code = (
        "import sys; from bessemer.cli.main import main; "
        "code = main(['plan', 'r.toml', '--cluster', 'H100', '--json']); "
        "heavy = {'torch', 'pyarrow', 'duckdb', 'tokenizers'} & set(sys.modules); "
        "sys.exit(code or bool(heavy))"
    )
    begin_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=base, capture_output=True, text=True, check=False)
    took_s = time.monotonic() - begin_s
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)["data"]
    assert {"tokens_needed", "tokens", "epochs", "effective_tokens", "disk_bytes", "build_hours"} <= set(data)
    assert data["tokens_needed"] == 102_400 and data["files"] == 3
    assert took_s < 5.0  # 0.4 s on an idle machine
