"""Who is refused, and for whom: as dictionaries say, in any order of rows, within memory, without traces."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bessemer.data.clean.minhash import signatures, similarity
from bessemer.data.factory.duplicates import PAIRS, exact_duplicates, near_duplicates
from bessemer.errors import DataError, RefusedError, WriteError

MEMORY = 256 * 2**20
Row = tuple[int, int, int, int]  # number, priority, high, low

BIG = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from bessemer.data.factory.duplicates import exact_duplicates

def rows(count):
    rng = np.random.default_rng(0)
    for first in range(0, count, 1 << 16):
        numbers = np.arange(first, min(first + (1 << 16), count))
        keys = rng.integers(0, int(count * 0.6), len(numbers)).astype(np.uint64) * np.uint64(3**40)
        columns = [numbers, np.ones(len(numbers), np.int8), keys, keys ^ np.uint64(77)]
        yield pa.record_batch([pa.array(one) for one in columns], names=["number", "priority", "high", "low"])

folder, count, memory_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
num_refused = sum(batch.num_rows for batch in exact_duplicates(rows(count), folder, memory_bytes))
lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would count the process that forked
peak_kb = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
print(num_refused, int(peak_kb) * 1024)
"""


def key_batches(rows: list[Row], size: int = 100) -> Iterator[pa.RecordBatch]:
    types = {"number": pa.int64(), "priority": pa.int8(), "high": pa.uint64(), "low": pa.uint64()}
    for first in range(0, len(rows), size):
        columns = zip(*rows[first : first + size], strict=True)
        arrays = [pa.array(list(column), kind) for column, kind in zip(columns, types.values(), strict=True)]
        yield pa.record_batch(arrays, names=list(types))


def pairs_of(batches: Iterable[pa.RecordBatch]) -> list[tuple[int, int]]:
    pairs = []
    for batch in batches:
        assert batch.schema == PAIRS
        pairs += list(zip(batch["number"].to_pylist(), batch["stays"].to_pylist(), strict=True))
    return pairs


def random_rows(count: int, seed: int) -> list[Row]:
    rng = random.Random(seed)
    numbers = rng.sample(range(10**12), count)
    tops = [0, 1, 2**63, 2**64 - 1]
    return [(n, rng.choice([0, 1, 1, 1]), rng.choice(tops), rng.randrange(count // 4)) for n in numbers]


def expected_exact(rows: list[Row]) -> list[tuple[int, int]]:
    stays: dict[tuple[int, int], int] = {}
    pairs = []
    for number, _, high, low in sorted(rows, key=lambda row: (row[1], row[0])):
        if stays.setdefault((high, low), number) != number:
            pairs.append((number, stays[high, low]))
    return pairs


@pytest.mark.parametrize("seed", range(4))
def test_exact_duplicates_equal_a_dictionary_in_any_order_of_rows(tmp_path: Path, seed: int) -> None:
    rows = random_rows(2000, seed)
    expected = expected_exact(rows)
    random.Random(seed).shuffle(rows)
    assert pairs_of(exact_duplicates(key_batches(rows), tmp_path, MEMORY)) == expected
    assert pairs_of(exact_duplicates(key_batches(rows[::-1], 7), tmp_path, 2 * MEMORY)) == expected
    assert list(tmp_path.iterdir()) == []


def test_rows_without_duplicates_and_no_rows_give_nothing(tmp_path: Path) -> None:
    assert pairs_of(exact_duplicates(iter(()), tmp_path, MEMORY)) == []
    assert pairs_of(exact_duplicates(key_batches([(1, 1, 2, 3), (2, 1, 3, 2)]), tmp_path, MEMORY)) == []
    assert pairs_of(near_duplicates(iter(()), tmp_path, MEMORY, 0.75)) == []


def near_batches(
    texts: list[str], priorities: list[int], order: list[int], size: int
) -> Iterator[pa.RecordBatch]:
    for first in range(0, len(order), size):
        some = order[first : first + size]
        made = signatures(pa.array([texts[number] for number in some]))
        keys = [pa.array(some, pa.int64()), pa.array([priorities[number] for number in some], pa.int8())]
        yield pa.record_batch([*keys, *made.columns], names=["number", "priority", "bands", "sketch"])


def families(seed: int) -> list[str]:
    """Texts, each followed by versions: copies, small edits, and chains of edits that lead far away."""
    rng = random.Random(seed)
    texts = ["", "too short", "Too short!"]
    for _ in range(60):
        words = [f"w{rng.randrange(5000)}" for _ in range(rng.randrange(20, 300))]
        for _ in range(rng.randrange(1, 8)):
            texts.append(" ".join(words))
            for place in rng.sample(range(len(words)), len(words) * rng.choice([0, 1, 2, 4]) // 100):
                words[place] = f"new{rng.randrange(5000)}"
    return texts


def expected_near(texts: list[str], priorities: list[int], least: float) -> list[tuple[int, int]]:
    batch = signatures(pa.array(texts))
    bands, raw = batch["bands"].to_pylist(), batch["sketch"].to_pylist()
    ranked = [
        number for number in sorted(range(len(texts)), key=lambda n: (priorities[n], n)) if bands[number]
    ]
    lowest: dict[int, int] = {}
    for number in ranked:
        for band in bands[number]:
            lowest.setdefault(band, number)

    def alike(one: int, two: int) -> bool:
        pair = [np.frombuffer(raw[number], np.uint8)[None] for number in (one, two)]
        return bool(similarity(*pair)[0] >= least)

    stays: dict[int, int] = {}
    for number in ranked:
        others = {lowest[band] for band in bands[number]} - {number}
        for other in sorted(others, key=ranked.index):
            root = stays.get(other, other)
            if number not in stays and alike(number, other) and alike(number, root):
                stays[number] = root
    return [(number, stays[number]) for number in ranked if number in stays]


@pytest.mark.parametrize("least", [0.0, 0.75])
@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_equal_a_search_in_dictionaries_in_any_order(
    tmp_path: Path, seed: int, least: float
) -> None:
    texts = families(seed)
    priorities = [random.Random(seed).choice([0, 1, 1]) for _ in texts]
    expected = expected_near(texts, priorities, least)
    order = list(range(len(texts)))
    assert len(expected) > 30
    for size, memory_bytes in ((50, MEMORY), (1000, 2 * MEMORY)):
        random.Random(size).shuffle(order)
        batches = near_batches(texts, priorities, order, size)
        assert pairs_of(near_duplicates(batches, tmp_path, memory_bytes, least)) == expected
    assert list(tmp_path.iterdir()) == []


def test_whoever_is_refused_is_like_the_one_that_stays_and_that_one_is_not_refused(tmp_path: Path) -> None:
    """A chain of versions is not joined into one: its ends have nothing in common."""
    rng = random.Random(9)
    words = [f"w{rng.randrange(10**6)}" for _ in range(200)]
    chain = []
    for version in range(30):
        chain.append(" ".join(words))
        words[version * 6 : version * 6 + 6] = [f"n{version}x{place}" for place in range(6)]
    batches = near_batches(chain, [1] * 30, list(range(30)), 30)
    pairs = dict(pairs_of(near_duplicates(batches, tmp_path, MEMORY, 0.75)))
    assert 0 not in pairs and 29 - len(pairs) > 2 and len(pairs) > 10
    assert not set(pairs.values()) & set(pairs)
    sketch = [np.frombuffer(one, np.uint8) for one in signatures(pa.array(chain))["sketch"].to_pylist()]
    ends = [np.stack([sketch[number] for number in side]) for side in (pairs.keys(), pairs.values())]
    assert (similarity(*ends) >= 0.75).all()


def test_a_held_out_document_stays_and_its_copies_in_training_data_are_refused(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(80))
    batches = near_batches([text, text + " more", text], [1, 1, 0], [0, 1, 2], 2)
    assert pairs_of(near_duplicates(batches, tmp_path, MEMORY, 0.75)) == [(0, 2), (1, 2)]
    rows = [(0, 1, 5, 5), (1, 0, 5, 5), (2, 0, 5, 5)]
    assert pairs_of(exact_duplicates(key_batches(rows), tmp_path, MEMORY)) == [(2, 1), (0, 1)]


def run_big(folder: Path, count: int, memory_bytes: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", BIG, str(folder), str(count), str(memory_bytes)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_process_left_is_removed_by_the_next_call(tmp_path: Path) -> None:
    process = run_big(tmp_path, 10**8, MEMORY)
    try:
        deadline = time.monotonic() + 60
        left = tmp_path / "duplicates.exact" / "rows.duckdb"
        while not (left.exists() and left.stat().st_size > 2**20) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert left.exists()
    rows = random_rows(100, 1)
    assert pairs_of(exact_duplicates(key_batches(rows), tmp_path, MEMORY)) == expected_exact(rows)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_rows_passes_through_and_a_reader_that_stops_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from key_batches(random_rows(100, 1))
        raise DataError("a file vanished", found="", wanted="", fix="")

    for find in (exact_duplicates, lambda *given: near_duplicates(*given, 0.75)):
        with pytest.raises(DataError, match="vanished"):
            list(find((batch for batch in broken() if batch is None), tmp_path, MEMORY))
        assert list(tmp_path.iterdir()) == []
    pairs = exact_duplicates(key_batches(random_rows(100, 1)), tmp_path, MEMORY)
    next(pairs)
    pairs.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_a_write_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the system refuses the write in the same way."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
from bessemer.errors import WriteError
try:
    exec_big()
except WriteError as error:
    print("WriteError", error.found)
"""
    inner = "\n".join("    " + line for line in BIG.splitlines())
    script = code.replace("exec_big()", "pass\n" + inner + "\n")
    arguments = [sys.executable, "-c", script, str(tmp_path), "2000000", str(MEMORY // 4)]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == f"WriteError {os.strerror(errno.EFBIG)}"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"duplicates\.exact"):
        list(exact_duplicates(iter(()), tmp_path / "file", MEMORY))


def test_too_little_memory_is_refused_in_words(tmp_path: Path) -> None:
    rows = (batch for seed in range(30) for batch in key_batches(random_rows(10_000, seed), 10_000))
    with pytest.raises(RefusedError, match="too little memory") as caught:
        list(exact_duplicates(rows, tmp_path, 4 * 2**20))
    assert caught.value.found.startswith("4 MiB")


def test_nothing_is_written_outside_of_the_folder(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
    arguments = [sys.executable, "-c", BIG, str(work), "300000", str(MEMORY // 4)]
    subprocess.run(arguments, env=environment, cwd=home, check=True, capture_output=True, timeout=120)
    assert list(home.rglob("*")) == [] and list(work.iterdir()) == []


def test_a_million_rows_take_no_more_than_the_memory_allowed_and_the_process_itself(tmp_path: Path) -> None:
    process = run_big(tmp_path, 1_000_000, 128 * 2**20)
    num_refused, peak_bytes = map(int, process.communicate(timeout=120)[0].split())
    assert num_refused == 1_000_000 - distinct_keys(1_000_000) and peak_bytes < 450e6


@pytest.mark.slow
def test_24_million_rows_are_deduplicated_within_a_gigabyte(tmp_path: Path) -> None:
    process = run_big(tmp_path, 24_000_000, 512 * 2**20)
    num_refused, peak_bytes = map(int, process.communicate(timeout=600)[0].split())
    assert num_refused == 24_000_000 - distinct_keys(24_000_000) and peak_bytes < 1e9


def distinct_keys(count: int) -> int:
    rng = np.random.default_rng(0)
    seen = np.zeros(int(count * 0.6), dtype=bool)
    for first in range(0, count, 1 << 16):
        seen[rng.integers(0, len(seen), min(1 << 16, count - first))] = True
    return int(seen.sum())
