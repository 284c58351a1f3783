"""Prepared data appears whole or not at all, is the same however often it was interrupted, and is shared."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import QUIET, TEXTS, build, make, text_source

from bessemer.data.folders import building_folder, locked
from bessemer.data.labels import labels
from bessemer.data.prepared import open_prepared
from bessemer.errors import DataError, WriteError
from bessemer.recipe.load import parse

CHILD = """
import sys
from pathlib import Path
from bessemer.data.store import prepare
from bessemer.log import Console
from bessemer.recipe.load import load
loaded = load(sys.argv[1], [])
print("begun", flush=True)
print(prepare(loaded.recipe, loaded.base, Path(sys.argv[2]), Console(quiet=True)).folder, flush=True)
"""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A recipe.toml over enough text that building takes a second."""
    (tmp_path / "texts").mkdir()
    for number in range(400):
        text = f"{TEXTS[number % 15]} {number}\n" * 100
        (tmp_path / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    recipe = f'name = "made"\n[tokenizer]\nvocab = 400\n[[data.source]]\n{text_source()}'
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    return tmp_path


def begin(folder: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", CHILD, str(folder / "recipe.toml"), str(folder / "store")]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    return child


def test_same_recipe_and_files_are_prepared_once(texts: Path) -> None:
    first = build(make(text_source()), texts)
    times = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    again = build(make(text_source()), texts)
    assert again.folder == first.folder == texts / "store" / first.hash
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == times
    assert first.manifest["hash"] == first.folder.name and len(first.hash) == 32


@pytest.mark.parametrize("change", ["content", "name", "validation", "vocab", "licence", "dedup"])
def test_whatever_changes_tokens_changes_the_hash(texts: Path, change: str) -> None:
    before = build(make(text_source()), texts).hash
    path, options, more = texts / "texts" / "00.txt", {}, ""
    if change == "content":
        path.write_text(TEXTS[0] + "!", encoding="utf-8")
    elif change == "name":
        path.rename(texts / "texts" / "new.txt")
    elif change in ("validation", "vocab"):
        options = {"validation": {"validation": 0.3}, "vocab": {"vocab": 301}}[change]
    else:
        more = {"licence": 'licence = "MIT"', "dedup": ""}[change]
        options = {"more": '[data.clean]\ndedup = "off"\n'} if change == "dedup" else {}
    assert build(make(text_source(more=more), **options), texts).hash != before  # type: ignore[arg-type]


def test_what_changes_no_token_changes_no_hash(texts: Path) -> None:
    before = build(make(text_source()), texts).hash
    os.utime(texts / "texts" / "00.txt", (1, 1))
    more = '[model]\nsize = "1M"\ncontext = 64\n[pretrain]\nlr = 0.1\n'
    recipe = make(text_source(more="weight = 2.0\nepochs = 3.0"), more=more)
    assert build(recipe, texts).hash == before
    elsewhere = texts / "elsewhere"
    shutil.copytree(texts / "texts", elsewhere / "texts")
    assert build(recipe, elsewhere).hash == before


def test_documents_come_back_as_they_were(texts: Path) -> None:
    from tokenizers import Tokenizer

    prepared = build(make(text_source()), texts)
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    found = {}
    for split in ("train", "validation"):
        shard = prepared.streams(split)[0]  # type: ignore[arg-type]
        for number, label in enumerate(labels(prepared, split)):  # type: ignore[arg-type]
            ids = shard.document(number).tolist()
            assert ids[0] == prepared.bos_id and ids[-1] == prepared.eos_id
            found[label["id"]] = engine.decode(ids[1:-1], skip_special_tokens=False)
    assert found == {f"texts/{number:02d}.txt": text for number, text in enumerate(TEXTS)}
    assert prepared.validation_bytes == sum(
        len(found[label["id"]].encode()) for label in labels(prepared, "validation")
    )


def test_killed_build_is_never_taken_for_a_whole_one(many: Path) -> None:
    whole = build(parse((many / "recipe.toml").read_text(), "recipe", []), many, many / "reference")
    for delay_s in (0.02, 0.1, 0.25):
        child = begin(many)
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        finished = [path.parent for path in (many / "store").glob("*/manifest.json")]
        assert all(open_prepared(folder).manifest["files"] for folder in finished)
    child = begin(many)
    folder = Path(child.communicate()[0].strip())
    assert child.returncode == 0 and folder.name == whole.hash
    assert json.loads((folder / "manifest.json").read_text())["files"] == whole.manifest["files"]
    assert sorted(path.name for path in (many / "store").iterdir()) == sorted(
        [".locks", "known", "stages", whole.hash]
    )


def test_two_processes_build_the_same_data_once(many: Path) -> None:
    children = [begin(many), begin(many)]
    folders = {child.communicate()[0].strip() for child in children}
    assert len(folders) == 1 and all(child.returncode == 0 for child in children)
    assert not list((many / "store").glob(".building-*"))


def test_leftovers_of_dead_builders_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    for name in ("dead", "alive"):
        with locked(tmp_path / name, QUIET):
            (building_folder(tmp_path / name) / "half").write_bytes(b"x")
    with locked(tmp_path / "alive", QUIET), locked(tmp_path / "new", QUIET):
        building_folder(tmp_path / "new")
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".building-alive", ".building-new", ".locks"]


@pytest.mark.parametrize("damage", ["short", "gone"])
def test_damaged_file_is_named_with_the_way_out(texts: Path, damage: str) -> None:
    prepared = build(make(text_source()), texts)
    path = prepared.folder / "tokens" / "00-texts" / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-2]) if damage == "short" else path.unlink()
    with pytest.raises(DataError, match=r"train-00000\.bin") as caught:
        build(make(text_source()), texts)
    assert str(prepared.folder) in caught.value.fix
    shutil.rmtree(prepared.folder)
    assert build(make(text_source()), texts).hash == prepared.hash


def test_folder_without_a_manifest_is_no_prepared_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prepared data"):
        open_prepared(tmp_path)


def test_store_that_cannot_be_written_says_so(texts: Path) -> None:
    (texts / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="cannot write"):
        build(make(text_source()), texts, texts / "file" / "store")


def test_ready_tokens_need_their_tokenizer_and_stay_inside_it(texts: Path) -> None:
    learnt = build(make(text_source()), texts)
    rows = [
        [5, 6, 7],
        {"tokens": [learnt.bos_id, 8, learnt.eos_id]},
        [learnt.vocab],
        [-1],
        ["a"],
        [],
        {"x": 1},
    ]
    (texts / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = parse(
        f'name = "made"\n[tokenizer]\npath = "store/{learnt.hash}"\n[data]\nvalidation = 0\n'
        '[[data.source]]\nname = "t"\nkind = "tokens"\npath = "a.jsonl"',
        "made",
        [],
    )
    prepared = build(recipe, texts)
    source = prepared.manifest["sources"][0]
    assert source["kept"] == 2 and source["refused"] == {"empty": 1}
    assert source["errors"] == {"missing": 1, "not_tokens": 3}
    shard = prepared.streams("train")[0]
    found = sorted(shard.document(number).tolist() for number in range(2))
    assert found == [[0, 5, 6, 7, 1], [0, 8, 1]]
    assert prepared.tokenizer_path.read_text() == learnt.tokenizer_path.read_text()
