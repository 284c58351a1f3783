"""Continued pre-training with a share of old data: exact at every moment, resumable, and less forgotten."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from making_runs import QUIET, assert_same_training, own_cache, place, pretrained, write_recipe

from bessemer.checkpoint.folder import listed
from bessemer.data.kept import open_told
from bessemer.data.mixture import Mixing, Mixture, MixtureStage, with_replay
from bessemer.data.prepared import Prepared
from bessemer.data.store import prepare
from bessemer.errors import DataError, RecipeError
from bessemer.evaluate.run import evaluate
from bessemer.recipe.load import load
from bessemer.rundir import read_object
from bessemer.train.pretrain import pretrain

REPLAY = """
[data.replay]
run = "base"
share = 0.2
"""
STEPS = "pretrain.steps=10"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_cache(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run `base` of 20 steps; a recipe new.toml of other texts, with its tokenizer, that replays it."""
    folder = tmp_path_factory.mktemp("made")
    recipe = write_recipe(folder).read_text()
    pretrained(folder, "pretrain.steps=20", run="base")
    dice, words = random.Random(1), ["salt", "brine", "copper", "tin", "zinc", "lead"]
    (folder / "more").mkdir()
    for number in range(12):
        text = " ".join(dice.choice(words) for _ in range(60))
        (folder / "more" / f"{number:02d}.txt").write_text(text)
    recipe = recipe.replace('path = "texts"', 'path = "more"')
    recipe = recipe.replace("vocab = 300", 'path = "base/pretrain/tokenizer.json"')
    (folder / "new.toml").write_text(recipe.replace("[pretrain]", f"{REPLAY}\n[pretrain]"))
    loaded = load(str(folder / "new.toml"), [])
    prepare(loaded.recipe, loaded.base, folder / "data", QUIET)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def continued(folder: Path, *settings: str, run: str = "new", from_: str | None = "base") -> None:
    origin = None if from_ is None else str(folder / from_)
    pretrain(load(str(folder / "new.toml"), [STEPS, *settings]), place(folder, run), origin)


def read_by(stage: Path, count: int) -> list[int]:
    """Of which source each of the first `count` rows is."""
    info = read_object(stage / "stage.json")
    assert info is not None
    data = open_told(info["data"])
    assert isinstance(data, Prepared)
    rows = data.rows("train", info["context"])
    mixture = Mixture(Mixing.from_json(info["mixture"]).kept)
    return [rows.source_of(row) for row in rows.samples(mixture, info["seed"], np.arange(count)).tolist()]


def test_replayed_share_is_exact_at_every_moment(folder: Path) -> None:
    continued(folder)
    sources = read_by(folder / "new/pretrain", 1000)
    assert set(sources) == {0, 1}
    replayed = np.cumsum(np.array(sources) == 1)
    assert np.abs(replayed - 0.2 * np.arange(1, 1001)).max() <= 1.0
    # Weights alone go on from the old run: it is another run, from its step 0.
    info = read_object(folder / "new/pretrain/stage.json")
    assert info is not None and info["origin"]["step"] == 20
    assert "replayed" in info["data"] and listed(folder / "new/pretrain")


def test_share_holds_when_a_source_may_be_read_no_more_and_the_data_ends_with_the_last_one() -> None:
    """Old sources stand for none of the new ones: without those there is nothing left to train on."""
    stages = with_replay([MixtureStage(0, (3.0, 1.0), (30, 40))], 0.25, (2.0, 1.0))
    mixture = Mixture(stages)
    assert mixture.end is not None and mixture.counts(mixture.end).tolist()[:2] == [30, 40]
    for position in range(1, mixture.end + 1):
        old = mixture.counts(position)[2:]
        assert abs(old.sum() - 0.25 * position) <= 2.0, position
    # A third of the 70 others, two to one; each of the two stretches rounds to a sample.
    assert mixture.counts(mixture.end)[2:] == pytest.approx([70 / 3 * 2 / 3, 70 / 3 / 3], abs=2.0)


def test_run_that_replays_goes_on_bit_for_bit_where_the_old_run_has_gone_on_or_is_gone(folder: Path) -> None:
    continued(folder, "pretrain.save_every=2")
    shutil.copytree(folder / "new", folder / "cut")
    shutil.rmtree(listed(folder / "cut/pretrain")[0])
    (folder / "base/pretrain/stage.json").rename(folder / "gone.json")
    continued(folder, "pretrain.save_every=2", run="cut", from_=None)
    assert_same_training(folder / "cut/pretrain", folder / "new/pretrain", 10)


def test_share_may_change_in_mid_run_and_the_run_that_is_replayed_may_not(folder: Path) -> None:
    continued(folder)
    settings = ("pretrain.steps=20", "data.replay.share=0.5")
    continued(folder, *settings, from_=None)
    position = 10 * 4
    sources = np.array(read_by(folder / "new/pretrain", 500)) == 1
    assert sources[:position].sum() == pytest.approx(0.2 * position, abs=1)
    assert sources[position:].sum() == pytest.approx(0.5 * (500 - position), abs=1)
    with pytest.raises(RecipeError, match=r"data\.replay\.run"):
        continued(folder, *settings, "data.replay.run=other", from_=None)


def test_replay_of_a_run_that_replayed_has_the_data_of_both(folder: Path) -> None:
    continued(folder)
    continued(folder, "data.replay.run=new", run="third", from_="new")
    info = read_object(folder / "third/pretrain/stage.json")
    assert info is not None
    sources = np.bincount(read_by(folder / "third/pretrain", 2500)) / 2500
    assert sources == pytest.approx([0.8, 0.2 * 0.8, 0.2 * 0.2], abs=2e-3)


@pytest.mark.slow
def test_evaluation_measures_what_is_left_of_the_old_data(folder: Path) -> None:
    """And a run that replays nothing has forgotten more."""
    continued(folder, "pretrain.steps=30")
    text = (folder / "new.toml").read_text()
    (folder / "new.toml").write_text(text.replace(REPLAY, ""))
    continued(folder, "pretrain.steps=30", run="without")
    recipe = load(str(folder / "tiny.toml"), []).recipe
    kept = evaluate(folder / "new", recipe, QUIET)["stages"]["pretrain"]["replayed_loss"]
    stage = folder / "without/pretrain/stage.json"
    info = json.loads(stage.read_text())
    base = json.loads((folder / "base/pretrain/stage.json").read_text())
    info["data"] = base["data"]  # the old held-out documents, for the run without replay
    stage.write_text(json.dumps(info))
    forgotten = evaluate(folder / "without", recipe, QUIET)["stages"]["pretrain"]["validation_loss"]
    assert kept < forgotten - 0.3, (kept, forgotten)


@pytest.mark.parametrize(
    ("settings", "problem", "told"),
    [
        (["data.replay.run=nowhere"], "nowhere holds no data of pre-training", "stage.json"),
        (["tokenizer.path=other.json"], "another tokenizer", "set tokenizer.path="),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    folder: Path, settings: list[str], problem: str, told: str
) -> None:
    other = (folder / "base/pretrain/tokenizer.json").read_text().replace('"<|pad|>"', '"<pad>"')
    (folder / "other.json").write_text(other)
    with pytest.raises((RecipeError, DataError)) as caught:
        continued(folder, *settings, from_=None)
    assert problem in caught.value.problem and told in caught.value.found + caught.value.fix
    assert not (folder / "new/pretrain").exists()
