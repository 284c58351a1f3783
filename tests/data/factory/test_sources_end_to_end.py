"""Every kind of source in one recipe, from the command to the shards: no row is lost, none is another's.

And tokens of others alone, of which no text is known, from the files to a step of training.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from making_factory import build, build_apart, command, content
from making_postgres import Server
from making_runs import QUIET, curve, own_cache
from making_sources import VARIABLE, Known, s3_store, token_lines, write_sources
from tokenizers import Tokenizer

from bessemer.data.prepared import Prepared
from bessemer.data.tokens.shards import ShardWriter
from bessemer.data.tokens.sidecar import read_sidecar
from bessemer.recipe.load import load
from bessemer.train.pretrain import Place, pretrain

MEGATRON = """
import json, sys
from megatron.core.datasets.indexed_dataset import IndexedDataset
told = {}
for stem in sys.argv[1:]:
    data = IndexedDataset(stem, mmap=True)
    told[stem] = [data[number].tolist() for number in range(len(data))]
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Built:
    folder: Path
    environment: dict[str, str]
    known: dict[str, Known]
    prepared: Prepared


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("all")
    with s3_store() as (bucket, environment):
        known = write_sources(folder, postgres, bucket)
        environment |= {VARIABLE: postgres.url()}
        yield Built(
            folder,
            environment,
            known,
            build_apart(folder / "recipe.toml", folder / "store", environment=environment),
        )


def test_every_row_of_every_kind_of_source_ends_in_one_place(built: Built) -> None:
    told = {source["name"]: source for source in built.prepared.manifest["sources"]}
    assert list(told) == list(built.known)
    for name, known in built.known.items():
        source = told[name]
        lost = sum(source["refused"].values()) + sum(source["errors"].values())
        assert source["rows_in"] == source["kept"] + lost
        assert (source["kept"], source["refused"], source["errors"]) == (
            len(known.texts),
            known.refused,
            known.errors,
        ), name
        assert source["licence"] == known.licence and source["bytes_in"] > 0


def test_each_document_keeps_its_text_id_licence_and_origin(built: Built) -> None:
    engine = Tokenizer.from_file(str(built.prepared.tokenizer_path))
    found: dict[str, dict[str, str]] = {name: {} for name in built.known}
    for split in ("train", "validation"):
        for stems, stream in zip(built.prepared.stems(split), built.prepared.streams(split), strict=True):
            rows = [row for stem in stems for row in read_sidecar(stem).to_pylist()]
            assert len(rows) == stream.num_documents
            for number, row in enumerate(rows):
                known = built.known[row["source"]]
                assert row["licence"] == known.licence and row["origin"] == known.origins.get(row["id"])
                text = engine.decode(stream.document(number).tolist())
                assert row["bytes"] == len(text.encode()) and row["tokens"] == len(stream.document(number))
                found[row["source"]][row["id"]] = " ".join(text.split())  # a PDF has lines
    assert found == {name: known.texts for name, known in built.known.items()}


def test_one_worker_gives_the_same_bytes(built: Built) -> None:
    one = build(
        built.folder / "recipe.toml",
        built.folder / "one",
        "--workers",
        "1",
        environment=built.environment,
    )
    assert content(one) == content(built.prepared)


@pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed")
def test_megatron_reads_the_shards(built: Built) -> None:
    stems = [str(stem) for stems in built.prepared.stems("train") for stem in stems][:3]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEGATRON, *stems], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for stem, stream in zip(stems, built.prepared.streams("train"), strict=False):
        ours = [stream.document(number).tolist() for number in range(stream.num_documents)]
        assert told[stem] == ours and ours


# Tokens alone.

TOKENS = """name = "series"
[tokenizer]
vocab = {vocab}
[data]
validation = 0.2
[[data.source]]
name = "rows"
kind = "tokens"
path = "rows.jsonl"
[[data.source]]
name = "files"
kind = "tokens"
path = "files"
[model]
layers = 1
hidden = 32
heads = 4
kv_heads = 2
ffn = 48
context = 32
[pretrain]
steps = 2
batch_tokens = 128
micro_batch = 2
lr = 3e-3
dtype = "fp32"
compile = false
save_every = 2
validate_every = 2
"""


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[list[int]]]]:
    """Walks over 50 numbers, as JSON lines and as Megatron writes them; and a recipe without a tokenizer."""
    folder, dice = tmp_path_factory.mktemp("series"), np.random.default_rng(0)
    walks = [np.abs(np.cumsum(dice.integers(-3, 4, 60))) % 50 for _ in range(40)]
    rows = [walk.tolist() for walk in walks]
    bad: list[object] = [[50], [3, -1], "text", [1.5], []]
    (folder / "rows.jsonl").write_bytes(token_lines([*rows[:20], *bad]))
    (folder / "files").mkdir()
    with ShardWriter(folder / "files" / "a", 60) as shard:
        for row in [*rows[20:], [59, 1]]:
            shard.add(row)
    (folder / "recipe.toml").write_text(TOKENS.format(vocab=50))
    return folder, {"rows": rows[:20], "files": rows[20:]}


def test_tokens_alone_need_no_tokenizer(series: tuple[Path, dict[str, list[list[int]]]]) -> None:
    folder, rows = series
    prepared = build(folder / "recipe.toml", folder / "store")
    assert prepared.manifest["tokenizer"] == {
        **prepared.manifest["tokenizer"],
        "vocab": 53,
        "bos_id": 50,
        "eos_id": 51,
        "pad_id": 52,
    }
    for number, (name, refused, errors) in enumerate(
        (("rows", {"empty": 1}, {"not_tokens": 4}), ("files", {}, {"not_tokens": 1}))
    ):
        told = prepared.manifest["sources"][number]
        assert (told["refused"], told["errors"]) == (refused, errors)
        documents = [
            stream.document(row).tolist()
            for split in ("train", "validation")
            for stream in [prepared.streams(split)[number]]
            for row in range(stream.num_documents)
        ]
        assert sorted(documents) == sorted([50, *row, 51] for row in rows[name])
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    assert engine.encode("3 0 49").ids == [3, 0, 49]


def test_tokens_alone_are_trained_on(series: tuple[Path, dict[str, list[list[int]]]], tmp_path: Path) -> None:
    folder, _ = series
    with own_cache(tmp_path / "cache"):
        place = Place(tmp_path / "run", folder / "store", QUIET)
        document = pretrain(load(str(folder / "recipe.toml"), []), place)
    assert document["step"] == 2
    first = curve(tmp_path / "run/pretrain")[0][1]
    assert abs(first - np.log(53)) < 1.0  # as good as a guess among 53


def test_tokens_beyond_the_vocabulary_are_told_with_the_way_out(
    series: tuple[Path, dict[str, list[list[int]]]], tmp_path: Path
) -> None:
    folder, _ = series
    (tmp_path / "rows.jsonl").write_bytes(token_lines([[7], [8]]))
    (tmp_path / "files").symlink_to(folder / "files")
    (tmp_path / "recipe.toml").write_text(TOKENS.format(vocab=4))
    done = subprocess.run(
        command(tmp_path / "recipe.toml", tmp_path / "store"), capture_output=True, text=True
    )
    assert done.returncode == 65 and "2 rows: 2 not_tokens" in done.stderr
    assert "set tokenizer.vocab above every token" in done.stderr
