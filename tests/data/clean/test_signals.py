"""Signals are the published formulas: each is compared with a slow reference that is given the same words."""

import inspect
import random
import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from reference_signals import reference, reference_c4

from bessemer.data.clean import characters, ngrams, signals, words
from bessemer.data.clean.c4 import CITATION, c4_text

ODD_TEXTS = [
    "", " ", "\n", "\n\n\n", "word", ".", "...", "…", "- \n• x\n", "\na\n", "\n\na\n\n",
    "a\n \nb\n\n  \n\nb\n\n  ",
    "\x00", "a\x00b \x00\x00 c", "one\r\ntwo\r\nthree...\r\n", "one\rtwo\r",
    "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029",
    "\u3000\u00a0", "世界和平。你好，世界！世界和平。", "これはペンです。これはペンです。",
    "สวัสดีชาวโลก ภาษาไทย",
    "👍👍 👨‍👩‍👧 🎉!!", "e\u0301te\u0301 n\u0303 \u200b\u200b x",
    "İstanbul İİİ javascript lorem ipsum is here.", "مرحبا بالعالم؟ نعم۔",
    "#" * 5000, "x" * 20_000, "ab " * 7000, "a b " * 5000 + "c",
    ("y" * 1001 + " is a word. ") * 3, "....." * 30, "'" * 40,
    "See it [1] now.[2]\nAnd [edit] that [citation needed] one.\nx[0] = 1; done.\n[3]\nwas it \"so\"?[12]",
    "Lorem Ipsum dolor sit.\nWe use JavaScript { here }.\nRead { it }.\nOur Privacy Policy is.\nOne. Two! A?",
]  # fmt: skip


def random_texts(number: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    pieces = [
        "the",
        "be",
        "and",
        "a",
        "b.",
        "c,",
        "--",
        "x-y",
        "...",
        "…",
        "#",
        "-",
        "•",
        "don't",
        "{",
        "[1]",
        "世界",
        "é",
    ]
    spaces = [" "] * 12 + ["\n", "\n", "\n\n", ".\n", "  ", "\t", "\r\n", "\u2028", "\n \n"]
    texts = []
    for _ in range(number):
        vocabulary = random_.sample(pieces, random_.randint(1, len(pieces)))
        phrase = "".join(
            random_.choice(vocabulary) + random_.choice(spaces) for _ in range(random_.randint(1, 12))
        )
        parts = []
        for _ in range(random_.randint(0, 40)):
            parts.append(
                phrase if random_.random() < 0.4 else random_.choice(vocabulary) + random_.choice(spaces)
            )
        texts.append("".join(parts))
    alphabet = string.printable + "‘’“”…—–•»é世アกñ\u0301\u200b\x00👍₂½İ"
    texts += ["".join(random_.choices(alphabet, k=random_.randint(0, 300))) for _ in range(number)]
    return texts


def real_texts() -> list[str]:
    """Sources of this Python, and the text of this project's documents."""
    modules = [random, string, inspect, pytest, np.polynomial]
    root = Path(__file__).parents[3]
    return [inspect.getsource(module) for module in modules] + [
        path.read_text() for path in [*root.glob("*.md"), *root.glob("docs/*.md")]
    ]


def words_of(texts: list[str]) -> list[list[str]]:
    found = []
    for block in characters.blocks(pa.array(texts, pa.large_string())):
        of_block = words.words(block)
        spans = [
            block.text[a:b] for a, b in zip(of_block.starts.tolist(), of_block.ends.tolist(), strict=True)
        ]
        found += [
            spans[a:b] for a, b in zip(of_block.bounds.tolist(), of_block.bounds[1:].tolist(), strict=False)
        ]
    return found


def marks(kind: int) -> tuple[str, ...]:
    return tuple(chr(code) for code, kinds in enumerate(characters.kinds_table().tolist()) if kinds & kind)


def assert_equal_to_reference(texts: list[str]) -> None:
    columns = signals.signals(pa.array(texts, pa.large_string())).to_pydict()
    terminal = marks(characters.TERMINAL)
    ends = "".join(marks(characters.ENDS_SENTENCE))
    for row, (text, found) in enumerate(zip(texts, words_of(texts), strict=True)):
        expected = reference(text, found, terminal) | reference_c4(text, words_of, ends)
        assert expected.keys() == signals.COLUMNS.keys()
        for name, value in expected.items():
            assert columns[name][row] == float(np.float32(value)), (name, text[:300])


@pytest.mark.parametrize(
    "texts", [ODD_TEXTS, random_texts(400, seed=1), real_texts()], ids=["odd", "random", "real"]
)
def test_signals_are_the_published_formulas(texts: list[str]) -> None:
    assert_equal_to_reference(texts)


def test_signals_do_not_depend_on_what_a_document_stands_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*ODD_TEXTS, *random_texts(60, seed=2)]
    together = signals.signals(pa.array(texts))
    monkeypatch.setattr(characters, "BLOCK_CHARACTERS", 1)  # each document in a block of its own
    assert signals.signals(pa.array(texts)).equals(together)


def test_every_column_is_described_and_filled_and_a_null_is_an_empty_document() -> None:
    columns = signals.signals(pa.array(["", None, "Some text."], pa.string()))
    assert columns.schema == signals.SCHEMA
    assert columns.num_rows == 3
    assert columns.slice(0, 1).equals(columns.slice(1, 1))
    assert all(array.null_count == 0 for array in columns.columns)
    assert signals.signals(pa.array([], pa.string())).num_rows == 0
    assert all(np.isfinite(array.to_numpy()).all() for array in columns.columns)


def test_a_slice_of_an_array_is_read_as_that_slice() -> None:
    texts = pa.array(random_texts(30, seed=3))
    assert signals.signals(texts.slice(11, 20)).equals(signals.signals(texts).slice(11, 20))


def test_repeated_ngrams_equal_the_walk_from_left_to_right_on_periodic_words() -> None:
    random_ = random.Random(4)
    texts = []
    for _ in range(300):
        period = random_.randint(1, 14)
        once = [random_.choice("abcd") for _ in range(period)]
        many = [random_.choice("abcd") if random_.random() < 0.04 else word for word in once * 12]
        texts.append(" ".join(many))
    assert_equal_to_reference(texts)


def test_an_ngram_never_reaches_into_the_next_document() -> None:
    half = "one two three four five six seven eight nine ten"
    columns = signals.signals(pa.array([half, half, half])).to_pydict()
    assert all(columns[f"duplicate_{length}_grams"] == [0, 0, 0] for length in ngrams.REPEATED_LENGTHS)
    assert columns["top_2_gram"] == [pytest.approx(len("one two") / len(half))] * 3


def test_only_one_character_becomes_two_when_it_is_lowered() -> None:
    assert [chr(code) for code in range(0x110000) if len(chr(code).lower()) != 1] == ["İ"]


def test_c4_measures_the_same_in_the_text_that_its_rules_for_lines_leave() -> None:
    # But for lines that are hardly more than citations: their words are counted before these are taken out.
    texts = [_without_bare_citations(text) for text in [*ODD_TEXTS, *real_texts()]]
    names = ["c4_sentences", "c4_lorem_ipsum", "c4_curly_bracket"]
    before = signals.signals(pa.array(texts)).select(names)
    after = signals.signals(pa.array([c4_text(text) for text in texts])).select(names)
    assert after.to_pydict() == before.to_pydict()


def test_a_document_of_a_million_symbols_is_measured_like_any_other() -> None:
    columns = signals.signals(pa.array(["#" * 1_000_000 + " end", "- " * 500_000])).to_pydict()
    assert columns["hashes_per_word"][0] == pytest.approx(1_000_000 / 1_000_001)
    assert columns["duplicate_10_grams"][1] > 0.4


def test_of_a_document_beyond_the_limit_the_beginning_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characters, "LONGEST_DOCUMENT", 8)
    assert signals.signals(pa.array(["one two three"])).equals(signals.signals(pa.array(["one two "])))


def _without_bare_citations(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if "[" not in line or len(CITATION.sub("", line).split()) > 2)
