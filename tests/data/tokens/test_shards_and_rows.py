"""Token files against Megatron's layout, rows against a reference that walks token by token."""

import struct
from pathlib import Path

import numpy as np
import pytest

from bessemer.data.fitting import fit_document, fit_pair
from bessemer.data.packed_rows import Extra, Marks, PackedRows, pack
from bessemer.data.rows import NO_LOSS, StreamRows
from bessemer.data.tokens.shards import Shard, ShardWriter, Stream
from bessemer.errors import DataError

BOS, EOS, PAD = 0, 1, 2


def written(path: Path, documents: list[list[int]], vocab: int = 1000) -> Shard:
    with ShardWriter(path / "shard", vocab) as writer:
        for document in documents:
            writer.add(document)
    return Shard(path / "shard")


def some_documents(seed: int, count: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 30, count)
    return [[BOS, *random.integers(3, 1000, length).tolist(), EOS] for length in lengths]


def reference_rows(documents: list[list[int]], context: int) -> list[tuple[list[int], list[int], list[int]]]:
    stream = [(token, place == 0) for document in documents for place, token in enumerate(document)]
    rows = []
    for begin in range(0, len(stream), context):
        tokens, targets, starts, start = [], [], [], 0
        for place in range(begin, begin + context):
            inside = place < len(stream)
            tokens.append(stream[place][0] if inside else PAD)
            start = place - begin if inside and stream[place][1] else start
            starts.append(start)
            follows = place + 1 < len(stream) and not stream[place + 1][1]
            targets.append(stream[place + 1][0] if follows else NO_LOSS)
        rows.append((tokens, targets, starts))
    return rows


@pytest.mark.parametrize("context", [2, 3, 7, 16, 64, 1000])
def test_rows_are_those_of_a_plain_loop(tmp_path: Path, context: int) -> None:
    documents = some_documents(context, 40)
    rows = StreamRows(written(tmp_path, documents), context, PAD)
    expected = reference_rows(documents, context)
    assert len(rows) == len(expected)
    for index, (tokens, targets, starts) in enumerate(expected):
        row = rows.row(index)
        assert row.tokens_T.tolist() == tokens
        assert row.targets_T.tolist() == targets
        assert row.starts_T.tolist() == starts
        assert row.tokens_T.dtype == row.targets_T.dtype == row.starts_T.dtype == np.int32


def test_every_token_but_the_begin_token_is_a_target_once(tmp_path: Path) -> None:
    documents = some_documents(1, 50)
    rows = StreamRows(written(tmp_path, documents), 32, PAD)
    targets = np.concatenate([rows.row(index).targets_T for index in range(len(rows))])
    expected = [token for document in documents for token in document[1:]]
    assert targets[targets != NO_LOSS].tolist() == expected


def test_row_names_the_documents_it_shows(tmp_path: Path) -> None:
    documents = [[BOS, 5, 6, EOS], [BOS, EOS], [BOS, 7, 8, 9, EOS]]
    rows = StreamRows(written(tmp_path, documents), 5, PAD)
    assert rows.documents(0) == [(0, 0, 4), (1, 4, 5)]
    assert rows.documents(1) == [(1, 0, 1), (2, 1, 5)]
    assert rows.documents(2) == [(2, 0, 1)]


def test_no_tokens_are_no_rows(tmp_path: Path) -> None:
    rows = StreamRows(written(tmp_path, []), 8, PAD)
    assert len(rows) == 0
    with pytest.raises(IndexError):
        rows.row(0)


@pytest.mark.parametrize(("vocab", "code", "width"), [(65_536, 8, 2), (65_537, 4, 4)])
def test_index_is_laid_out_as_megatron_reads_it(tmp_path: Path, vocab: int, code: int, width: int) -> None:
    shard = written(tmp_path, [[1, 2, 3], [4], [vocab - 1, 6]], vocab)
    index = (tmp_path / "shard.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<QBQQ", index, 9) == (1, code, 3, 4)
    assert np.frombuffer(index, np.int32, 3, 34).tolist() == [3, 1, 2]
    assert np.frombuffer(index, np.int64, 3, 46).tolist() == [0, 3 * width, 4 * width]
    assert np.frombuffer(index, np.int64, 4, 70).tolist() == [0, 1, 2, 3]
    assert len(index) == 102 and (tmp_path / "shard.bin").stat().st_size == 6 * width
    assert shard.document(2).tolist() == [vocab - 1, 6]


def test_many_documents_at_once_are_the_same_files(tmp_path: Path) -> None:
    documents = some_documents(3, 50)
    written(tmp_path, documents)
    flat = np.array([7, 7, *(token for document in documents for token in document), 7])
    offsets = 2 + np.cumsum([0, *map(len, documents)])
    with ShardWriter(tmp_path / "many", 1000) as writer:
        writer.add_many(flat, offsets[:21])
        writer.add_many(flat, offsets[20:21])
        writer.add_many(flat, offsets[20:])
    for suffix in (".bin", ".idx"):
        one, many = ((tmp_path / (stem + suffix)).read_bytes() for stem in ("shard", "many"))
        assert one == many


def cut(path: Path, documents: list[list[int]], at: list[int]) -> Stream:
    """The documents in a shard for each stretch between these numbers."""
    shards = []
    for begin, end in zip([0, *at], [*at, len(documents)], strict=True):
        (path / f"{len(shards)}").mkdir()
        # Shards of both widths: a source may have grown out of 16 bits.
        shards.append(written(path / f"{len(shards)}", documents[begin:end], 1000 + len(shards) % 2 * 70_000))
    return Stream(shards)


@pytest.mark.parametrize("at", [[], [0], [20, 20, 33], [1, 2, 3, 4, 5, 40], list(range(1, 40))])
def test_stream_of_shards_is_the_shard_of_all_their_documents(tmp_path: Path, at: list[int]) -> None:
    documents = some_documents(5, 40)
    whole, stream = written(tmp_path, documents), cut(tmp_path, documents, at)
    assert len(stream.tokens) == len(whole.tokens) and stream.num_documents == 40
    assert stream.borders.tolist() == whole.borders.tolist()
    random = np.random.default_rng(0)
    for begin, end in [(0, 0), (-1, 99), (700, 3), *random.integers(0, len(whole.tokens) + 20, (300, 2))]:
        assert stream.tokens[begin:end].tolist() == whole.tokens[begin:end].tolist()
    assert [stream.document(number).tolist() for number in range(40)] == documents
    for number in (-1, 40):
        with pytest.raises(IndexError):
            stream.document(number)
    for context in (7, 64):
        ours, expected = StreamRows(stream, context, PAD), StreamRows(whole, context, PAD)
        assert len(ours) == len(expected)
        for index in range(len(expected)):
            for name in ("tokens_T", "targets_T", "starts_T"):
                one, other = getattr(ours.row(index), name), getattr(expected.row(index), name)
                assert np.array_equal(one, other) and one.dtype == other.dtype
            assert ours.documents(index) == expected.documents(index)


def test_stream_of_nothing_is_empty(tmp_path: Path) -> None:
    for stream in (Stream([]), cut(tmp_path, [], [0])):
        assert len(stream.tokens) == stream.num_documents == 0 and stream.borders.tolist() == [0]
        assert stream.tokens[0:5].tolist() == [] and len(StreamRows(stream, 4, PAD)) == 0


def test_slice_inside_one_shard_is_a_view_of_its_file(tmp_path: Path) -> None:
    documents = some_documents(6, 10)
    stream = cut(tmp_path, documents, [5])
    border = int(stream.borders[5])
    assert np.shares_memory(stream.tokens[border : border + 4], stream.shards[1].tokens)
    assert stream.tokens[border : border + 4].base is not None


def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    written(tmp_path, [[1]])
    for content in (b"x" * 200, b"", b"MMIDIDX"):
        (tmp_path / "shard.idx").write_bytes(content)
        with pytest.raises(DataError, match="not an index"):
            Shard(tmp_path / "shard")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    written(tmp_path, [[1, 2], [3]])
    index, tokens = tmp_path / "shard.idx", tmp_path / "shard.bin"
    good = index.read_bytes()
    sizes, documents = 34, 34 + 2 * 12
    for place, number in ((sizes, 5), (sizes, -2), (documents, 1), (documents + 8, 3), (documents + 16, 1)):
        index.write_bytes(good[:place] + struct.pack("<i", number) + good[place + 4 :])
        with pytest.raises(DataError, match="cannot be read"):
            Shard(tmp_path / "shard")
    for damaged in (good[:-1], good[:20] + b"\xff" * 6 + good[26:]):
        index.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            Shard(tmp_path / "shard")
    index.write_bytes(good)
    tokens.write_bytes(b"1234")
    with pytest.raises(DataError, match="4 bytes, where its index tells of 6"):
        Shard(tmp_path / "shard")
    tokens.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Shard(tmp_path / "shard")


def test_packed_examples_are_whole_and_only_answers_are_targets(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    prompts = [[BOS, *random.integers(3, 99, random.integers(1, 20)).tolist()] for _ in range(60)]
    answers = [[*random.integers(100, 199, random.integers(1, 9)).tolist(), EOS] for _ in range(60)]
    shard = written(tmp_path, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    sizes = zip(prompts, answers, strict=True)
    marks = [Marks.prompt(len(prompt), len(prompt) + len(answer)) for prompt, answer in sizes]
    rows = PackedRows(shard, marks, 32, PAD)
    seen = []
    for index in range(len(rows)):
        row = rows.row(index)
        for number, begin, end in rows.documents(index):
            seen.append(number)
            assert row.tokens_T[begin:end].tolist() == prompts[number] + answers[number]
            assert set(row.starts_T[begin:end].tolist()) == {begin}
            targets = row.targets_T[begin:end].tolist()
            first = len(prompts[number]) - 1
            assert targets == [NO_LOSS] * first + answers[number] + [NO_LOSS]
        assert set(row.tokens_T[end:].tolist()) <= {PAD} and set(row.targets_T[end:].tolist()) <= {NO_LOSS}
    assert sorted(seen) == list(range(60)) and rows.truncated == 0


def test_first_examples_are_those_of_any_longer_choice(tmp_path: Path) -> None:
    shard = written(tmp_path, some_documents(0, 30))
    marks = [Marks.prompt(1, len(shard.document(number))) for number in range(30)]
    rows = PackedRows(shard, marks, 64, PAD, examples=10)
    assert sorted(k for index in range(len(rows)) for k, _, _ in rows.documents(index)) == list(range(10))


def test_packing_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(10, 300, 500).tolist()
    rows = pack(lengths, 512)
    assert sorted(number for row in rows for number in row) == list(range(500))
    assert all(sum(lengths[number] for number in row) <= 512 for row in rows)
    assert sum(lengths) / (512 * len(rows)) > 0.97


def test_too_long_example_loses_the_middle_of_its_prompt() -> None:
    spans = ((80, 100),)  # prompt 0 … 79, answer 80 … 99
    fitted = fit_document(100, spans, 60)
    assert fitted.places.tolist() == [*range(30), *range(70, 100)] and fitted.spans == ((40, 60),)
    fitted = fit_document(100, spans, 15)  # the answer alone is longer than the row
    assert fitted.places.tolist() == [0, *range(80, 94)] and fitted.spans == ((1, 15),)
    fitted = fit_document(100, spans, 100)
    assert fitted.places.tolist() == list(range(100)) and fitted.spans == spans
    fitted = fit_document(100, (), 20)  # a text with a label keeps its end
    assert fitted.places.tolist() == [*range(14), *range(94, 100)] and fitted.spans == ()


def test_what_stands_behind_a_cut_is_not_learnt_from_what_stands_before_it() -> None:
    fitted = fit_document(100, ((10, 20), (60, 80), (90, 100)), 60)
    # 37 and 13 tokens of the first 90 stay: 0 … 36, 77 … 89; token 77 would be predicted by 36.
    assert fitted.places.tolist() == [*range(37), *range(77, 100)]
    assert fitted.spans == ((10, 20), (38, 40), (50, 60))


def test_both_documents_of_a_pair_lose_the_same_of_their_prompt() -> None:
    chosen, rejected = fit_pair((50, 60), (((40, 50),), ((40, 60),)), 70)
    assert chosen.places.tolist() == [*range(15), *range(35, 50)] and chosen.spans == ((20, 30),)
    assert rejected.places.tolist() == [*range(15), *range(35, 60)] and rejected.spans == ((20, 40),)
    chosen, rejected = fit_pair((50, 100), (((40, 50),), ((40, 100),)), 40)  # a long answer loses its end
    assert chosen.places.tolist() == [0, *range(40, 50)] and rejected.size == 29
    chosen, rejected = fit_pair((100, 100), (((40, 100),), ((40, 100),)), 41)
    assert (chosen.size, rejected.size) == (20, 21)


def test_columns_of_documents_and_of_tokens_stand_where_those_are(tmp_path: Path) -> None:
    documents = some_documents(0, 20)
    shard = written(tmp_path, documents)
    marks = [Marks.prompt(1, len(document)) for document in documents]
    total = len(shard.tokens)
    each = np.arange(2 * total, dtype=np.float32).reshape(total, 2)
    longest = max(map(len, documents))
    context = longest - 1  # one of them at least is cut
    extra = Extra({"score": np.arange(20) + 0.5}, {"top": each})
    rows = PackedRows(shard, marks, context, PAD, extra=extra)
    assert rows.truncated > 0
    for index in range(len(rows)):
        row, used = rows.row(index), np.zeros(context, dtype=bool)
        for number, begin, end in rows.documents(index):
            assert row.columns["score"][begin] == number + 0.5
            first = int(shard.borders[number])
            places = (row.columns["top"][begin:end, 0] / 2).astype(int)
            assert shard.tokens[places].tolist() == row.tokens_T[begin:end].tolist()
            assert first <= places.min() and places.max() < int(shard.borders[number + 1])
            used[begin:end] = True
        begins = [begin for _, begin, _ in rows.documents(index)]
        assert np.flatnonzero(row.columns["score"]).tolist() == begins
        assert not row.columns["top"][~used].any()
