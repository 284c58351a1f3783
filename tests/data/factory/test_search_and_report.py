"""Where a passage stands and when it is trained on, proven by the batches that training reads.

And `report` and `inspect` of the same data, of several sources and shards.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_factory import build
from making_processes import ran_here
from making_runs import own_cache, pretrained
from making_sources import token_lines
from tokenizers import Tokenizer

from bessemer.data.inspect import inspect_row
from bessemer.data.labels import labels
from bessemer.data.loader import Batches
from bessemer.data.mixture import Mixing, Mixture
from bessemer.data.prepared import Prepared, open_prepared
from bessemer.data.search import search, training_of
from bessemer.rundir import read_object

CONTEXT, BATCH_ROWS, STEPS = 32, 4, 30
RECIPE = """name = "searched"
[model]
layers = 1
hidden = 32
heads = 4
kv_heads = 2
ffn = 48
context = 32
[tokenizer]
vocab = 320
[pretrain]
steps = 30
batch_tokens = 128
micro_batch = 2
lr = 3e-3
dtype = "fp32"
compile = false
save_every = 30
validate_every = 30
[data]
validation = 0.15
[[data.source]]
name = "rail"
kind = "jsonl"
path = "rail"
id = "key"
weight = 0.5
[[data.source]]
name = "ore"
kind = "parquet"
path = "ore.parquet"
id = "key"
licence = "MIT"
weight = 3.0
[[data.mixture.schedule]]
tokens = 1280
weights = { rail = 2.0 }
"""
_WORDS = "iron steel coal slag blast converter ingot beam plate rivet forge anvil bellows furnace lining"


def _text(dice: random.Random, name: str) -> str:
    """Lines of eight words; what it says of its name stands nowhere else."""
    words = [dice.choice(_WORDS.split()) for _ in range(48)]
    words[20:24] = ["the", "mark", "of", name]
    lines = [" ".join(words[begin : begin + 8]) for begin in range(0, 48, 8)]
    return "\n".join(lines) + "."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of thirty steps: one source of two shards, and one of one."""
    folder, dice = tmp_path_factory.mktemp("searched"), random.Random(1)
    (folder / "rail").mkdir()
    for number in range(2):
        rows = [{"key": f"r{k}", "text": _text(dice, f"r{k}x")} for k in range(number * 12, number * 12 + 12)]
        # Each larger than a part: two shards.
        filler = {"key": f"f{number}", "text": " " * (17 << 20)}
        lines = "".join(json.dumps(row) + "\n" for row in [*rows, filler])
        (folder / "rail" / f"{number}.jsonl").write_text(lines)
    keys = [f"o{k}" for k in range(10)]
    table = pa.table({"key": keys, "text": [_text(dice, f"{key}x") for key in keys]})
    pq.write_table(table, folder / "ore.parquet")
    (folder / "tiny.toml").write_text(RECIPE)
    with own_cache(tmp_path_factory.mktemp("cache")):
        pretrained(folder, run="run")
        yield folder


def texts(folder: Path) -> dict[str, str]:
    """By id."""
    lines = [line for file in sorted((folder / "rail").iterdir()) for line in file.read_text().splitlines()]
    rows = [*map(json.loads, lines), *pq.read_table(folder / "ore.parquet").to_pylist()]
    return {row["key"]: row["text"] for row in rows}


class Training:
    """The batches that the run reads, as training makes them, and its data."""

    def __init__(self, folder: Path) -> None:
        self.stage = folder / "run/pretrain"
        info = read_object(self.stage / "stage.json")
        assert info is not None
        self.training = training_of(info)
        prepared = open_prepared(Path(info["data"]["folder"]))
        assert isinstance(prepared, Prepared)
        self.prepared = prepared
        self.engine = Tokenizer.from_file(str(prepared.tokenizer_path))
        mixture = Mixture(Mixing.from_json(info["mixture"]).kept)
        batches = Batches(prepared.rows("train", CONTEXT), info["seed"], BATCH_ROWS, 2, mixture=mixture)
        self.read = [_rows(batches, step) for step in range(STEPS)]
        self.windows = [
            [
                stream.tokens[begin : begin + CONTEXT].tolist()
                for begin in range(0, len(stream.tokens), CONTEXT)
            ]
            for stream in prepared.streams("train")
        ]

    def steps(self, source: int, text: str) -> list[int]:
        """Counted from 1, of those whose batches hold a row that the text is in, or begins or ends in."""
        windows, hit = self.windows[source], []
        for number, window in enumerate(windows):
            after = windows[number + 1] if number + 1 < len(windows) else []
            if self._holds(window, text):
                hit.append(window)
            elif self._holds([*window, *after], text) and not self._holds(after, text):
                hit += [window, after]
        assert hit, text
        padded = [
            [*window, *[self.prepared.manifest["tokenizer"]["pad_id"]] * CONTEXT][:CONTEXT] for window in hit
        ]
        return [number for number, rows in enumerate(self.read, 1) if any(row in rows for row in padded)]

    def documents(self, split: str) -> dict[str, str]:
        """Source by id."""
        return {row["id"]: row["source"] for row in labels(self.prepared, split)}  # type: ignore[arg-type]

    def find(self, text: str) -> list[dict[str, Any]]:
        answer = search(self.prepared, text, self.training)
        assert answer["complete"] is True
        found: list[dict[str, Any]] = answer["found"]
        return found

    def _holds(self, tokens: list[int], text: str) -> bool:
        return text in " ".join(self.engine.decode(tokens).split())


def _rows(batches: Batches, step: int) -> list[list[int]]:
    batch = batches.batch(step * BATCH_ROWS)
    return [row for part in batch.micro_batches for row in part.tokens_BT.tolist()]


@pytest.fixture(scope="module")
def training(folder: Path) -> Training:
    return Training(folder)


def command(folder: Path, *words: str) -> tuple[int, str, str]:
    return ran_here(folder, "data", *words)


def test_steps_of_a_passage_are_those_whose_batches_hold_it(training: Training) -> None:
    """Of every document that is trained on: two shards, two sources, weights that change, several epochs."""
    counts = []
    for key, source in training.documents("train").items():
        for text in (f"mark of {key}x", f"{key}x"):
            (row,) = training.find(text)
            assert (row["id"], row["source"], row["split"]) == (key, source, "train")
            assert row["licence"] == {"rail": None, "ore": "MIT"}[source]
            assert row["steps"] == training.steps(["rail", "ore"].index(source), text), text
            counts.append(len(row["steps"]))
    assert len(counts) > 30 and counts.count(0) < len(counts) / 2 and max(counts) > 1
    assert len({row["shard"] for key in training.documents("train") for row in training.find(f"{key}x")}) == 3


def test_passage_is_found_wherever_lines_break_in_it(training: Training, folder: Path) -> None:
    for key in training.documents("train"):
        words = texts(folder)[key].split()
        for begin, end in ((21, 27), (16, 30), (0, 48), (22, 25)):  # the name is the 24th, a line ends there
            passage = "  ".join(words[begin:end])
            assert [row["id"] for row in training.find(passage)] == [key], passage


def test_passage_that_is_held_out_is_in_no_step(training: Training) -> None:
    held = training.documents("validation")
    assert set(held.values()) <= {"rail", "ore"} and held
    for key in held:
        (row,) = training.find(f"the mark of {key}x")
        assert (row["id"], row["split"], row["steps"]) == (key, "validation", None)


def test_command_tells_where_and_when(training: Training, folder: Path) -> None:
    key = next(key for key, source in training.documents("train").items() if source == "ore")
    code, out, error = command(folder, "search", "run", f"the mark of {key}x")
    steps = ", ".join(map(str, training.steps(1, f"the mark of {key}x")))
    assert code == 0, error
    assert out.startswith(f"train  ore: {key}  (") and f", steps {steps}\n" in out
    # Prepared data without a run knows no steps.
    code, out, _ = command(folder, "search", str(training.prepared.folder), f"the mark of {key}x", "--json")
    (row,) = json.loads(out)["found"]
    assert code == 0 and row["id"] == key and row["steps"] is None
    code, out, _ = command(folder, "search", "run", "the mark of nobody")
    assert code == 0 and "'the mark of nobody' is nowhere in" in out
    code, _, error = command(folder, "search", "run", " ")
    assert code == 2 and "the passage is empty" in error


def test_tokens_of_others_are_searched_by_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(token_lines([[k, 8, 9, 10, 11, 12] for k in range(20)]))
    head = 'name = "n"\n[tokenizer]\nvocab = 30\n[data]\nvalidation = 0\n'
    (tmp_path / "recipe.toml").write_text(
        f'{head}[[data.source]]\nname = "n"\nkind = "tokens"\npath = "rows.jsonl"\n'
    )
    prepared = build(tmp_path / "recipe.toml", tmp_path / "store")
    assert [row["id"] for row in search(prepared, "13 8 9 10 11", None)["found"]] == ["rows.jsonl:14"]
    assert search(prepared, "words that no tokenizer of numbers knows", None)["found"] == []


# The report, and rows with their borders.


def test_report_writes_a_page_and_the_figures_of_the_contract(training: Training, folder: Path) -> None:
    code, out, error = command(folder, "report", "run", "--json", "--out", "page.html")
    assert code == 0, error
    document = json.loads(out)
    sources = document["sources"]
    fields = {"name", "kind", "rows_in", "kept", "refused", "errors", "bytes_in", "documents", "tokens"}
    for source, known in zip(sources, training.prepared.manifest["sources"], strict=True):
        assert {key: source[key] for key in fields} == {key: known[key] for key in fields}
        assert source["rows_in"] == source["kept"] + sum((source["refused"] | source["errors"]).values())
    assert document["manifest"] == str(training.prepared.folder / "manifest.json")
    assert abs(sum(source["mixture_share"] for source in sources) - 1) < 1e-6
    page = (folder / "page.html").read_text()
    assert document["page"] == "page.html" and all(f"{name}" in page for name in ("rail", "ore", "MIT"))
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_show_each_document_of_every_shard_with_its_borders(
    training: Training, folder: Path, split: str
) -> None:
    prepared, known = training.prepared, texts(folder)
    pieces: dict[str, list[int]] = {}
    num_rows = inspect_row(prepared.folder, split, 0, CONTEXT)["num_rows"]
    for index in range(num_rows):
        row = inspect_row(prepared.folder, split, index, CONTEXT)
        tokens = row["tokens"]
        for part in row["documents"]:
            own = tokens[part["begin"] : part["end"]]
            assert all(token["start"] == part["begin"] for token in own)
            if part["begin"] > 0:
                assert own[0]["id"] == prepared.bos_id
                assert not own[0]["loss"], "no document foretells the next one"
            text = " ".join(training.engine.decode([token["id"] for token in own]).split())
            assert text in " ".join(known[part["id"]].split())
            assert part["source"] == {"r": "rail", "o": "ore"}[part["id"][0]]
            pieces.setdefault(part["id"], []).append(part["end"] - part["begin"])
    assert pieces.keys() == training.documents(split).keys()
    assert sum(map(sum, pieces.values())) == prepared.manifest["splits"][split]["tokens"]
