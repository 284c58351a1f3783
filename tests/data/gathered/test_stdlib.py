"""Python's library as data: four renderings, none of which tells what another package's text says."""

import json
import os
import re
import sqlite3
from pathlib import Path

import pytest
from making import MODULES, QUIET
from tokenizers import Tokenizer

from bessemer.data import preparing
from bessemer.data.gathered.functions import first_sentence, functions_in
from bessemer.data.gathered.passages import Passages, collapse
from bessemer.data.gathered.stdlib import gather, library_modules
from bessemer.data.labels import labels
from bessemer.data.prepared import Prepared, PreparedTask
from bessemer.data.store import prepare, prepare_task
from bessemer.recipe.load import load


@pytest.fixture(scope="module")
def demo(library: Path) -> tuple[Prepared, PreparedTask]:
    """The shipped demo's data, of a part of the library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "gather", lambda *_: library)
        return demo_data(library.parent / "store", ["data.validation=0.2"])


def demo_data(folder: Path, overrides: list[str]) -> tuple[Prepared, PreparedTask]:
    loaded = load("demo", overrides)
    prepared = prepare(loaded.recipe, loaded.base, folder, QUIET)
    return prepared, prepare_task(loaded.recipe, loaded.base, folder, prepared.tokenizer_path, QUIET)


def training_texts(prepared: Prepared) -> list[str]:
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    ids = [
        stream.document(number).tolist()
        for stream in prepared.streams("train")
        for number in range(stream.num_documents)
    ]
    return [collapse(text) for text in engine.decode_batch(ids, skip_special_tokens=True)]


def answers_in_training(prepared: Prepared, task: PreparedTask) -> list[str]:
    texts = training_texts(prepared)
    answers = [collapse(example.answer) for example in task.examples("validation")]
    return [answer for answer in answers if len(answer) >= 40 and any(answer in text for text in texts)]


def test_no_held_out_answer_occurs_in_any_training_document(demo: tuple[Prepared, PreparedTask]) -> None:
    prepared, task = demo
    assert task.num_examples("validation") > 50
    assert answers_in_training(prepared, task) == []
    # That the search finds what is there: answers of training examples are.
    told = [collapse(example.answer) for example in task.examples("train")[:50]]
    texts = training_texts(prepared)
    assert sum(any(answer in text for text in texts) for answer in told) > 40


@pytest.mark.slow
def test_no_held_out_answer_of_the_whole_library_occurs_in_training(tmp_path: Path) -> None:
    prepared, task = demo_data(tmp_path, [])
    assert task.num_examples("validation") > 50 and answers_in_training(prepared, task) == []


def test_packages_are_held_out_in_all_sources_and_in_the_task(demo: tuple[Prepared, PreparedTask]) -> None:
    prepared, task = demo
    groups = {
        split: {row["group"] for row in [*labels(prepared, split), *labels(task, split)]}
        for split in ("train", "validation")
    }
    assert groups["validation"] and not groups["train"] & groups["validation"]
    assert {row["source"] for row in labels(prepared, "validation")} == {
        "books",
        "web pages",
        "database",
        "code",
    }


def test_every_row_of_the_demo_is_accounted_for(demo: tuple[Prepared, PreparedTask]) -> None:
    for part in demo:
        for source in part.manifest["sources"]:
            lost = sum(source["refused"].values()) + sum(source["errors"].values())
            assert source["rows_in"] == source["kept"] + lost and source["kept"] > 0
            assert lost < source["rows_in"] / 5


def test_rendering_is_found_again_and_the_same_everywhere(library: Path, tmp_path: Path) -> None:
    begun = library.stat().st_mtime_ns
    assert gather(library.parent, QUIET, MODULES) == library
    assert library.stat().st_mtime_ns == begun
    some = {"json", "_json", "abc", "os"}
    one, other = (gather(tmp_path / name, QUIET, some) for name in ("one", "other"))
    assert one.name == other.name
    for path in one.rglob("*.*"):
        if path.suffix in (".txt", ".html", ".py"):
            assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


def test_page_tells_only_what_its_module_defines(library: Path) -> None:
    page = (library / "books" / "collections.txt").read_text(encoding="utf-8")
    assert "class OrderedDict" in page and "Methods inherited" not in page
    assert "Return self==value" not in (library / "books" / "calendar.txt").read_text(encoding="utf-8")
    assert "json._json.txt" in os.listdir(library / "books")  # the C part of json goes with json


def test_pages_show_nothing_of_this_machine(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("books", "pages"):
        for path in (library / folder).iterdir():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?m)^(DATA|FILE)$", text), path
            assert not re.search(r" at 0x[0-9a-f]{6}", text), path
            assert str(Path(os.__file__).parent) not in text, path


def test_modules_that_act_when_imported_are_left_out() -> None:
    names = {module.name for module in library_modules()}
    assert not {"antigravity", "this"} & names
    assert not [name for name in names if {"test", "tests", "idlelib"} & set(name.split("."))]
    packages = {module.name: module.package for module in library_modules()}
    assert packages["_json"] == packages["json.decoder"] == "json"
    assert packages["_pydecimal"] == packages["_decimal"] == "decimal" and packages["_pyio"] == "io"


def test_function_rows_do_not_hold_their_answer(library: Path) -> None:
    connection = sqlite3.connect(library / "functions.sqlite")
    rows = connection.execute(
        "select docstring, summary, source, signature, package from functions"
    ).fetchall()
    connection.close()
    assert len(rows) > 500
    for docstring, summary, source, signature, package in rows:
        assert len(summary) >= 16 and summary.split()[0] in docstring
        assert collapse(docstring) not in collapse(source)
        assert "def " in signature and not source.startswith(" ") and package
    assert json.loads((library / "gathered.json").read_text())["functions"] == len(rows)


SOURCE = '''
import x

class A:
    @x.wraps(
        1)
    def f(self, a=(1,
            2)) -> int:
        """Return the sum of a.

        More.
        """
        # why
        return sum(a)

    def only(self):
        """Nothing but a docstring here."""

    def g(self): "Do it all on one line."; return 1

if x:
    async def h(b):
        """Wait for the second
        line to end. Go on."""
        await b
'''


def test_source_is_cut_out_without_its_docstring() -> None:
    rows = {row.name: row for row in functions_in(SOURCE)}
    assert list(rows) == ["A.f", "A.g", "h"]
    f = rows["A.f"]
    assert (
        f.source == "@x.wraps(\n    1)\ndef f(self, a=(1,\n        2)) -> int:\n    # why\n    return sum(a)"
    )
    assert (f.summary, f.signature) == ("Return the sum of a.", "def f(self, a=(1, 2)) -> int")
    assert rows["A.g"].source == "def g(self):\n    return 1"
    assert rows["h"].summary == "Wait for the second line to end." and rows["h"].signature == "async def h(b)"


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        ("Return the size.\nMore.", "Return the size."),
        ("Return the size (e.g. 3)", "Return the size (e.g."),
        ("Return the whole of\nthe thing. More.", "Return the whole of the thing."),
        ("parameter *( ';' parameter )\nmore", None),
        (">>> print('no sentence here')", None),
        ("Short.", None),
        ("One line without a full stop", "One line without a full stop"),
        ("x" * 300, None),
    ],
)
def test_summary_is_the_first_sentence(docstring: str, summary: str | None) -> None:
    assert first_sentence(docstring) == summary


def test_all_passages_are_found_and_no_other() -> None:
    words = [f"passage number {number} of several" for number in range(300)]
    text = "é " + " and\n\n  ".join(f"the {word.replace(' ', '  ')}" for word in words[::3]) + words[1][:-1]
    assert Passages(words).found_in(text) == {word for word in words if word in collapse(text)}
    assert Passages(words).found_in("") == Passages([]).found_in(text) == set()
    overlapping = ["aaaaaaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaab"]
    assert Passages(overlapping).found_in("a" * 20) == set(overlapping[:2])
