"""What is held out stays out of training, whatever form it comes in."""

import json
from pathlib import Path

import numpy as np
import pytest
from making import TEXTS, build, make, text_source

from bessemer.data import holdout
from bessemer.data.labels import labels
from bessemer.data.ledger import nothing_held_out
from bessemer.data.prepared import Prepared
from bessemer.data.store import prepare
from bessemer.errors import DataError
from bessemer.log import Console

LINES = [f"Line {n} of a long passage that says something about steel and iron." for n in range(60)]
NAMES = [f"group {n}" for n in range(200)]


def sides(groups: list[str], share: float = 0.2) -> dict[str, bool]:
    """Whether each group is held out."""
    hashes = np.array([holdout.holdout_hash(group, None, b"") for group in groups], dtype=np.uint64)
    parts = holdout.split(hashes, share)
    return {group: bool(part == holdout.VALIDATION) for group, part in zip(groups, parts, strict=True)}


OUT = [group for group, is_out in sides(NAMES).items() if is_out]  # held out at validation = 0.2
IN = [group for group, is_out in sides(NAMES).items() if not is_out]


def prepared_from(base: Path, documents: list[tuple[str, str]], *, more: str = "") -> Prepared:
    """Documents of (group, text); the id of each is its number."""
    rows = [{"id": n, "group": group, "text": text} for n, (group, text) in enumerate(documents)]
    (base / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = 'name = "a"\nkind = "jsonl"\npath = "a.jsonl"\nid = "id"\ngroup = "group"'
    return build(make(source, more=more), base)


def ids(prepared: Prepared, split: str) -> list[int]:
    return sorted(int(row["id"]) for row in labels(prepared, split))  # type: ignore[arg-type]


def test_share_is_held_out_and_more_data_moves_no_group() -> None:
    groups = [f"group {n}" for n in range(4000)]
    few, many = sides(groups[:1000]), sides(groups)
    assert all(many[group] == few[group] for group in few)
    assert 0.18 < sum(many.values()) / len(many) < 0.22
    larger = sides(groups, 0.4)
    assert all(larger[group] for group, is_out in many.items() if is_out)


def test_neither_split_stays_empty_while_there_are_two_groups() -> None:
    for pair in zip(NAMES[::2], NAMES[1::2], strict=True):
        for share in (1e-9, 0.5, 0.999):
            assert sorted(sides(list(pair), share).values()) == [False, True]
    assert not any(sides(NAMES, 0).values()) and not sides(["alone"], 0.99)["alone"]


def test_group_falls_on_one_side_in_all_sources(texts: Path) -> None:
    rows = [{"group": f"{n:02d}", "text": f"Another text about number {n}."} for n in range(15)]
    (texts / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sources = (
        text_source(more='group = "stem"'),
        'name = "a"\nkind = "jsonl"\npath = "a.jsonl"\ngroup = "group"',
    )
    prepared = build(make(*sources, validation=0.4), texts)
    groups = {split: {row["group"] for row in labels(prepared, split)} for split in ("train", "validation")}
    assert groups["train"] and groups["validation"] and not groups["train"] & groups["validation"]
    assert {row["source"] for row in labels(prepared, "validation")} == {"texts", "a"}


def test_documents_without_group_are_held_out_by_content_wherever_they_lie(texts: Path) -> None:
    held_out = labels(build(make(text_source()), texts), "validation")
    (texts / "texts").rename(texts / "moved")
    for path in (texts / "moved").iterdir():
        path.rename(path.with_name(f"renamed-{path.name}"))
    moved = labels(build(make(text_source("moved")), texts), "validation")
    assert held_out and {row["id"][-6:] for row in held_out} == {row["id"][-6:] for row in moved}


@pytest.mark.parametrize("form", ["{}", "  {}\r\n\r\n", "\n\n{}\t"])
def test_of_duplicates_the_first_stays_but_a_held_out_one_wins(tmp_path: Path, form: str) -> None:
    again = form.format(TEXTS[0])
    documents = [(IN[0], TEXTS[0]), (IN[1], again), (IN[2], TEXTS[1]), (OUT[0], TEXTS[2])]
    prepared = prepared_from(tmp_path, documents)
    assert ids(prepared, "train") == [0, 2] and ids(prepared, "validation") == [3]
    prepared = prepared_from(tmp_path, [*documents, (OUT[1], again)])
    assert ids(prepared, "train") == [2] and ids(prepared, "validation") == [3, 4]
    assert prepared.manifest["sources"][0]["refused"] == {"dedup.exact": 2}


def test_unicode_forms_of_one_text_are_duplicates(tmp_path: Path) -> None:
    prepared = prepared_from(
        tmp_path, [(IN[0], "caf\u00e9 noir"), (IN[1], "cafe\u0301 noir"), (IN[2], "cafe noir")]
    )
    assert prepared.manifest["sources"][0]["refused"] == {"dedup.exact": 1}


def test_without_deduplication_copies_stay_but_never_one_of_held_out_text(tmp_path: Path) -> None:
    documents = [(IN[0], TEXTS[0]), (IN[1], TEXTS[0]), (IN[2], TEXTS[1]), (OUT[0], TEXTS[1])]
    prepared = prepared_from(tmp_path, documents, more='[data.clean]\ndedup = "off"\n')
    assert ids(prepared, "train") == [0, 1] and ids(prepared, "validation") == [3]
    assert prepared.manifest["sources"][0]["refused"] == {"leak": 1}


@pytest.mark.parametrize(
    "passage",
    [
        "\n".join(LINES[10:13]),
        "\n\n".join(f"    |  {line}" for line in LINES[10:13]),
        "\nshort\n".join(line.replace(" ", "  ") for line in LINES[10:13]),
    ],
)
def test_document_with_a_held_out_passage_is_refused(tmp_path: Path, passage: str) -> None:
    held_out, own = "\n".join(LINES[:20]), "\n".join(LINES[30:50])
    documents = [
        (OUT[0], held_out),
        (IN[0], f"{own}\n{passage}\n{own}"),
        (IN[1], own),
        (IN[2], "\n".join(LINES[19:21])),
    ]
    prepared = prepared_from(tmp_path, documents)
    assert ids(prepared, "train") == [2, 3]  # sharing one or two lines is no leak
    assert prepared.manifest["sources"][0]["refused"] == {"leak": 1}


def test_long_paragraph_is_a_passage_by_itself(tmp_path: Path) -> None:
    paragraph = " ".join(LINES[:5])
    documents = [
        (OUT[0], f"Held out.\n{paragraph}"),
        (IN[0], f"Read.\n{paragraph}\nMore."),
        (IN[1], TEXTS[0]),
    ]
    assert ids(prepared_from(tmp_path, documents), "train") == [2]


def test_licence_header_of_many_files_is_no_leak(tmp_path: Path) -> None:
    header = "\n".join(LINES[:4])
    documents = [(group, f"{header}\nThis is file {group}.") for group in [OUT[0], *IN[:11]]]
    assert len(ids(prepared_from(tmp_path, documents), "train")) == 11
    assert len(ids(prepared_from(tmp_path, [*documents[:11], (IN[11], TEXTS[0])]), "train")) == 1


def test_weight_repeats_training_rows_and_never_held_out_ones(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"group": f"{name} {n}", "text": f"Text {n} of {name} is like no other."} for n in range(400)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = 'name = "{0}"\nkind = "jsonl"\npath = "{0}.jsonl"\ngroup = "group"\nweight = {1}'
    even, uneven = (make(source.format("a", 1.0), source.format("b", weight)) for weight in (1.0, 2.5))
    prepared = build(even, tmp_path)
    assert build(uneven, tmp_path).hash == prepared.hash  # rows are mixed when they are read
    rows_of_a = len(prepared.streams("train")[0].tokens) // 16
    for recipe, weight in ((even, 1.0), (uneven, 2.5)):
        a, b = prepared.mixture(recipe.data, 16).counts(1000)
        assert abs(b / a - weight) < 0.1 * weight and rows_of_a > 100
    validation = prepared.rows("validation", 16)
    held_out = sum(len(stream.tokens) for stream in prepared.streams("validation"))
    assert (
        sum(end - begin for k in range(len(validation)) for _, begin, end in validation.documents(k))
        == held_out
    )


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path) -> None:
    documents = [(OUT[0], "\n".join(LINES[:20])), (IN[0], "\n".join(LINES[5:15]))]
    with pytest.raises(DataError, match="no document is left to train on"):
        prepared_from(tmp_path, documents)


def test_build_says_once_that_of_a_single_document_nothing_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    for _ in range(2):
        prepare(make(text_source("one.txt")), tmp_path, tmp_path / "store", Console())
    told = capsys.readouterr().err
    assert told.count("nothing is held out") == 1 and "A text file is one: cut it into several" in told


@pytest.mark.parametrize(
    ("share", "train", "held", "words"),
    [(0.2, 1, 0, "one document"), (0.2, 30, 0, "finer `group`"), (0.2, 29, 1, None), (0.0, 30, 0, None)],
)
def test_nothing_is_said_where_some_is_held_out_or_none_is_wanted(
    share: float, train: int, held: int, words: str | None
) -> None:
    told = nothing_held_out(share, {"train": {"documents": train}, "validation": {"documents": held}})
    assert told is None if words is None else told is not None and words in told
