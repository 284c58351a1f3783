"""Words are those that a regular expression finds, whatever the batch; each has a hash of its own."""

import random

import numpy as np
import pyarrow as pa
import pytest
import regex

from bessemer.data.clean import word_hashes
from bessemer.data.clean.word_hashes import Words, grams, whole_texts

ALONE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}ー]"
WORD = regex.compile(rf"{ALONE}|(?:(?!{ALONE})[\p{{L}}\p{{M}}\p{{N}}])+")
SAMPLES = [
    "The quick_brown fox; it's 3.14 METRES (high)!",
    "Съешь ЖЕ ещё этих мягких французских булок — да выпей чаю.",
    "Ünïcode “quotes”, ÉCOLE… naïve—dash\u00a0space Ωmega ΣΑΣ",
    "据中国科学院消息,近日abc团队。東京タワー カタカナ ひらがな",
    "ภาษาไทย ไม่มีช่องว่าง english ລາວ ខ្មែរ",
    "हिन्दी में लिखा गया पाठ। العربية نص ١٢٣ עברית",
    "emoji 😀 and 🎉 math ∑∫ 𝐀𝐁 𐐀𐐨 \U00020000\U00020001 한국어 문장",
    "",
    " \n\t--- ",
    "a",
    "x" * 63 + " " + "x" * 64 + " " + "x" * 65 + " " + "y" * 300,
]


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def hashes_of(texts: list[str | None]) -> Words:
    return word_hashes.word_hashes(pa.array(texts, pa.large_string()))


def per_document(words: Words) -> list[list[int]]:
    return [part.tolist() for part in np.split(words.hashes, words.starts[1:-1])]


def mixed_texts(count: int) -> list[str]:
    rng = random.Random(1)
    pieces = [piece for sample in SAMPLES for piece in (*sample.split(" "), *sample[:40])]
    return [
        "".join(rng.choice(pieces) + rng.choice(" ,\n") * rng.randrange(2) for _ in range(rng.randrange(60)))
        for _ in range(count)
    ]


def test_words_of_any_script_are_those_of_the_regular_expression() -> None:
    texts = SAMPLES + mixed_texts(400)
    word_of: dict[int, str] = {}
    for text, found in zip(texts, per_document(hashes_of(list(texts))), strict=True):
        expected = words_of(text)
        assert len(found) == len(expected), text
        for number, word in zip(found, expected, strict=True):
            assert word_of.setdefault(number, word) == word
    assert len(set(word_of.values())) == len(word_of), "a word has two hashes"


def test_a_document_has_the_same_words_in_any_batch_and_null_has_none() -> None:
    texts = mixed_texts(50)
    alone = [per_document(hashes_of([text]))[0] for text in texts]
    with_nulls = hashes_of([None, *texts, None])
    assert per_document(with_nulls) == [[], *alone, []]
    sliced = pa.array(["Not this", *texts], pa.string()).slice(1)
    assert per_document(word_hashes.word_hashes(sliced)) == alone


def test_batches_of_many_blocks_and_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = mixed_texts(300)
    expected = per_document(hashes_of(list(texts)))
    monkeypatch.setattr(word_hashes, "BLOCK_BYTES", 1000)
    assert per_document(hashes_of(list(texts))) == expected
    assert len(hashes_of([]).counts) == 0
    assert hashes_of([None, ""]).counts.tolist() == [0, 0]


@pytest.mark.parametrize("unit", ["word and Other; ", "据中国科学院", "no_space-but.dots.", "ж, "])
def test_a_document_of_megabytes_is_cut_between_its_words(unit: str) -> None:
    text = unit * (3_000_000 // len(unit.encode()))
    found = hashes_of([text, "last one"])
    short = per_document(hashes_of([unit]))[0]
    assert found.counts.tolist() == [len(words_of(unit)) * (len(text) // len(unit)), 2]
    assert found.hashes[:-2].tolist() == short * (len(text) // len(unit))


def test_one_word_of_megabytes_and_a_million_tiny_words_take_no_time() -> None:
    found = hashes_of(["z" * 5_000_000, "a " * 1_000_000, "é" * 500_000])
    assert 1 <= found.counts[0] <= 10 and found.counts[1] == 1_000_000 and found.counts[2] >= 1


def test_hashes_are_the_same_on_every_machine() -> None:
    """A change of these makes all caches void: raise the version of the stage then."""
    assert hashes_of(["Hello, wörld of internationalisation"]).hashes.tolist() == [
        13627897860194927673,
        15213339922908137979,
        8418283781161055862,
        1650549029358453471,
    ]


def test_grams_are_each_n_words_in_a_row_inside_of_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_hashes, "_BLOCK_WORDS", 7)
    texts = mixed_texts(40)
    words = hashes_of(list(texts))
    for length in (1, 2, 5, 13):
        expected = [
            (document, tuple(found[place : place + length]))
            for document, found in enumerate(words_of(text) for text in texts)
            for place in range(len(found) - length + 1)
        ]
        blocks = list(grams(words, length))
        hashes, documents, starts = (np.concatenate(column).tolist() for column in zip(*blocks, strict=True))
        assert documents == [document for document, _ in expected]
        assert sorted(starts) == starts
        pairs = set(zip(hashes, (gram for _, gram in expected), strict=True))
        assert len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs})


def test_a_whole_short_text_hashes_as_the_gram_of_its_length() -> None:
    words = hashes_of(["One two three", "before one two three after", "", "four"])
    hashes, documents = whole_texts(words, 4)
    assert documents.tolist() == [0, 3]
    inside = np.concatenate([some for some, _, _ in grams(words, 3)])
    assert (inside == hashes[0]).sum() == 2
