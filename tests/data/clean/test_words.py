"""Words are those of spaCy's English tokenizer: the splits below are what spaCy 3.8 makes of the texts."""

import pyarrow as pa
import pytest

from bessemer.data.clean import characters
from bessemer.data.clean.words import words


def split(text: str) -> list[str]:
    (block,) = characters.blocks(pa.array([text]))
    found = words(block)
    return [block.text[start:end] for start, end in zip(found.starts, found.ends, strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('He said, "Go (now)!"', 'He said , " Go ( now ) ! "'),
        (
            "well-known and/or either/or x--y a---b end.Next",
            "well - known and/or either / or x -- y a --- b end . Next",
        ),
        (
            "foo_bar foo.bar f(x) f(x): a=b 3*4 2-1 a,b",
            "foo_bar foo.bar f(x ) f(x ): a = b 3 * 4 2 - 1 a , b",
        ),
        ("don't can't he's we're I'll cannot", "do n't ca n't he 's we 're I 'll can not"),
        ("e.g. i.e. a. end. U.S. USA. wait... no.. …", "e.g. i.e. a. end . U.S. USA . wait ... no .. …"),
        ("10km 5GB 3m 50% 1.5 $5 5$", "10 km 5 GB 3 m 50 % 1.5 $ 5 5 $"),
        (
            "see https://a-b.org/c-d/e?f=g, or a-b@c-d.org.",
            "see https://a-b.org/c-d/e?f=g , or a-b@c-d.org .",
        ),
        ("--- #1 -x +5 +a :) =)", "--- # 1 -x +5 + a :) =)"),
        ("“quoted” it’s ‘so’ — yes–no", "“ quoted ” it ’s ‘ so ’ — yes – no"),
        ("👍👍 1👍", "👍 👍 1 👍"),
        ("a\x00b \x00", "a\x00b \x00"),
        ("Привет, мир.", "Привет , мир ."),
    ],
)
def test_words_are_those_of_spacy(text: str, expected: str) -> None:
    assert split(text) == expected.split(" ")


def test_scripts_without_spaces_are_split_by_the_character_and_others_are_not() -> None:
    assert split("世界和平。") == ["世", "界", "和", "平", "。"]
    assert split("ひらカタカナhanguk 한국어") == ["ひ", "ら", "カタカナhanguk", "한국어"]
    assert len(split("ภาษาไทย")) > 1


@pytest.mark.parametrize("text", ["", " ", "\n\r\n\t\u3000\u2028"])
def test_white_space_has_no_words(text: str) -> None:
    assert split(text) == []


def test_words_cover_everything_but_white_space_once() -> None:
    text = "A (b)... 世界 x--y\u00a0'tis e\u0301 👨‍👩‍👧 it's:) \x00 …… 10km! http://a.bc/d-e"
    assert "".join(split(text)) == "".join(text.split())


def test_a_document_ends_its_words() -> None:
    (block,) = characters.blocks(pa.array(["one two", "", None, "three"]))
    assert words(block).counts.tolist() == [2, 0, 0, 1]


def test_rules_may_look_over_the_edges_of_a_block() -> None:
    for text in (
        "'",
        "n't",
        "-",
        "--",
        "a--",
        "--a",
        ".",
        "a.",
        "e.g.",
        "'s",
        "5m",
        "/",
        "cannot",
        "@a.bc/d",
        "\x00",
    ):
        assert "".join(split(text)) == text
