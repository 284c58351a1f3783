"""The mixture: shares are kept at every moment, and no change loses or repeats a sample."""

import numpy as np
import pytest

from bessemer.data.mixture import Mixture, MixtureStage, followed_stages, planned_stages
from bessemer.errors import RecipeError
from bessemer.recipe.schema import Data

SOURCES = {"a": 1.0, "b": 1.0, "c": 2.0}
TOKENS, ROWS = [1_000, 5_000, 300], [10, 50, 3]
CONTEXT = 100
Epochs = tuple[float | None, ...]
SCHEDULES = {
    "one": [],
    "curriculum": [
        {"tokens": 100 * CONTEXT, "weights": {"a": 0, "c": 0}},
        {"tokens": 150 * CONTEXT, "weights": {"a": 3, "b": 0.5, "c": 1}},
    ],
}
CAPS: dict[str, Epochs] = {"endless": (None,) * 3, "capped": (2, None, 1), "all capped": (2, 1, 30)}


def stages(
    schedule: list[dict[str, object]] | None = None,
    epochs: Epochs = (None,) * 3,
    temperature: float = 1.0,
    **weights: float,
) -> list[MixtureStage]:
    sources = [
        {"name": name, "kind": "text", "path": name, "weight": weights.get(name, weight), "epochs": most}
        for (name, weight), most in zip(SOURCES.items(), epochs, strict=True)
    ]
    mixture = {"temperature": temperature, "schedule": schedule or []}
    return planned_stages(Data(source=sources, mixture=mixture), TOKENS, ROWS, CONTEXT)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("caps", CAPS)
def test_each_sample_of_a_source_is_read_once_and_found_again(schedule: str, caps: str) -> None:
    mixture = Mixture(stages(SCHEDULES[schedule], CAPS[caps]))
    positions = np.arange(600 if mixture.end is None else mixture.end)
    sources, indices = mixture.places(positions)
    for source in range(3):
        own = indices[sources == source]
        assert own.tolist() == list(range(len(own)))
    for position in [k for k in (0, 1, 17, 99, 100, 101, 149, 151, 600) if k <= len(positions)]:
        assert mixture.counts(position).tolist() == np.bincount(sources[:position], minlength=3).tolist()
    for position in positions.tolist():
        assert mixture.position(int(sources[position]), int(indices[position])) == position
    few = np.array([len(positions) - 1, 3])  # in any order
    assert mixture.places(few)[1].tolist() == indices[few].tolist()


def test_shares_are_kept_to_one_sample_a_source_at_every_moment() -> None:
    weights = (5.0, 1.0, 0.25, 3.0)
    mixture = Mixture([MixtureStage(0, weights, (None,) * 4)])
    sources, _ = mixture.places(np.arange(5_000))
    seen = np.cumsum(sources[:, None] == np.arange(4), axis=0)
    wanted = np.arange(1, 5_001)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(seen - wanted).max() < 3


@pytest.mark.parametrize(
    ("temperature", "wanted"), [(1.0, [1, 5, 0.3]), (0.0, [1, 1, 1]), (0.5, [1, 5**0.5, 0.3**0.5])]
)
def test_temperature_moves_shares_from_as_they_are_to_all_alike(
    temperature: float, wanted: list[float]
) -> None:
    mixture = Mixture(stages(temperature=temperature, c=1))
    counts = mixture.counts(100_000) / 100_000
    np.testing.assert_allclose(counts, np.array(wanted) / sum(wanted), atol=2e-5)


def test_recipe_changed_in_mid_run_leaves_the_past_and_loses_nothing() -> None:
    first = stages()
    second = stages([{"tokens": 2000 * CONTEXT, "weights": {"b": 1, "a": 0}}], b=0, c=0)
    assert followed_stages(first, first, first, 1234) == first
    kept = followed_stages(first, first, second, 1234)
    assert followed_stages(kept, second, second, 1500) == kept
    before, after = Mixture(first), Mixture(kept)
    past = np.arange(1234)
    for one, other in zip(before.places(past), after.places(past), strict=True):
        assert one.tolist() == other.tolist()
    sources, indices = after.places(np.arange(1234, 3000))
    assert set(sources[:766].tolist()) == {0} and set(sources[766:].tolist()) == {1}
    assert indices[0] == before.counts(1234)[0]  # goes on where the source was left
    assert indices[766] == before.counts(1234)[1]


def test_schedule_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(RecipeError, match="names a source that is not there: 'bb'"):
        stages([{"tokens": 5, "weights": {"bb": 1.0}}])
    with pytest.raises(RecipeError, match="no source has a weight from token 5 on"):
        stages([{"tokens": 5, "weights": {"a": 0, "b": 0, "c": 0}}])


def test_source_that_was_read_as_often_as_it_may_be_gives_its_share_to_the_others() -> None:
    mixture = Mixture(stages(epochs=(2, None, 1)))
    assert mixture.counts(1_000_000).tolist() == [20, 1_000_000 - 23, 3]
    assert mixture.end is None and mixture.position(0, 20) is None and mixture.position(2, 2) is not None
    closed = Mixture(stages(epochs=(2, 1, 1)))
    assert closed.end == 2 * 10 + 50 + 3


def test_tiny_share_is_never_rounded_away() -> None:
    mixture = Mixture([MixtureStage(0, (1e12, 10.0), (None, None))])
    assert mixture.counts(1 << 20)[1] == 1
    far = np.array([8 * 10**11, 8 * 10**11 + 1])
    sources, indices = mixture.places(far)
    assert mixture.position(int(sources[0]), int(indices[0])) == far[0]
