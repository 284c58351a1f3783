"""Unicode and white space."""

import random
import time
import unicodedata

import pyarrow as pa
import pytest

from bessemer.data.clean.text import normal_text, plain_text

# What the rules speak of, and what stands near it: drawn often, so that any two meet.
_SPECIALS = (
    "\r\n\t\f\v\b\x1b[0m \xa0\xad\x00\x7f\x85\u200b\u200c\u200d\u200e\u202f\u2060\u2028\ufeff\ufe0f"
    "ab\u0301\u0308eé\u0323ệ\u1100\u1161\u11a8가かが\u3099กข\u0e33\u1780مه\u212b\u2126\u0958\U0001f468\U0001d15e\U0002f800"
)


def _fuzz(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    planes = [(0x20, 0x7E), (0x80, 0x24F), (0x250, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]

    def character() -> str:
        return draw.choice(_SPECIALS) if draw.random() < 0.7 else chr(draw.randint(*draw.choice(planes)))

    return ["".join(character() for _ in range(draw.randint(0, 40))) for _ in range(number)]


def _visible(text: str) -> str:
    """What can be seen of a text without overstriking and colours; an oracle by character categories."""
    hidden = ("Cc", "Cf", "Zs", "Zl", "Zp")
    seen = "".join(c for c in text if unicodedata.category(c) not in hidden)
    return unicodedata.normalize("NFC", seen)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        ("page one\fpage two", "page one\npage two"),
        ("cafe\u0301, Å and A\u030a", "café, Å and Å"),
        ("10\xa0km", "10 km"),
        ("\ufeffzero\u200bwidth and a word\u2060joiner", "zerowidth and a wordjoiner"),
        ("Daten\xadbank, Daten\xad\nbank", "Datenbank, Daten\xad\nbank"),
        ("bell\x07, delete\x7f, C1\x9b", "bell, delete, C1"),
        ("\x1b[1;31mred\x1b[0m N\bNA\bAM\bME\bE _\bx", "red NAME x"),
        ("ab\b\bxy \n\bz" + "c" * 9 + "\b" * 9, "xy\nz"),
        ("end  \t\nof line \n  kept", "end\nof line\n  kept"),
        ("a\n\n\nb\n\n\n\n\n\nc", "a\n\n\nb\n\n\nc"),
        ("x² ½ ﬁ Ⅳ", "x² ½ ﬁ Ⅳ"),  # canonical, not compatible
        (
            "می\u200cخواهم क्\u200dष 👨\u200d👩\u200d👧 ❤\ufe0f \u202bשלום\u202c",
            None,
        ),  # joiners and directions
        ("ภาษา\u200bไทย, ត្រូវ\u200bបាន", None),  # parts words where nothing else does
        ("  indented\n\ttab\n    return 1\n", None),
    ],
)
def test_text_becomes_what_the_rules_say(before: str, after: str | None):
    assert normal_text(pa.array([before])).to_pylist() == [before if after is None else after]


def test_code_changes_in_its_line_ends_only():
    code = "def f():\r\n\tx = 'a\xa0b\u200b'  \r\f\n\n\n\n\n\x1b"
    assert normal_text(pa.array([code]), "code").to_pylist() == [
        code.replace("\r\n", "\n").replace("\r", "\n")
    ]


@pytest.mark.parametrize("kind", ["text", "code"])
def test_a_second_time_changes_nothing(kind):
    once = normal_text(pa.array(_fuzz(4000, seed=1)), kind)
    assert normal_text(once, kind) is once


def test_the_look_at_the_bytes_misses_no_text_that_changes():
    texts = [
        *_fuzz(4000, seed=2),
        *map(chr, range(0xD800)),
        *(f"e{chr(code)}" for code in range(0xE000, 0x20000)),
    ]
    expected = [plain_text(text) for text in texts]
    assert normal_text(pa.array(texts, pa.large_string())).to_pylist() == expected
    blocks = "".join(texts[:4000]) * 3  # changes lie across the borders of blocks of one long document
    shifted = [("x" * number) + blocks for number in range(3)]
    assert normal_text(pa.array(shifted)).to_pylist() == [plain_text(text) for text in shifted]


def test_every_pair_of_characters_is_judged_as_normalization_judges_it():
    """Whether a text is composed is found by a table of ours: Unicode's own function is the oracle."""
    draw = random.Random(3)
    letters = [chr(code) for code in range(0xC0, 0x3200) if unicodedata.category(chr(code))[0] in "LM"]
    texts = ["a" + "".join(draw.choices(letters, k=3)) for _ in range(30_000)]
    assert normal_text(pa.array(texts)).to_pylist() == [unicodedata.normalize("NFC", text) for text in texts]


def test_nothing_that_can_be_seen_is_lost():
    texts = [text.replace("\b", "").replace("\x1b", "") for text in _fuzz(4000, seed=4)]
    for before, after in zip(texts, normal_text(pa.array(texts)).to_pylist(), strict=True):
        assert _visible(after) == _visible(before)


def test_unchanged_texts_are_the_same_array_and_cost_a_look():
    text = "The furnace – “blast” – was naïve, and so was its owner.\n\tIndented. Ещё строка.\n" * 50
    texts = pa.array([text] * 500, pa.large_string())
    normal_text(texts[:1])  # the table of characters
    began = time.process_time()
    assert normal_text(texts) is texts
    assert 500 * len(text.encode()) / (time.process_time() - began) > 50e6  # bytes/s; 350e6 where it is quiet


def test_texts_made_to_be_slow_are_not():
    for text in (
        "a" * 100_000 + "\b" * 100_000,
        "\x1b[" * 100_000,
        " \n" * 100_000,
        "e\u0301\xad\u200b" * 50_000,
    ):
        began = time.process_time()
        normal_text(pa.array([text]))
        assert time.process_time() - began < 2  # s; 0.1 where it is quiet


def test_nulls_slices_and_both_widths_of_strings_are_kept():
    for width in (pa.string(), pa.large_string()):
        texts = pa.array(["x \n", None, "", "a\r\nb ", "last\n\n\n", "\nnext"], width).slice(1)
        after = normal_text(texts)
        assert (after.type, after.to_pylist()) == (width, [None, "", "a\nb", "last\n\n\n", "\nnext"])
    assert len(normal_text(pa.array([], pa.string()))) == 0
    assert normal_text(pa.array([None, None], pa.string())).to_pylist() == [None, None]
