"""The mixture of sources in real runs: planned, changed in mid-run, killed; what is read is what was said.

On CPU, a step takes milliseconds. A run whose mixture was changed is compared, bit for bit, with one that had
the same mixture planned from the beginning; and what each step read is worked out again from stage.json.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making_processes import finish, start, wait_for
from making_runs import assert_same_training, curve, events, own_cache, pretrained

from bessemer.data.loader import Batches
from bessemer.data.mixture import Mixing, Mixture
from bessemer.data.prepared import Prepared, open_prepared
from bessemer.errors import RefusedError
from bessemer.recipe.load import load
from bessemer.rundir import read_object

CONTEXT, BATCH_ROWS = 32, 4
RECIPE = """name = "mixed"
[model]
layers = 1
hidden = 32
heads = 4
kv_heads = 2
ffn = 48
context = 32
[tokenizer]
vocab = 300
[pretrain]
batch_tokens = 128
micro_batch = 2
lr = 3e-3
warmup = 1
schedule = "constant"
dtype = "fp32"
compile = false
save_every = 5
validate_every = 10
[data]
validation = 0.1
"""
SOURCE = '[[data.source]]\nname = "{0}"\nkind = "text"\npath = "{0}"\n{1}\n'
CHANGE = "[[data.mixture.schedule]]\ntokens = 1280\nweights = {{ ore = {} }}\n"  # after ten steps
NAMES = ("ore", "rail")
_WORDS = "iron steel coal slag blast converter ingot beam plate rivet forge anvil bellows furnace"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, dice = tmp_path_factory.mktemp("mixed"), random.Random(0)
    for name, count in zip(NAMES, (6, 12), strict=True):
        (folder / name).mkdir()
        for number in range(count):
            text = " ".join(dice.choice(_WORDS.split()) for _ in range(60))
            (folder / name / f"{number:02d}.txt").write_text(f"{name} {number}: {text}.\n")
    with own_cache(tmp_path_factory.mktemp("cache")):
        yield folder


def recipe(folder: Path, ore: str = "", rail: str = "", more: str = "") -> None:
    """tiny.toml, with these settings of the sources and of the mixture."""
    text = RECIPE + more + SOURCE.format("ore", ore) + SOURCE.format("rail", rail)
    (folder / "tiny.toml").write_text(text)


@pytest.fixture(scope="module")
def planned(folder: Path) -> Path:
    """A run of 40 steps whose recipe said from the beginning that `ore` counts six times after ten."""
    recipe(folder, more=CHANGE.format(6.0))
    pretrained(folder, "pretrain.steps=40", run="planned")
    return folder / "planned/pretrain"


class Read:
    """What a stage read, worked out from its stage.json."""

    def __init__(self, stage: Path) -> None:
        info = read_object(stage / "stage.json")
        assert info is not None
        self.info: dict[str, Any] = info
        prepared = open_prepared(Path(info["data"]["folder"]))
        assert isinstance(prepared, Prepared)
        self.rows = prepared.rows("train", CONTEXT)
        self.lengths = [len(stream.tokens) for stream in prepared.streams("train")]
        self.mixture = Mixture(Mixing.from_json(info["mixture"]).kept)
        self.batches = Batches(self.rows, info["seed"], BATCH_ROWS, 2, mixture=self.mixture)

    def samples(self, steps: int) -> list[int]:
        positions = np.arange(steps * BATCH_ROWS, dtype=np.int64)
        return self.rows.samples(self.mixture, self.info["seed"], positions).tolist()

    def sources(self, steps: int) -> list[int]:
        return [self.rows.source_of(row) for row in self.samples(steps)]


def assert_epochs_are_whole(read: Read, steps: int) -> None:
    """Of each source, every epoch but the last is all of its rows once, and the last none of them twice."""
    samples = read.samples(steps)
    for source, length in enumerate(read.lengths):
        own, num_rows = [row for row in samples if read.rows.source_of(row) == source], -(-length // CONTEXT)
        assert len(own) > num_rows, "less than an epoch proves little"
        for begin in range(0, len(own), num_rows):
            epoch = own[begin : begin + num_rows]
            assert len(set(epoch)) == len(epoch)


def test_weights_and_schedule_are_what_is_read(planned: Path) -> None:
    read = Read(planned)
    sizes = read.lengths
    for begin, end, weight in ((0, 10, 1.0), (10, 40, 6.0)):
        sources = Counter(read.sources(end)[begin * BATCH_ROWS :])
        share = weight * sizes[0] / (weight * sizes[0] + sizes[1])
        assert abs(sources[0] - share * (end - begin) * BATCH_ROWS) <= 1
    assert_epochs_are_whole(read, 40)


def test_mixture_changed_in_mid_run_equals_one_planned_so_bit_for_bit(folder: Path, planned: Path) -> None:
    recipe(folder)
    pretrained(folder, "pretrain.steps=40", run="never")
    pretrained(folder, "pretrain.steps=10", run="changed")
    before = Read(folder / "changed/pretrain").samples(10)
    recipe(folder, ore="weight = 6.0")
    document = pretrained(folder, "pretrain.steps=40", run="changed")
    assert document["step"] == 40 and document["attempts"] == 2
    changed = folder / "changed/pretrain"
    assert_same_training(changed, planned, 40)
    assert Read(changed).samples(10) == before
    assert_epochs_are_whole(Read(changed), 40)
    # And the change did something: the run that never changed went another way from there on.
    assert curve(changed)[:10] == curve(folder / "never/pretrain")[:10]
    assert curve(changed)[10:] != curve(folder / "never/pretrain")[10:]
    told = [(row["key"], row["old"], row["new"], row["step"]) for row in events(changed, "recipe")]
    assert ("data.source.0.weight", 1.0, 6.0, 10) in told
    assert {row[0] for row in told} == {"data.source.0.weight", "pretrain.steps"}
    assert load(str(folder / "changed/recipe.toml"), []).recipe.data.source[0].weight == 6.0


def test_mixture_changed_twice_keeps_what_was_read(folder: Path) -> None:
    recipe(folder)
    pretrained(folder, "pretrain.steps=10", run="twice")
    later = CHANGE.format(6.0).replace("1280", "2560")  # after twenty steps
    recipe(folder, more=later)
    pretrained(folder, "pretrain.steps=15", run="twice")
    recipe(folder, rail="weight = 0.0", more=later)
    pretrained(folder, "pretrain.steps=30", run="twice")
    read = Read(folder / "twice/pretrain")
    assert set(read.sources(30)[15 * BATCH_ROWS :]) == {0}
    assert [stage["begin"] for stage in read.info["mixture"]["kept"]] == [0, 60, 80]
    pretrained(folder, "pretrain.steps=40", run="twice")
    assert Read(folder / "twice/pretrain").samples(30) == read.samples(30), "no change, and another order"
    recipe(folder, rail="weight = 3.0", more=later)
    pretrained(folder, "pretrain.steps=70", run="twice")
    assert Read(folder / "twice/pretrain").samples(30) == read.samples(30)
    assert_epochs_are_whole(Read(folder / "twice/pretrain"), 70)


def test_schedule_that_is_extended_equals_one_planned_so_bit_for_bit(folder: Path) -> None:
    later = CHANGE.format(6.0).replace("1280", "2560")
    recipe(folder, more=later)
    pretrained(folder, "pretrain.steps=30", run="planned later")
    recipe(folder)
    pretrained(folder, "pretrain.steps=10", run="extended")
    recipe(folder, more=later)
    pretrained(folder, "pretrain.steps=30", run="extended")
    assert_same_training(folder / "extended/pretrain", folder / "planned later/pretrain", 30)


def test_killed_after_its_mixture_was_changed_it_ends_bit_for_bit_the_same(
    folder: Path, planned: Path
) -> None:
    recipe(folder)
    pretrained(folder, "pretrain.steps=10", run="killed")
    recipe(folder, ore="weight = 6.0")
    words = ("pretrain", "tiny.toml", "--set", "pretrain.steps=40", "--run", "killed", "--store", "data")
    stage = folder / "killed/pretrain"
    process = start(folder, *words)
    wait_for(process, lambda: curve(stage)[-1][0] >= 12)  # before a checkpoint of the new mixture
    process.kill()
    assert finish(process)[0] == -9
    code, _, error = finish(start(folder, *words))
    assert code == 0, error
    assert len(events(stage, "resume")) == 2
    assert_same_training(stage, planned, 40)


# As often as a source may be read.


def test_too_few_rows_for_the_epochs_allowed_are_refused_before_the_start(folder: Path) -> None:
    recipe(folder, ore="epochs = 1.0", rail="epochs = 2.0")
    with pytest.raises(RefusedError, match="too little data") as caught:
        pretrained(folder, "pretrain.steps=60", run="refused")
    assert caught.value.exit_code == 3 and not (folder / "refused/pretrain").exists()
    steps = int(caught.value.fix.split("pretrain.steps=")[1].split(",")[0])
    document = pretrained(folder, f"pretrain.steps={steps}", run="capped")
    assert document["step"] == steps
    read = Read(folder / "capped/pretrain")
    counts = Counter(read.samples(steps))
    by_source = [
        [counts[row] for row in range(len(read.rows)) if read.rows.source_of(row) == k] for k in (0, 1)
    ]
    assert max(by_source[0]) == 1 and max(by_source[1]) == 2
    unread = len(by_source[0]) + 2 * len(by_source[1]) - steps * BATCH_ROWS
    assert 0 <= unread < BATCH_ROWS
    with pytest.raises(RefusedError, match="too little data"):
        pretrained(folder, f"pretrain.steps={steps + 1}", run="capped")
    assert read_object(folder / "capped/pretrain/stage.json") == read.info
    assert json.loads(json.dumps(document))["already_done"] is False


def test_source_that_was_read_as_often_as_it_may_be_gives_its_share_to_others(folder: Path) -> None:
    recipe(folder, ore="epochs = 1.5")
    pretrained(folder, "pretrain.steps=40", run="half")
    read = Read(folder / "half/pretrain")
    num_rows = -(-read.lengths[0] // CONTEXT)
    sources = read.sources(40)
    assert sources.count(0) == round(1.5 * num_rows)
    last = max(place for place, source in enumerate(sources) if source == 0)
    assert last < len(sources) - 8, "the other one goes on alone"
