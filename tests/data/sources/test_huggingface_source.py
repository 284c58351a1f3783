"""Data sets of Hugging Face: saved by `datasets` 5.2.0 itself (saved/), and as its hub gives them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import outcome, read_all, source_of

from bessemer.data.sources.documents import source_inputs
from bessemer.errors import DataError

SAVED = Path(__file__).parent / "saved"
TRAIN = [*(f"Row {n} of a saved data set, with {n * n} in it." for n in range(7)), "missing"]
TEST = ["Held out one.", "Held out two é."]


def test_saved_data_set_gives_all_splits_in_their_order(tmp_path: Path) -> None:
    shutil.copytree(SAVED, tmp_path / "saved")
    rows = read_all(tmp_path, "huggingface", "saved")
    assert outcome(rows) == [*TRAIN, *TEST]
    assert rows[0].id == "saved/train/data-00000-of-00002.arrow:1"
    assert rows[7].id == "saved/train/data-00001-of-00002.arrow:4"
    with_keys = read_all(tmp_path, "huggingface", "saved", 'id = "key"')
    assert [row.id for row in with_keys] == [*map(str, range(8)), "100", "101"]


def test_one_split_is_read_by_its_path(tmp_path: Path) -> None:
    shutil.copytree(SAVED, tmp_path / "saved")
    assert outcome(read_all(tmp_path, "huggingface", "saved/test")) == TEST
    one = "saved/train/data-00001-of-00002.arrow"
    assert outcome(read_all(tmp_path, "huggingface", one)) == TRAIN[4:]


def test_broken_shard_is_an_error_among_good_ones(tmp_path: Path) -> None:
    shutil.copytree(SAVED, tmp_path / "saved")
    shard = tmp_path / "saved/train/data-00000-of-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:500])
    assert outcome(read_all(tmp_path, "huggingface", "saved")) == ["corrupt", *TRAIN[4:], *TEST]
    shard.write_bytes(b"nothing of the kind")
    assert outcome(read_all(tmp_path, "huggingface", "saved")) == ["corrupt", *TRAIN[4:], *TEST]


@pytest.mark.parametrize(
    ("file", "content"), [("state.json", "{"), ("state.json", "[]"), ("dataset_dict.json", '{"splits": 5}')]
)
def test_broken_description_is_named(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"cannot read .*{file}"):
        read_all(tmp_path, "huggingface", ".")


def test_shard_that_is_listed_but_not_there_is_named(tmp_path: Path) -> None:
    shutil.copytree(SAVED, tmp_path / "saved")
    (tmp_path / "saved/train/data-00000-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"cannot read .*data-00000-of-00002"):
        read_all(tmp_path, "huggingface", "saved")


def test_folder_gives_its_files_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("what it is", encoding="utf-8")
    (tmp_path / "data" / "b.csv").write_text("text\nfrom csv\n", encoding="utf-8")
    assert outcome(read_all(tmp_path, "huggingface", ".")) == ["from csv"]
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "from lines"}\n', encoding="utf-8")
    assert outcome(read_all(tmp_path, "huggingface", ".")) == ["from lines"]
    pq.write_table(pa.table({"text": ["from parquet"]}), tmp_path / "z.parquet")
    assert outcome(read_all(tmp_path, "huggingface", ".")) == ["from parquet"]
    for file in tmp_path.rglob("*.*"):
        if file.suffix in (".csv", ".jsonl", ".parquet"):
            file.unlink()
    with pytest.raises(DataError, match="no data set at"):
        read_all(tmp_path, "huggingface", ".")


HUB = """
import sys
from pathlib import Path
from reading import outcome, read_all
rows = read_all(Path(sys.argv[1]), "huggingface", "smiths/forging")
print([row.id for row in rows], outcome(rows))
"""


def on_hub(folder: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """A process of its own: the hub's package reads its environment when it is imported."""
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "PYTHONPATH": str(Path(__file__).parent),
        **more,
    }
    return subprocess.run(
        [sys.executable, "-c", HUB, str(folder)], env=environment, capture_output=True, text=True, timeout=60
    )


def test_data_set_of_the_hub_is_found_in_its_cache_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    revision = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "home/hub/datasets--smiths--forging"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(revision, encoding="utf-8")
    (cached / "snapshots" / revision / "data").mkdir(parents=True)
    pq.write_table(
        pa.table({"text": ["hot", "cold"]}), cached / "snapshots" / revision / "data/train.parquet"
    )
    ran = on_hub(tmp_path, HF_HUB_OFFLINE="1")
    ids = [f"hf://datasets/smiths/forging/data/train.parquet:{number}" for number in (1, 2)]
    assert ran.stdout == f"{ids} ['hot', 'cold']\n", ran.stderr


def test_hub_that_cannot_be_reached_is_told_with_the_way_out(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    for more in (
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_secretsecret"},
    ):
        told = on_hub(tmp_path, **more).stderr
        assert "DataError: source 's': cannot fetch smiths/forging from the hub" in told
        assert "save_to_disk" in told and "hf_secretsecret" not in told


def test_name_that_is_a_folder_here_is_never_asked_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "smiths/forging").mkdir(parents=True)
    state = {"_data_files": []}
    (tmp_path / "smiths/forging/state.json").write_text(json.dumps(state), encoding="utf-8")
    assert source_inputs(source_of("huggingface", "smiths/forging"), tmp_path) == []
