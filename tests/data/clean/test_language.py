"""Language of documents."""

import gzip
import random
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from bessemer.data.clean.language import FIRST_BYTES, UNKNOWN, languages

_SAYINGS = {
    "en": "Steel is made in a converter, through which air is blown until the carbon is burnt.",
    "de": "Stahl entsteht in einem Konverter, durch den Luft geblasen wird, bis der Kohlenstoff verbrennt.",
    "fr": "L'acier se fait dans un convertisseur, où l'on souffle de l'air pour que le carbone soit brûlé.",
    "ru": "Сталь получают в конвертере, через который продувают воздух, пока не выгорит углерод.",
    "zh": "钢是在转炉中炼成的，向炉内吹入空气，直到碳被烧尽为止。",
    "ja": "鋼は転炉で作られ、炭素が燃え尽きるまで空気が吹き込まれます。",
    "ar": "يصنع الفولاذ في محول ينفخ فيه الهواء حتى يحترق الكربون كله ثم يصب الفولاذ المنصهر.",
}
_MANUALS = Path("/usr/share/man")


@pytest.fixture(scope="module")
def peer() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _beginning(text: str) -> str:
    return text.encode()[:FIRST_BYTES].decode(errors="ignore")


def _fuzz(number: int) -> list[str]:
    draw = random.Random(0)
    words = " ".join(_SAYINGS.values()).split()
    letters = [chr(code) for code in range(0x61, 0x3000) if chr(code).isalpha()]
    texts = []
    for _ in range(number):
        mixed = draw.choices(words, k=draw.randint(10, 200)) + draw.choices(letters, k=draw.randint(20, 60))
        texts.append(" ".join(mixed))
    return [text.upper() if draw.random() < 0.2 else text for text in texts]


def test_languages_are_told_apart():
    found = languages(pa.array(list(_SAYINGS.values()), pa.large_string()))
    assert found["language"].to_pylist() == list(_SAYINGS)
    assert min(found["score"].to_pylist()) > 0.75


def test_answers_are_py3langids_own(peer):
    """Alone, in batches wider than a walk, upper case, composed and not, and where no feature is found."""
    texts = [*_fuzz(1200), "E\u0301TE\u0301 " * 50, "\U00010900\U00010901" * 30, "क\u093c" * 400]
    expected = [peer.classify(_beginning(text)) for text in texts]
    found = languages(pa.array(texts))
    assert found["language"].to_pylist() == [language for language, _ in expected]
    np.testing.assert_allclose(found["score"].to_numpy(), [score for _, score in expected], rtol=1e-5)
    alone = [languages(pa.array([text])) for text in texts[:20]]
    assert [one["score"][0] for one in alone] == list(found["score"][:20])


def test_too_few_letters_are_undetermined():
    texts = [
        "",
        "12 34 – 56 % [1] {2} " * 40,
        "only nineteen lettr",
        "just twenty letters her",
        "э" * 19,
        None,
    ]
    found = languages(pa.array(texts))
    assert found["language"].to_pylist()[:3] == [UNKNOWN] * 3 and found["score"].to_pylist()[:3] == [0, 0, 0]
    assert found["language"].to_pylist()[3] != UNKNOWN
    assert (found["language"].to_pylist()[4:], found["score"].to_pylist()[4:]) == ([UNKNOWN, None], [0, None])


def test_only_the_beginning_counts_and_no_character_is_cut():
    english = "a " + _SAYINGS["en"] * 20
    for shift in range(4):
        start = english[: FIRST_BYTES - shift]
        found = languages(pa.array([start + _SAYINGS["zh"] * 100, start])).to_pydict()
        assert found["language"] == ["en", "en"]
        # One character more or less at the cut may be seen, no more.
        assert found["score"][0] == pytest.approx(found["score"][1], abs=0.01)


def test_every_batch_has_the_same_dictionary():
    first, second = (languages(pa.array(texts)) for texts in (["x"], [*_SAYINGS.values(), None]))
    assert first["language"].dictionary.equals(second["language"].dictionary)
    assert first.schema == second.schema == languages(pa.array([], pa.string())).schema
    assert first.schema.field("score").type == pa.float32()


def test_a_batch_is_at_least_twice_as_fast_as_one_by_one(peer):
    texts = [_beginning(text) for text in _fuzz(600)]
    column = pa.array(texts)
    languages(column)
    own, theirs = [], []
    for _ in range(3):
        began = time.process_time()
        languages(column)
        own.append(time.process_time() - began)
        began = time.process_time()
        for text in texts:
            peer.classify(text)
        theirs.append(time.process_time() - began)
    assert min(theirs) > 2 * min(own)  # 4 where it is quiet


def _is_untranslated(text: str) -> bool:
    """Some pages have only their headings in the language of their folder."""
    words = text[:FIRST_BYTES].split()
    return sum(word in ("the", "of", "is", "to", "and", "command") for word in words) > 0.05 * len(words)


@pytest.mark.skipif(not (_MANUALS / "de").is_dir(), reason="no localised manuals on this machine")
def test_localised_manuals_are_found_in_their_language():
    texts, labels = [], []
    for folder in ("de", "fr", "it", "nl", "pl", "ja", "ru", "sv", "zh_CN", "uk"):
        for page in sorted((_MANUALS / folder).glob("man*/*.gz"))[:20]:
            source = gzip.decompress(page.read_bytes()).decode(errors="replace")
            lines = [line for line in source.split("\n") if not line.startswith((".", "'"))]
            text = re.sub(r"\\f\[?[A-Z]*\]?|\\\(..|\\.", "", "\n".join(lines))
            if len(text) > 300 and not _is_untranslated(text):
                texts.append(text)
                labels.append(folder[:2])
    found = languages(pa.array(texts))["language"].to_pylist()
    assert np.mean([language == label for language, label in zip(found, labels, strict=True)]) > 0.95
