"""Cleaning from the command to the shards: each row, whose fate is known beforehand, meets it.

One build with everything on, over rows that are each made for one reason or for two; and what `--strict`,
`--timeout` and `--allow-code` do.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from making_archives import deflated, pdf, pdf_of_stream
from making_factory import build, build_apart, command
from making_processes import ran_here
from tokenizers import Tokenizer

from bessemer.data.factory.columns import read_columns
from bessemer.data.factory.driven import Driven
from bessemer.data.holdout import holdout_hash
from bessemer.data.prepared import Prepared
from bessemer.data.sources.cutting import cut
from bessemer.data.sources.documents import source_inputs
from bessemer.data.tokens.sidecar import read_sidecar
from bessemer.recipe.schema import Source

WORDS = """
the of and to in that it was for on with his at by from they not this but had which were their there been
more when who will what about into than them can only other new some could time these two may then first
any my now such like our over man even most made after also did many before must through back years where
much your way well down should because each just those people how too little state good very make world
still own see men work long get here between both life being under never day same another know while last
might us great old year off come since against go came right used take three the of and to that with the
of and to that with the of and to that with
"""
SPAM = """
cheap pills buy viagra casino bonus click free winner prize credit loan offer discount cash lottery
jackpot bet deal sale order cheapest viagra pills casino the of
"""
EVALUATION = (
    "Which of these ores did the old master of the upper furnace carry down to the river in the spring?"
)
GERMAN = (
    "Der alte Meister ging am Morgen durch den Wald und sah die Hütte, in der das Eisen gegossen wurde. "
    "Niemand wusste, warum das Feuer in dieser Nacht nicht gebrannt hatte, und keiner fragte danach. "
    "Die Arbeiter standen vor dem Tor und warteten, bis der Regen nachließ und die Glocke läutete."
)
RECIPE = """name = "cleaned"
[tokenizer]
vocab = 500
[data]
validation = 0.3
[[data.source]]
name = "first"
kind = "jsonl"
path = "first.jsonl"
id = "key"
[[data.source]]
name = "second"
kind = "jsonl"
path = "second.jsonl"
id = "key"
limit = 60
[[data.source]]
name = "programs"
kind = "code"
path = "programs"
[data.clean]
text = "normal"
language = ["en"]
rules = "gopher"
thresholds = { "gopher.min_words" = 40.0, "gopher.ellipses" = 0.5 }
pii = "redact"
dedup = "minhash"
decontaminate = ["evaluation.jsonl"]
quality = "labels.jsonl"
code = "steps:step"
"""
STEPS = """
import pyarrow as pa

def step(batch):
    texts = batch["text"].to_pylist()
    if any("breakage" in text for text in texts):
        raise ValueError("cannot do this one")
    texts = [None if "unwanted" in text else text.replace("colour", "color") for text in texts]
    return batch.set_column(1, "text", pa.array(texts, batch["text"].type))
"""
NUM_PAIRS = 16


def prose(seed: object, words: int = 90, vocabulary: str = WORDS) -> str:
    """Lines of about ten words. Another seed gives a text that shares nothing but words."""
    dice = random.Random(str(seed))
    known = vocabulary.split()
    chosen = [dice.choice(known) for _ in range(words)]
    lines = [" ".join(chosen[begin : begin + 10]) + "." for begin in range(0, words, 10)]
    return "\n".join(lines)


def with_word(text: str, place: int, word: str) -> str:
    words = text.split(" ")
    return " ".join([*words[:place], word, *words[place:]])


def key_like(name: str, *, held_out: bool) -> str:
    """A key that is certainly held out, or certainly not."""
    keys = (f"{name}-{number}" for number in range(10_000))
    bound = 1 << 64
    return next(
        key for key in keys if (hashed(key) < bound // 50 if held_out else hashed(key) > bound - bound // 50)
    )


def hashed(key: str) -> int:
    return holdout_hash(None, key, b"")


# What single rows are for, and their text. None in these is a duplicate of another one.
HELD = key_like("held", held_out=True)
SINGLE: dict[str, tuple[str, str]] = {
    "german": ("language", GERMAN * 2),
    "german and short": ("language", GERMAN[:95]),  # of two reasons the first one counts
    "short": ("gopher.min_words", prose("short", 30)),
    "short and hashed": ("gopher.min_words", prose("short and hashed", 30).replace(" ", " # ", 9)),
    "hashed": ("gopher.hashes", prose("hashed").replace(" ", " # ", 20)),
    "repeated": ("gopher.duplicate_lines", f"{prose('repeated', 30)}\n" * 3),
    "spam": ("quality", "The " + prose("spam", 90, SPAM)),
    "contaminated": ("contaminated", f"{prose('contaminated')}\n{EVALUATION}"),
    "unwanted": ("code", prose("unwanted") + " unwanted"),
    "leak": ("leak", prose("leak") + "\n" + prose(HELD)[:230]),
    "empty": ("empty", "  \n"),
}
BROKEN = {"breakage": "code", "number": "not_text", "missing": "missing"}
KEPT = {
    HELD: prose(HELD),
    "normal": prose("normal").replace(" ", "  \r\n", 1) + " cafe\u0301\x07 \ufeff",
    "changed": prose("changed") + " colour",
    "personal": prose("personal")
    + " Write to anna.smith@mills-of-steel.com or bob@forge.co.uk at 81.2.69.142.",
    "threshold": with_word(prose("threshold"), 5, "… … … … … … … … … … … …"),  # above the usual one
}


@dataclass(frozen=True)
class Built:
    folder: Path
    prepared: Prepared
    kept: dict[str, tuple[str, str]]  # (split, text) by id
    samples: dict[str, dict[str, Any]]  # by id


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("cleaned")
    _write(folder)
    prepared = build_apart(folder / "recipe.toml", folder / "store", "--allow-code")
    engine, kept = Tokenizer.from_file(str(prepared.tokenizer_path)), {}
    for split in ("train", "validation"):
        for stems, stream in zip(prepared.stems(split), prepared.streams(split), strict=True):
            names = [name for stem in stems for name in read_sidecar(stem, ["id"])["id"].to_pylist()]
            for number, name in enumerate(names):
                assert name not in kept
                kept[name] = (split, engine.decode(stream.document(number).tolist()))
    return Built(folder, prepared, kept, {row["id"]: row for row in prepared.samples()})


def _write(folder: Path) -> None:
    rows: dict[str, list[tuple[str, Any]]] = {"first": [], "second": []}
    rows["first"] += [*KEPT.items(), *((key, text) for key, (_, text) in SINGLE.items())]
    rows["first"] += [("breakage", prose("breakage") + " breakage"), ("number", 5), ("missing", None)]
    rows["first"] += [("inside-0", prose("inside")), ("inside-1", prose("inside") + " \n")]
    for number in range(NUM_PAIRS):
        exact, near = prose(f"exact {number}"), prose(f"near {number}")
        rows["first"] += [(f"exact-{number}-first", exact), (f"near-{number}-first", near)]
        rows["second"] += [(f"exact-{number}-second", exact.replace(" ", "  "))]
        rows["second"] += [(f"near-{number}-second", with_word(near, 40, "forge"))]
    rows["second"] += [(f"own-{number}", prose(f"own {number}")) for number in range(40)]
    for name, lines in rows.items():
        texts = [{"key": key} if text is None else {"key": key, "text": text} for key, text in lines]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (folder / "programs").mkdir()
    for number in range(4):  # no prose: rules and languages are not for these
        (folder / "programs" / f"{number}.py").write_text(f"x_{number} = {{{number}: '#'}}\n# colour\n")
    labels = [{"text": prose(f"good {n}"), "label": "good"} for n in range(60)]
    labels += [{"text": prose(f"bad {n}", 90, SPAM), "label": "bad"} for n in range(60)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    (folder / "evaluation.jsonl").write_text(json.dumps({"question": EVALUATION, "answer": "(B)"}) + "\n")
    (folder / "steps.py").write_text(STEPS)
    (folder / "recipe.toml").write_text(RECIPE)


def test_each_row_meets_the_first_reason_that_it_has(built: Built) -> None:
    found = {key: built.samples[key]["fate"] for key in SINGLE}
    assert found == {key: fate for key, (fate, _) in SINGLE.items()}
    assert not {*SINGLE, *BROKEN} & built.kept.keys()
    assert {key: built.samples[key]["fate"] for key in BROKEN} == BROKEN
    assert all(built.samples[key]["is_error"] == (key in BROKEN) for key in (*SINGLE, *BROKEN))


def test_sums_add_up_over_every_reason(built: Built) -> None:
    first, second, programs = built.prepared.manifest["sources"]
    reasons = Counter(fate for fate, _ in SINGLE.values())
    assert first["errors"] == Counter(BROKEN.values()) and not second["errors"]
    others = {name: count for name, count in first["refused"].items() if not name.startswith("dedup.")}
    assert others == reasons
    lost = [first["refused"].get(f"dedup.{how}", 0) + second["refused"].get(f"dedup.{how}", 0)
            for how in ("exact", "minhash")]  # fmt: skip
    assert lost == [NUM_PAIRS + 1, NUM_PAIRS]
    assert second["rows_in"] == 60 < len((built.folder / "second.jsonl").read_text().splitlines())
    assert programs["rows_in"] == programs["kept"] == 4
    for source in (first, second, programs):
        lost = sum(source["refused"].values()) + sum(source["errors"].values())
        assert source["rows_in"] == source["kept"] + lost


def test_texts_are_what_cleaning_made_of_them(built: Built) -> None:
    text = {key: text for key, (_, text) in built.kept.items()}
    assert text[HELD] == prose(HELD) and built.kept[HELD][0] == "validation"
    assert text["normal"] == prose("normal").replace(" ", "\n", 1) + " café"
    assert text["changed"] == prose("changed") + " color"
    assert text["programs/2.py"].startswith("x_2 = {2: '#'}\n# color")
    assert text["personal"].endswith("Write to [EMAIL] or [EMAIL] at [IP].")
    assert "threshold" in text


def test_what_was_redacted_is_counted_and_is_in_no_shard(built: Built) -> None:
    told = built.prepared.manifest["sources"]
    assert {name: count for name, count in told[0]["pii"].items() if count} == {"email": 2, "ip": 1}
    assert not any(any(source["pii"].values()) for source in told[1:])
    everything = " ".join(text for _, text in built.kept.values())
    samples = (built.prepared.folder / "samples.jsonl").read_text()
    for secret in ("anna.smith", "bob@", "81.2.69"):
        assert secret not in everything and secret not in samples


@pytest.mark.parametrize("how", ["exact", "near"])
def test_of_a_pair_the_held_out_one_stays_else_the_first(built: Built, how: str) -> None:
    held = [hashed(key) for key, (split, _) in built.kept.items() if split == "validation" and "/" not in key]
    train = [hashed(key) for key, (split, _) in built.kept.items() if split == "train" and "/" not in key]
    assert max(held) < min(train)
    winners = Counter()
    for number in range(NUM_PAIRS):
        pair = [f"{how}-{number}-{source}" for source in ("first", "second")]
        of_those = [key for key in pair if hashed(key) <= max(held)] or pair
        (stayed,) = [key for key in pair if key in built.kept]
        assert stayed == of_those[0]
        winners[stayed.split("-")[-1]] += 1
    assert winners["second"] > 0 and winners["first"] > 0
    assert ("inside-0" in built.kept) != ("inside-1" in built.kept)


def test_samples_show_kept_and_dropped_rows_and_what_a_duplicate_is_the_same_as(built: Built) -> None:
    rows = built.prepared.samples()
    by_fate = Counter((row["source"], row["fate"]) for row in rows)
    assert by_fate["first", "train"] and by_fate["first", "validation"] and by_fate["second", "train"]
    assert max(by_fate.values()) <= 4
    duplicates = [row for row in rows if row["fate"].startswith("dedup.")]
    assert {row["fate"] for row in duplicates} == {"dedup.exact", "dedup.minhash"}
    for row in duplicates:
        assert (
            row["same_as"] in built.kept and row["same_as"].rsplit("-", 1)[0] == row["id"].rsplit("-", 1)[0]
        )
    assert all(row["same_as"] is None for row in rows if not row["fate"].startswith("dedup."))
    for row in rows:
        if row["fate"] in ("train", "validation") and "/" not in row["id"]:
            assert built.kept[row["id"]] == (row["fate"], row["text"])


def test_no_recipe_runs_code_unasked(built: Built) -> None:
    code, err = _run(built.folder / "recipe.toml", built.folder / "other")
    assert code == 2 and "--allow-code" in err
    # What is there already runs no code: training with the same recipe needs no word for it.
    code, err = _run(built.folder / "recipe.toml", built.folder / "store")
    assert code == 0, err


def test_rules_by_name_and_their_order_are_the_recipes(built: Built, tmp_path: Path) -> None:
    lines = [("hashed and short", "# They come from # there."), ("good", prose("good"))]
    lines += [(f"more {number}", prose(number)) for number in range(3)]
    text = "".join(json.dumps({"key": key, "text": value}) + "\n" for key, value in lines)
    (tmp_path / "first.jsonl").write_text(text)
    recipe = RECIPE[: RECIPE.index('[[data.source]]\nname = "second"')].replace("0.3", "0.0")
    rules = '["gopher.hashes", "gopher.min_words"]\nthresholds = { "gopher.min_words" = 20.0 }'
    (tmp_path / "recipe.toml").write_text(f"{recipe}[data.clean]\nrules = {rules}\n")
    (told,) = build(tmp_path / "recipe.toml", tmp_path / "store").manifest["sources"]
    assert told["refused"] == {"gopher.hashes": 1} and told["kept"] == 4


def test_strict_names_the_rows_and_ends_with_65_also_when_the_data_is_there(tmp_path: Path) -> None:
    (tmp_path / "first.jsonl").write_text(
        '{"key": "a", "text": "one"}\n{"key": "b"}\n{"key": "c", "text": "two"}\n'
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE[: RECIPE.index('[[data.source]]\nname = "second"')])
    for _ in range(2):
        code, err = _run(recipe, tmp_path / "store", "--strict")
        assert code == 65 and "1 rows could not be read" in err
        assert "first: b: missing" in err and "Traceback" not in err
    assert _run(recipe, tmp_path / "store")[0] == 0
    assert len(list((tmp_path / "store").glob("*/manifest.json"))) == 1


# Documents that hold up a worker, or end it.

FOLDERS = {"html": "pages", "books": "books"}
HANGS = (
    "<html><body " + " ".join(f"a{number}=1" for number in range(100_000)) + "><p>Never.</p></body></html>"
)


def _traps(folder: Path, bomb_mb: int) -> None:
    (folder / "pages").mkdir(parents=True)
    (folder / "books").mkdir()
    for number in range(3):
        (folder / "pages" / f"{number}.html").write_text(f"<html><p>A good page, the {number}th.</p></html>")
        (folder / "books" / f"{number}.pdf").write_bytes(pdf(f"A good book, the {number}th."))
    (folder / "pages" / "1a.html").write_text(HANGS)
    (folder / "books" / "1a.pdf").write_bytes(pdf_of_stream(deflated(bomb_mb, 15)))


@pytest.mark.parametrize(
    ("kind", "words", "reasons"),
    [("html", ("--timeout", "1"), {"timeout"}), ("books", (), {"crash", "memory"})],
)
def test_document_that_holds_up_or_ends_its_worker_costs_that_document(
    tmp_path: Path, kind: str, words: tuple[str, ...], reasons: set[str]
) -> None:
    _traps(tmp_path, 2500)
    source = f'[[data.source]]\nname = "traps"\nkind = "{kind}"\npath = "{FOLDERS[kind]}"\n'
    head = 'name = "traps"\n[tokenizer]\nvocab = 300\n[data]\nvalidation = 0\n'
    (tmp_path / "recipe.toml").write_text(head + source)
    (told,) = build_apart(tmp_path / "recipe.toml", tmp_path / "store", *words).manifest["sources"]
    assert told["kept"] == 3 and not told["refused"]
    assert sum(told["errors"].values()) == 1 and told["errors"].keys() <= reasons


@pytest.mark.parametrize(("kind", "reasons"), [("html", {"timeout"}), ("books", {"crash", "memory"})])
def test_worker_driven_for_ray_leaves_it_out_too(tmp_path: Path, kind: str, reasons: set[str]) -> None:
    """An actor waits for one worker at a time (Driven.run), where this machine watches several."""
    _traps(tmp_path, 1000)
    source = Source(name="s", kind=kind, path=FOLDERS[kind])
    (part,) = cut(source, source_inputs(source, tmp_path))
    files = {name: str(tmp_path / name) for name in ("read", "clean")}
    settings = {"read": {}, "clean": {"text": "off", "pii": "off", "c4": False, "plugin": None}}
    told = {"source": source.model_dump(mode="json", exclude_unset=True), "part": part.to_json()}
    driven = Driven(memory_bytes=1 << 30, timeout_s=1.0 if kind == "html" else 60.0)
    try:
        driven.run({"kind": "documents", "name": "s", "settings": settings, "files": files, **told})
    finally:
        driven.close()
    rows = read_columns(Path(files["read"]), ["id", "error"]).to_pylist()
    assert [row["error"] is None for row in rows] == [True, True, False, True]
    assert rows[2]["id"].startswith(f"{FOLDERS[kind]}/1a.") and rows[2]["error"] in reasons


def _run(recipe: Path, store: Path, *words: str) -> tuple[int, str]:
    """(exit code, stderr)."""
    code, _, err = ran_here(recipe.parent, *command(recipe, store, *words)[3:])
    return code, err
