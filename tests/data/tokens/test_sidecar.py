import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from bessemer.data.tokens import sidecar
from bessemer.data.tokens.sidecar import COLUMNS, read_row, read_sidecar, write_sidecar
from bessemer.errors import DataError


def write(stem: Path, count: int = 3) -> None:
    rows = pa.table(
        {
            "id": [f"d{number}" for number in range(count)],
            "group": [None] * count,
            "bytes": list(range(count)),
            "origin": pa.array(["ü.txt"] * count).cast(pa.large_string()),
            "quality": [0.5] * count,
            "language": pa.array(["en"] * count).dictionary_encode(),
        }
    )
    write_sidecar(stem, rows, {"source": "books", "licence": None}, np.arange(count) + 2)


def test_each_document_says_where_it_is_from_and_where_it_lies(tmp_path: Path) -> None:
    write(tmp_path / "a.b-0")
    table = read_sidecar(tmp_path / "a.b-0")
    assert table.column_names == [*COLUMNS, "quality"]
    assert table["begin"].to_pylist() == [0, 2, 5] and table["tokens"].to_pylist() == [2, 3, 4]
    assert table["source"].to_pylist() == ["books"] * 3 and table["licence"].null_count == 3
    assert read_sidecar(tmp_path / "a.b-0", ["id"]).to_pydict() == {"id": ["d0", "d1", "d2"]}
    found = duckdb.sql(f"SELECT origin, language FROM '{tmp_path / 'a.b-0.parquet'}' LIMIT 1").fetchall()
    assert found == [("ü.txt", "en")]


def test_one_row_is_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "_GROUP_ROWS", 10)
    write(tmp_path / "many", 25)
    whole = read_sidecar(tmp_path / "many").to_pylist()
    assert [read_row(tmp_path / "many", number) for number in (0, 9, 10, 24)] == [
        whole[number] for number in (0, 9, 10, 24)
    ]
    with pytest.raises(IndexError):
        read_row(tmp_path / "many", 25)


def test_shard_without_documents_has_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "none", 0)
    assert read_sidecar(tmp_path / "none").num_rows == 0


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        read_sidecar(tmp_path / "gone")


AGAIN = """
import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])
import test_sidecar; test_sidecar.write(Path(sys.argv[1]), 5000)
"""


def test_same_rows_are_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    write(tmp_path / "one", 5000)
    command = [sys.executable, "-c", AGAIN, str(tmp_path / "two"), os.path.dirname(__file__)]
    subprocess.run(command, check=True, env={**os.environ, "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"})
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
