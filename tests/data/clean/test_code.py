"""A cleaning function of the user's own."""

from pathlib import Path

import pyarrow as pa
import pytest
import xxhash

from bessemer.data.clean.code import Plugin, load_plugin
from bessemer.errors import DataError, RecipeError

_HEAD = "import pyarrow as pa\nimport pyarrow.compute as pc\n"
_UPPER = """
def upper(batch):
    texts = pc.utf8_upper(batch["text"])
    short = pc.less(pc.utf8_length(texts), 3)
    return batch.set_column(1, "text", pc.if_else(short, pa.scalar(None, texts.type), texts))
"""


def _plugin(folder: Path, body: str, function: str = "clean") -> Plugin:
    (folder / "mine.py").write_text(_HEAD + body)
    return load_plugin(f"mine:{function}", folder, allowed=True)


def _batch(texts: list[str | None]) -> pa.RecordBatch:
    ids = [f"row {number}" for number in range(len(texts))]
    columns = [pa.array(ids), pa.array(texts, pa.large_string()), pa.array(["books"] * len(texts))]
    return pa.record_batch(columns, names=["id", "text", "source"])


def test_texts_are_changed_or_refused_and_nulls_passed_by(tmp_path):
    result = _plugin(tmp_path, _UPPER, "upper")(_batch(["steel", None, "no", "iron"]))
    assert result["text"].to_pylist() == ["STEEL", None, None, "IRON"]
    assert result["error"].to_pylist() == [None] * 4 and result["text"].type == pa.large_string()
    nothing = _plugin(tmp_path, _UPPER, "upper")(_batch([None]))
    assert nothing.to_pylist() == [{"text": None, "error": None, "problem": None}]


def test_an_exception_is_the_error_of_its_row_alone(tmp_path):
    body = """
def clean(batch):
    for text in batch["text"].to_pylist():
        if text == "exit":
            raise SystemExit(3)
        1 / len(text.strip())
    return batch
"""
    result = _plugin(tmp_path, body)(_batch(["a", " ", None, "exit", "b"]))
    assert result["text"].to_pylist() == ["a", None, None, None, "b"]
    assert result["error"].to_pylist() == [None, "code", None, "code", None]
    assert result["problem"].to_pylist()[1::2] == ["ZeroDivisionError: division by zero", "SystemExit: 3"]


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        ("None", "NoneType"),
        ("batch.to_pylist()", "list"),
        ("batch.slice(1)", "1 rows for 2"),
        ("batch.select(['text'])", "columns text"),
        ("batch.append_column('more', batch['id'])", "columns id, text, source, more"),
        ("batch.set_column(1, 'text', pa.array([1, 2]))", "text of type int64"),
        ("batch.take(pa.array([1, 0]))", "other ids or sources, or another order"),
        ("batch.set_column(0, 'id', pa.nulls(2, pa.string()))", "other ids or sources"),
        (
            "batch.set_column(1, 'text', pa.array([b'ok', b'\\xff']).view(pa.string()))",
            "text that is not valid",
        ),
    ],
)
def test_a_result_of_another_shape_is_a_mistake_that_names_the_function(tmp_path, returned, found):
    plugin = _plugin(tmp_path, f"def clean(batch):\n    return {returned}\n")
    with pytest.raises(DataError) as caught:
        plugin(_batch(["a", "b"]))
    assert "mine:clean" in caught.value.problem and found in caught.value.found


def test_strings_of_either_width_and_columns_in_any_order_are_taken(tmp_path):
    body = """
def clean(batch):
    texts = batch["text"].cast(pa.string())
    return pa.record_batch([batch["source"], texts, batch["id"]], names=["source", "text", "id"])
"""
    result = _plugin(tmp_path, body)(_batch(["a", "b"]))
    assert result["text"].to_pylist() == ["a", "b"] and result["text"].type == pa.large_string()
    refused = _plugin(tmp_path, "def clean(b):\n    return b.set_column(1, 'text', pa.nulls(b.num_rows))\n")
    assert refused(_batch(["a"]))["text"].to_pylist() == [None]


def test_nothing_runs_unless_it_is_allowed(tmp_path):
    (tmp_path / "mine.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\ndef clean(b): return b\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_plugin("mine:clean", tmp_path, allowed=False)
    assert "--allow-code" in caught.value.fix and not (tmp_path / "ran").exists()
    load_plugin("mine:clean", tmp_path, allowed=True)
    assert (tmp_path / "ran").exists()


def test_the_hash_is_that_of_the_file_and_another_version_is_loaded_anew(tmp_path):
    first = _plugin(tmp_path, _UPPER, "upper")
    assert first.hash == xxhash.xxh3_128_hexdigest((tmp_path / "mine.py").read_bytes())
    assert _plugin(tmp_path, _UPPER, "upper").function is first.function
    second = _plugin(tmp_path, _UPPER.replace("3", "9"), "upper")
    assert second.hash != first.hash
    assert second(_batch(["steel"]))["text"].to_pylist() == [None]


def test_modules_in_folders_and_installed_ones_are_found(tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "one.py").write_text("def same(batch):\n    return batch\n")
    assert load_plugin("steps.one:same", tmp_path, allowed=True)(_batch(["a"]))["text"].to_pylist() == ["a"]
    installed = load_plugin("textwrap:dedent", tmp_path, allowed=True)
    assert installed(_batch(["a"]))["error"].to_pylist() == ["code"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mine", "no such form"),
        ("../mine:clean", "no such form"),
        ("mine:clean()", "no such form"),
        ("absent_module:clean", "ModuleNotFoundError"),
        ("broken:clean", "SyntaxError"),
        ("leaves:clean", "SystemExit"),
        ("mine:absent", "without a function absent"),
        ("mine:number", "without a function number"),
        ("sys:exit", "a module that is no file"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_a_mistake_of_the_recipe(tmp_path, name, found):
    (tmp_path / "mine.py").write_text("number = 1\ndef clean(batch): return batch\n")
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(RecipeError) as caught:
        load_plugin(name, tmp_path, allowed=True)
    assert found in caught.value.found
