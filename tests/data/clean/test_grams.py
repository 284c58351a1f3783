"""Hits are those that a set of tuples of words finds."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from bessemer.data.clean.grams import EvalGrams, contamination
from bessemer.errors import DataError

PASSAGE = "what is the capital of the country that borders both of the other two mentioned above"


def write_rows(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(path.name)


def checked(texts: list[str | None], evaluations: EvalGrams) -> list[tuple[float, int, int | None]]:
    batch = contamination(pa.array(texts, pa.large_string()), evaluations)
    return [(row["fraction"], row["hits"], row["eval"]) for row in batch.to_pylist()]


def reference(text: str, evaluations: list[list[str]]) -> tuple[float, int, int | None]:
    words = text.split()
    places: dict[tuple[str, ...], int] = {}
    for file, eval_texts in enumerate(evaluations):
        for eval_words in (eval_text.split() for eval_text in eval_texts):
            length = min(13, len(eval_words))
            if length >= 8:
                for start in range(len(eval_words) - length + 1):
                    places.setdefault(tuple(eval_words[start : start + length]), file)
    hits = sorted(
        (start, len(gram), file)
        for gram, file in places.items()
        for start in range(len(words))
        if tuple(words[start : start + len(gram)]) == gram
    )
    covered = {start + more for start, length, _ in hits for more in range(length)}
    return len(covered) / max(1, len(words)), len(hits), hits[0][2] if hits else None


def test_hits_fraction_and_file_equal_a_search_in_sets_of_tuples(tmp_path: Path) -> None:
    rng = random.Random(0)

    def text(longest: int) -> str:
        return " ".join(rng.choice("ab") for _ in range(rng.randrange(longest)))

    evaluations = [[text(22) for _ in range(12)] for _ in range(3)]
    for number, texts in enumerate(evaluations):
        texts.append("long enough to have something that we can search for")
        write_rows(tmp_path / f"{number}.jsonl", [{"text": one} for one in texts])
    grams = EvalGrams.load([Path(f"{number}.jsonl") for number in range(3)], tmp_path)
    texts = [text(200) for _ in range(60)] + [""]
    for found, one in zip(checked([*texts, None], grams), [*texts, ""], strict=True):
        fraction, hits, file = reference(one, evaluations)
        assert found == (pytest.approx(fraction), hits, file)
    assert sum(hits for _, hits, _ in checked(list(texts), grams)) > 20


def test_case_and_punctuation_do_not_hide_a_passage(tmp_path: Path) -> None:
    write_rows(tmp_path / "eval.jsonl", [{"question": PASSAGE, "id": "q-1"}])
    grams = EvalGrams.load([Path("eval.jsonl")], tmp_path)
    hidden = PASSAGE.upper().replace(" ", ",\n ")
    found = checked([f"Before. {hidden}! After", " ".join(PASSAGE.split()[:12]), "Nothing here"], grams)
    assert found[0] == (pytest.approx(16 / 18), 4, 0)
    assert found[1:] == [(0.0, 0, None), (0.0, 0, None)]


def test_short_texts_are_searched_whole_and_very_short_ones_are_counted(tmp_path: Path) -> None:
    rows = [
        {"question": "How many legs has a spider or crab?", "choices": ["six", {"text": "eight"}], "n": 8}
    ]
    write_rows(tmp_path / "eval.jsonl", rows)
    grams = EvalGrams.load([Path("eval.jsonl")], tmp_path)
    assert (grams.num_texts, grams.num_ignored, grams.lengths) == (3, 2, (8,))
    assert grams.summary() == (
        "1 evaluation files: 3 texts, 1 passages; 2 texts of fewer than 8 words are not searched for"
    )
    asked = "I asked: how many legs has a spider, or crab? Six or eight"
    assert checked([asked, "how many legs has a spider", "six"], grams)[0][1:] == (1, 0)
    assert [hits for _, hits, _ in checked([asked, "how many legs has a spider", "six"], grams)] == [1, 0, 0]


def test_text_files_bom_and_surrogates_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + PASSAGE.encode())
    (tmp_path / "b.jsonl").write_text('\n{"q": "\\ud800 ' + PASSAGE[::-1] + '"}\n')
    grams = EvalGrams.load([Path("a.txt"), tmp_path / "b.jsonl"], tmp_path)
    assert [file for _, _, file in checked([PASSAGE, PASSAGE[::-1]], grams)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("eval.jsonl", b'{"a": "b"}\n{"a": \n', "line 2"),
        ("eval.jsonl", b'["a list"]\n', 'line 1: ["a list"]'),
        ("eval.jsonl", b'{"a": ' + b"[" * 200_000, "line 1"),
        ("eval.jsonl", b'{"a": "\xff"}', "not UTF-8"),
        ("eval.jsonl", b'{"a": "too short"}', "1 texts, all of them of fewer than 8 words"),
        ("eval.jsonl", b"", "0 texts"),
        ("eval.csv", b"a,b", ".csv"),
        ("missing.jsonl", None, "No such file"),
    ],
)
def test_an_evaluation_that_cannot_be_used_is_an_error_that_says_why(
    tmp_path: Path, name: str, content: bytes | None, found: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="evaluation file") as caught:
        EvalGrams.load([Path(name)], tmp_path)
    assert found in caught.value.found and "decontaminate" in caught.value.fix


def test_no_evaluations_find_nothing(tmp_path: Path) -> None:
    assert checked([PASSAGE, None], EvalGrams.load([], tmp_path)) == [(0.0, 0, None), (0.0, 0, None)]
