"""Our token files read by Megatron's own reader, and those of its own builder read by ours."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from bessemer.data.tokens.shards import Shard, ShardWriter, Stream

pytestmark = pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed")
# In a process of its own: importing it warns of what it would like to have installed.
PROGRAM = """
import json, sys
from pathlib import Path
import numpy, torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
folder = Path(sys.argv[1])
told = {}
for stem in ("narrow", "wide.of.32"):
    data = IndexedDataset(str(folder / stem), mmap=True)
    documents = [data[number].tolist() for number in range(len(data))]
    part = data.get(1, offset=1, length=1).tolist()
    told[stem] = [data.index.dtype.__name__, documents, data.document_indices.tolist(), part]
for name in ("uint8", "int8", "int16", "int32", "int64", "uint16"):
    for modes in (False, True):
        stem = folder / f"theirs.{name}.{modes}"
        builder = IndexedDatasetBuilder(f"{stem}.bin", getattr(numpy, name), multimodal=modes)
        builder.add_document(torch.tensor([1, 2, 3, 100]), [4], [1] if modes else None)
        builder.add_document(torch.tensor([4, 5, 6]), [1, 2], [0, 1] if modes else None)
        builder.add_item(torch.tensor([7]))
        builder.end_document()
        builder.end_document()
        builder.finalize(f"{stem}.idx")
print(json.dumps(told))
"""
DOCUMENTS = [[1, 2, 3], [4, 65_535], [], [6]]
THEIRS = [[1, 2, 3, 100], [4, 5, 6], [7], []]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron")
    # A shard without tokens is left out: Megatron cannot map an empty file.
    for stem, vocab in (("narrow", 65_536), ("wide.of.32", 65_537)):
        with ShardWriter(folder / stem, vocab) as writer:
            for document in DOCUMENTS:
                writer.add(document)
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "told.json").write_text(done.stdout.splitlines()[-1])
    return folder


def test_megatron_reads_what_is_written_here(folder: Path) -> None:
    told = json.loads((folder / "told.json").read_text())
    assert told["narrow"] == ["uint16", DOCUMENTS, [0, 1, 2, 3, 4], [65_535]]
    assert told["wide.of.32"] == ["int32", DOCUMENTS, [0, 1, 2, 3, 4], [65_535]]


@pytest.mark.parametrize("modes", [False, True])
@pytest.mark.parametrize("name", ["uint8", "int8", "int16", "int32", "int64", "uint16"])
def test_what_megatron_writes_is_read_here(folder: Path, name: str, modes: bool) -> None:
    shard = Shard(folder / f"theirs.{name}.{modes}")
    assert [shard.document(number).tolist() for number in range(shard.num_documents)] == THEIRS
    assert shard.tokens.dtype == np.dtype(name)


def test_files_of_both_are_one_stream(folder: Path) -> None:
    stream = Stream([Shard(folder / stem) for stem in ("wide.of.32", "theirs.int64.False", "narrow")])
    documents = [*DOCUMENTS, *THEIRS, *DOCUMENTS]
    assert [stream.document(number).tolist() for number in range(stream.num_documents)] == documents
    assert stream.tokens[:].tolist() == [token for document in documents for token in document]
