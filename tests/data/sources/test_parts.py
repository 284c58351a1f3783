"""Parts: together they are the whole, they are the same everywhere, and few change when a file does."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import read_parts, source_of

from bessemer.data.sources.cutting import cut
from bessemer.data.sources.documents import documents, read, source_inputs
from bessemer.data.sources.parts import Input, Part
from bessemer.data.tokens.shards import ShardWriter
from bessemer.recipe.schema import Source

WORDS = ["iron", "steel, cast", 'the "old"\nmill', "é", "", "rail\r\nway", "x" * 90]


def texts(count: int) -> list[str]:
    rng = random.Random(count)
    return [f"{n} " + " ".join(rng.choices(WORDS, k=rng.randint(0, 6))) for n in range(count)]


def write_jsonl(folder: Path) -> Source:
    lines = [json.dumps({"text": text, "n": n}) for n, text in enumerate(texts(200))]
    lines[3:3], lines[70:70], lines[150:150] = [""], ["{broken"], ['{"text": "lone \\ud800"}']
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "b.jsonl").write_text('\ufeff{"text": "one", "n": 1}\n', encoding="utf-8")
    (folder / "c.jsonl").write_bytes(b"")
    return source_of("jsonl", "*.jsonl")


def write_csv(folder: Path) -> Source:
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts(200)]
    rows = [f"{n},{text},{n % 7}" for n, text in enumerate(quoted)]
    rows[9] = '9,"broken"x,1\n\n'
    rows[50] = '50,a 5" plate,1\n\n'
    (folder / "a.csv").write_text("\ufeffid,text,group\r\n" + "\r\n".join(rows), encoding="utf-8", newline="")
    (folder / "b.csv").write_text("text,id,group\nold,7,7\n", encoding="utf-8")
    (folder / "c.csv").write_text("other\n" + "1\n" * 900, encoding="utf-8")
    return source_of("csv", "*.csv", 'id = "id"\ngroup = "group"')


def write_parquet(folder: Path) -> Source:
    table = pa.table({"text": [*texts(200), None], "id": list(range(201)), "more": ["m" * 500] * 201})
    pq.write_table(table, folder / "a.parquet", row_group_size=17)
    pq.write_table(table.slice(0, 5), folder / "b.parquet")
    pq.write_table(table.slice(0, 0), folder / "c.parquet")
    return source_of("parquet", "*.parquet", 'id = "id"')


def write_arrow(folder: Path) -> Source:
    for place, count in enumerate((200, 3)):
        table = pa.table({"text": texts(count)})
        path = str(folder / f"data-{place}.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=11)
    files = [{"filename": f"data-{place}.arrow"} for place in (1, 0)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}), encoding="utf-8")
    return source_of("huggingface", ".")


def write_tokens(folder: Path) -> Source:
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "a", 70_000) as shard:
        for _ in range(100):
            shard.add(rng.integers(0, 70_000, rng.integers(0, 60)))
    lists = [rng.integers(0, 9, rng.integers(0, 60)).tolist() for _ in range(100)]
    pq.write_table(pa.table({"tokens": lists}), folder / "b.parquet", row_group_size=13)
    (folder / "c.jsonl").write_text("".join(f"{row}\n" for row in lists), encoding="utf-8")
    return source_of("tokens", ".")


def write_texts(folder: Path) -> Source:
    for number, text in enumerate(texts(150)):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8", newline="")
    return source_of("text", "*.txt")


WRITERS = [write_jsonl, write_csv, write_parquet, write_arrow, write_tokens, write_texts]


@pytest.mark.parametrize("write", WRITERS)
def test_parts_of_any_size_give_what_the_whole_gives(tmp_path: Path, write: Callable[[Path], Source]) -> None:
    source = write(tmp_path)
    whole = list(documents(source, source_inputs(source, tmp_path)))
    assert len(whole) > 149
    numbers = set()
    for size in (1, 50, 300, 1000, 5000, 100_000):
        parts, rows = read_parts(tmp_path, source, size)
        assert rows == whole, size
        numbers.add(len(parts))
        assert len({part.hash for part in parts}) == len(parts)
    assert min(numbers) < 16 and max(numbers) > 13


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("limit", [1, 30, 10_000])
def test_limit_takes_the_first_rows(tmp_path: Path, write: Callable[[Path], Source], limit: int) -> None:
    source = write(tmp_path)
    whole = list(documents(source, source_inputs(source, tmp_path)))
    limited = source.model_copy(update={"limit": limit})
    assert list(documents(limited, source_inputs(limited, tmp_path))) == whole[:limit]
    parts, rows = read_parts(tmp_path, limited, 300)
    assert rows[:limit] == whole[:limit]
    if limit < 100:  # those known to lie beyond are not read at all
        assert len(parts) < len(cut(source, source_inputs(source, tmp_path, 300), 300)) / 2
        assert len(rows) <= limit + 30


def test_part_survives_the_way_to_a_worker() -> None:
    entry = Input(Path("/data/a.jsonl"), "a.jsonl", 9, 8, "ff", cuts=((4, 2), (9, 3)))
    part = Part((entry,), 4, 9, 2, 7)
    sent = Part.from_json(json.loads(json.dumps(part.to_json())))
    assert sent.hash == part.hash and sent.inputs[0].path == entry.path and sent.inputs[0].cuts == ()
    assert (sent.begin, sent.end, sent.first_row, sent.most_rows) == (4, 9, 2, 7)


def listed(names: list[str], sizes: dict[str, int]) -> list[Input]:
    return [Input(Path(name), name, sizes[name], 0, f"{sizes[name]:x}") for name in sorted(names)]


@pytest.mark.parametrize("largest", [3000, 60_000, 3_000_000])
def test_file_more_or_less_changes_two_parts_at_most(largest: int) -> None:
    rng = random.Random(largest)
    names = [f"books/{rng.randrange(10**9)}.txt" for _ in range(4000)]
    sizes = {name: int(largest * rng.random() ** 2) for name in names}
    source = source_of("text", "books")
    before = {part.hash for part in cut(source, listed(names, sizes))}
    assert len(before) > 2
    for name in rng.sample(names, 10):
        after = {part.hash for part in cut(source, listed([one for one in names if one != name], sizes))}
        # Without the file: the parts that held it are gone. With it again: the others are.
        assert len(before - after) <= 2 and len(after - before) <= 2


def test_small_files_share_parts_of_a_bounded_size() -> None:
    rng = random.Random(0)
    names = [f"{number:06d}.txt" for number in range(60_000)]
    sizes = {name: rng.randint(0, 8000) for name in names}
    source = source_of("text", "books")
    parts = cut(source, listed(names, sizes))
    assert [entry.name for part in parts for entry in part.inputs] == names
    counts = [len(part.inputs) for part in parts]
    assert max(counts) <= 4096 and 500 < np.mean(counts) < 2500
    assert max(sum(entry.size_bytes for entry in part.inputs) for part in parts) <= 64 << 20


def test_packed_file_of_a_few_megabytes_is_a_part_of_its_own() -> None:
    sizes = {"a.txt": 10, "b.txt.gz": 3_000_000, "c.txt": 10, "d.txt.gz": 10}
    names = [
        [entry.name for entry in part.inputs] for part in cut(source_of("text", "x"), listed([*sizes], sizes))
    ]
    assert names == [["a.txt"], ["b.txt.gz"], ["c.txt", "d.txt.gz"]]


def test_reading_stops_where_the_part_ends(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path)
    second = cut(source, source_inputs(source, tmp_path, 1000), 1000)[1]
    rows = list(read(source, second))
    assert rows[0].id == f"a.jsonl:{second.first_row}" and sum(row.num_bytes for row in rows) == (
        (second.end or 0) - second.begin
    )
