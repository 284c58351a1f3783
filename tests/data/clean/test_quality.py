"""The quality classifier."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bessemer.data.clean import quality_training
from bessemer.data.clean.quality import FEATURE_BITS, QualityModel, document_features
from bessemer.data.clean.quality_training import area_under_curve, loss_and_gradient, train_quality
from bessemer.data.clean.word_hashes import grams, word_hashes
from bessemer.errors import DataError

_STDLIB = Path(json.__file__).parents[1]


def _prose() -> list[str]:
    """Paragraphs that people wrote: the licence and the documentation in the sources of Python's library."""
    paragraphs = []
    for module in sorted(_STDLIB.glob("*.py"))[:160]:
        for block in module.read_text(encoding="utf-8", errors="ignore").split('"""')[1::2]:
            paragraphs += [
                part for part in block.split("\n\n") if len(part.split()) > 25 and part.count(".") > 1
            ]
    return list(dict.fromkeys(paragraphs))[:400]


def _junk(number: int) -> list[str]:
    """Tables, menus and calls to click, as pages have them."""
    draw = random.Random(0)
    menu = [
        "Home",
        "About",
        "Contact",
        "Login",
        "Register",
        "Cart",
        "Shop",
        "Next",
        "Share",
        "Cookie",
        "Terms",
    ]
    goods = [
        "Price",
        "Stock",
        "Size",
        "Buy now",
        "Add to cart",
        "Reviews",
        "Qty",
        "Total",
        "Sale",
        "Click here",
    ]
    texts = []
    for _ in range(number):
        rows = [" | ".join(str(draw.randint(0, 999)) for _ in range(5)) for _ in range(4)]
        pick = draw.choice(
            [rows, [" ".join(draw.choices(menu, k=9))] * 3, [" ".join(draw.choices(goods, k=25))]]
        )
        texts.append("\n".join([*pick, " ".join(draw.choices(menu + goods, k=8))]))
    return texts


def _write(path: Path, good: list[str], bad: list[str]) -> Path:
    rows = [{"text": text, "label": "good"} for text in good] + [
        {"text": text, "label": "bad"} for text in bad
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    return _write(tmp_path_factory.mktemp("quality") / "labels.jsonl", _prose(), _junk(300))


@pytest.fixture(scope="module")
def model(examples) -> QualityModel:
    return train_quality(examples, seed=0)


def test_prose_and_boilerplate_that_were_not_seen_are_told_apart(model):
    assert model.report["auc"] > 0.95 and model.report["accuracy"] > 0.9
    held_out, examples = model.report["held_out"], model.report["examples"]
    assert held_out["good"] == round(0.2 * examples["good"]) and held_out["bad"] == round(
        0.2 * examples["bad"]
    )
    fresh = [
        "The furnace is lined with brick, and the blast enters from below.",
        "Add to cart | Login | 12 | 7",
    ]
    first, second = model.scores(pa.array(fresh))
    assert first > 0.5 > second


def test_scores_are_those_of_the_definition(model):
    """Mean weight of the words and of the pairs of neighbours, plus the constant, as a probability."""
    texts = [
        "One furnace, two furnaces; the one furnace.",
        "Login",
        "",
        None,
        "钢 steel 転炉",
        "cart " * 3000,
    ]
    scores = model.scores(pa.array(texts))
    for text, score in zip(texts, scores, strict=True):
        words = word_hashes(pa.array([text], pa.string()))
        hashes = [*words.hashes, *(pair for block, _, _ in grams(words, 2) for pair in block)]
        weights = [float(model.weights[int(found) >> (64 - FEATURE_BITS)]) for found in hashes]
        logit = math.fsum(weights) / max(len(weights), 1) + float(model.weights[-1])
        assert score == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)
    assert scores.dtype == np.float32
    assert scores[0] == model.scores(pa.array(texts[:1]))[0]  # whatever else is in the batch


def test_training_ends_at_the_minimum_of_a_plainly_written_loss(examples, model):
    read = quality_training.read_examples(examples)
    seen = ~quality_training._held_out(read, seed=0)
    texts = [text for text, is_seen in zip(read.texts, seen, strict=True) if is_seen]
    good = read.good[seen]
    features, starts = document_features(pa.array(texts))
    weights = model.weights.astype(np.float64)
    loss, gradient = loss_and_gradient(weights, features, starts, good)
    plain = 0.5 * quality_training._RIDGE * float(weights[:-1] @ weights[:-1])
    for number, is_good in enumerate(good.tolist()):
        own = features[starts[number] : starts[number + 1]]
        logit = weights[own].mean() + weights[-1]
        count = good.sum() if is_good else (~good).sum()
        plain += 0.5 / count * math.log1p(math.exp(-logit if is_good else logit))
    assert loss == pytest.approx(plain, rel=1e-9)
    nudge = np.random.default_rng(0).normal(size=len(weights))
    slope = sum(
        sign * loss_and_gradient(weights + sign * 1e-5 * nudge, features, starts, good)[0] for sign in (1, -1)
    )
    assert slope / 2e-5 == pytest.approx(float(gradient @ nudge), rel=1e-3, abs=1e-8)
    start = np.linalg.norm(loss_and_gradient(np.zeros_like(weights), features, starts, good)[1])
    assert np.linalg.norm(gradient) < 1e-3 * start


def test_area_under_the_curve_counts_pairs():
    draw = np.random.default_rng(0)
    scores, good = draw.integers(0, 6, 60), draw.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    assert area_under_curve(scores, good) == pytest.approx(np.mean(pairs))


def test_the_same_examples_in_any_order_give_the_same_model(examples, model, tmp_path):
    lines = examples.read_text().splitlines()
    random.Random(1).shuffle(lines)
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("\n\n".join([*lines, lines[0]]))
    again = train_quality(shuffled, seed=0)
    assert again.hash == model.hash and again.report["examples"]["repeated"] == 1
    assert train_quality(examples, seed=1).hash != model.hash


def test_a_saved_model_gives_the_same_scores_and_hash(model, tmp_path):
    model.save(tmp_path / "quality.safetensors")
    loaded = QualityModel.load(tmp_path / "quality.safetensors")
    texts = pa.array(_junk(5), pa.large_string())
    assert loaded.hash == model.hash and loaded.report == model.report
    np.testing.assert_array_equal(loaded.scores(texts), model.scores(texts))
    first = (tmp_path / "quality.safetensors").read_bytes()
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == first
    (tmp_path / "again").write_bytes(first[:100])
    with pytest.raises(DataError, match="cannot read the quality classifier"):
        QualityModel.load(tmp_path / "again")


def test_both_classes_weigh_the_same_however_many_there_are(tmp_path):
    few = train_quality(_write(tmp_path / "few.jsonl", _prose()[:30], _junk(400)), seed=0)
    assert few.scores(pa.array(_prose()[200:300])).mean() > 0.5


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (
            ["{", '{"text": "a"}', "[1]", '{"text": " ", "label": "bad"}'],
            "row 1: no JSON; row 2: label None; row 3",
        ),
        (['{"text": "a", "label": "fine"}'], "row 1: label 'fine'"),
        (['{"text": "\\ud800", "label": "bad"}'], "row 1: text that is no Unicode"),
        (
            ['{"text": "a", "label": "bad"}', '{"text": "a", "label": "good"}'],
            "row 2: the text of row 1 with the",
        ),
        ([json.dumps({"text": f"t {n}", "label": "good"}) for n in range(50)], "50 good and 0 bad ones"),
        ([json.dumps({"text": f"t {n}", "label": "gb"[n % 2]}) for n in range(50)], "and 40 more"),
        ([], "0 good and 0 bad ones"),
    ],
)
def test_bad_examples_are_named_by_row(tmp_path, lines, found):
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        train_quality(path, seed=0)
    assert found in caught.value.found and "labels.jsonl" in caught.value.problem


def test_an_examples_file_that_cannot_be_read_is_a_data_error(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none.jsonl", tmp_path / "binary", tmp_path):
        with pytest.raises(DataError, match="cannot learn quality"):
            train_quality(path, seed=0)
