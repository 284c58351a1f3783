"""Counted words against Hugging Face's own pre-tokenizer, which is what they must equal."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from real_text import real_texts
from tokenizers import Regex, pre_tokenizers

from bessemer.data.tokens import words
from bessemer.data.tokens.encoder import fuzz
from bessemer.data.tokens.words import SPLIT, count_words, merge_counts, read_counts, write_counts
from bessemer.errors import RefusedError

ORACLE = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
# What the rules of SPLIT turn on.
TRICKY = (
    *(
        "'s",
        "'S",
        "'ſ",
        "'ll",
        "'LL",
        "'Ve",
        "'re",
        "'d",
        "'m",
        "'t",
        "'l",
        "'v",
        "'r",
        "''",
        "'",
        "’s",
        "ﬆ",
        "ſ",
    ),
    *(
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\n\n",
        " \n ",
        "\u00a0",
        "\u3000",
        "\x1c",
        "\x85",
        "(",
        "('",
        "-",
        "\u0301",
    ),
    *("1", "123456", "٣", "Ⅷ", "½", "a", "é", "漢字"),
)


def as_dict(counts: pa.Table) -> dict[str, int]:
    return {
        word.decode(): count
        for word, count in zip(counts["word"].to_pylist(), counts["count"].to_pylist(), strict=True)
    }


def expected(texts: list[str]) -> Counter[str]:
    return Counter(word for text in texts for word, _ in ORACLE.pre_tokenize_str(text))


def tricky_texts(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return ["".join(random.choice(TRICKY, random.integers(0, 12))) for _ in range(count)]


def test_words_are_those_of_the_pre_tokenizer() -> None:
    for texts in (real_texts(400_000), tricky_texts(20_000), fuzz(3000)):
        assert as_dict(count_words(texts)) == expected(texts)


def same_words(points: range, around: tuple[str, str]) -> bool:
    """Whether each of these characters, between these two, is cut as by the oracle."""
    texts = [chr(point).join(around) for point in points if not 0xD800 <= point < 0xE000]
    whole = "\n1".join(texts)
    starts = words.word_starts(whole.encode(), np.array([0]))
    sizes = [len(word.encode()) for word, _ in ORACLE.pre_tokenize_str(whole)]
    return bool(np.array_equal(starts, np.cumsum([0, *sizes[:-1]])))


def test_each_character_is_of_the_class_that_the_pre_tokenizer_gives_it() -> None:
    assert same_words(range(0x30000), ("'", "z"))


@pytest.mark.slow
@pytest.mark.parametrize("around", [("a", "1"), ("'", "z"), (" ", "("), ("1", " ")])
def test_each_character_of_all_planes_is_cut_as_by_the_pre_tokenizer(around: tuple[str, str]) -> None:
    for begin in range(0, 0x110000, 0x8000):
        assert same_words(range(begin, begin + 0x8000), around), hex(begin)


def test_no_word_crosses_from_a_text_into_the_next() -> None:
    assert as_dict(count_words(["a", "b", "", " ", " ", "\n", "1", "2"])) == {
        **{"a": 1, "b": 1, " ": 2, "\n": 1, "1": 1, "2": 1}
    }


def test_counts_do_not_depend_on_how_texts_come(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*fuzz(300), "x" * 3000, ""]
    counted = count_words(texts)
    array = pa.array(["skipped", *texts, None])
    assert count_words(array[1:]).equals(counted)
    assert count_words(pa.chunked_array([array[1:50], array[50:]])).equals(counted)
    assert count_words(iter([array[1:50].cast(pa.large_string()), array[50:]])).equals(counted)
    monkeypatch.setattr(words, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(words, "_ROWS_HELD", 500)
    assert count_words(texts).equals(counted)
    assert counted["word"].to_pylist() == sorted(counted["word"].to_pylist())


def test_nothing_has_no_words() -> None:
    for texts in ([], [""], pa.array([], pa.string()), pa.array([None, ""])):
        assert count_words(texts).equals(words.SCHEMA.empty_table())


def test_word_is_kept_whole_however_long() -> None:
    assert as_dict(count_words(["漢" * 200_000 + " " + "a" * 200_000])) == {
        "漢" * 200_000: 1,
        " " + "a" * 200_000: 1,
    }


def parts(folder: Path, texts: list[str], size: int) -> list[Path]:
    paths = []
    for begin in range(0, len(texts), size):
        paths.append(folder / f"{begin}.arrow")
        write_counts(paths[-1], count_words(texts[begin : begin + size]))
    return paths


def test_merged_parts_are_the_counts_of_the_whole(tmp_path: Path) -> None:
    texts = [*real_texts(400_000), *fuzz(200)]
    whole = count_words(texts)
    paths = parts(tmp_path, texts, 40)
    assert merge_counts(paths, tmp_path / "spill").equals(whole)
    assert merge_counts(paths[::-1], tmp_path / "spill").equals(whole)
    assert merge_counts([], tmp_path / "spill").num_rows == 0
    assert not any((tmp_path / "spill").iterdir())


def test_most_frequent_words_are_kept_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    paths = parts(tmp_path, ["b", "c", "a", "c", "ddd"], 2)
    few = merge_counts(paths, tmp_path, max_words=2)
    assert as_dict(few) == {"a": 1, "c": 2}
    assert as_dict(merge_counts(paths, tmp_path, max_bytes=5)) == {"a": 1, "b": 1, "c": 2}
    assert as_dict(merge_counts(paths, tmp_path, max_bytes=6)) == {"a": 1, "b": 1, "c": 2, "ddd": 1}


def test_written_counts_come_back_and_are_the_same_bytes(tmp_path: Path) -> None:
    counts = count_words(fuzz(50))
    for name in "ab":
        write_counts(tmp_path / name, counts)
    assert read_counts(tmp_path / "a").equals(counts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_too_little_memory_to_count_is_refused_in_words(tmp_path: Path) -> None:
    words = pa.array([f"word{number}" for number in range(200_000)])
    write_counts(tmp_path / "counts", count_words([words]))
    with pytest.raises(RefusedError, match="too little memory to count words") as caught:
        merge_counts([tmp_path / "counts"], tmp_path / "spill", memory_bytes=2 * 2**20)
    assert "tokenizer.path" in caught.value.fix
