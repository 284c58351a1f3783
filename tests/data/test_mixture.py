"""The mixture: shares are kept at every moment, and no change loses or repeats a sample."""

import numpy as np
import pytest

from bessemer.data.mixture import Mixture, MixtureStage

TOKENS, ROWS = [1_000, 5_000, 300], [10, 50, 3]
SCHEDULES = {
    "one": [MixtureStage(0, (1, 1, 2))],
    "curriculum": [MixtureStage(0, (1, 1, 2)), MixtureStage(100, (0, 1, 0)), MixtureStage(150, (3, 0.5, 1))],
}
CAPS = {"endless": None, "capped": (2, None, 1), "all capped": (2, 1, 30)}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("caps", CAPS)
def test_each_sample_of_a_source_is_read_once_and_found_again(schedule: str, caps: str) -> None:
    mixture = Mixture(TOKENS, ROWS, SCHEDULES[schedule], epochs=CAPS[caps])
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
    mixture = Mixture([100] * 4, [7] * 4, [MixtureStage(0, weights)])
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
    mixture = Mixture(TOKENS, ROWS, [MixtureStage(0, (1, 1, 1))], temperature)
    counts = mixture.counts(100_000) / 100_000
    np.testing.assert_allclose(counts, np.array(wanted) / sum(wanted), atol=2e-5)


def test_a_stage_added_later_leaves_the_past_as_it_was() -> None:
    before = Mixture(TOKENS, ROWS, SCHEDULES["one"])
    after = Mixture(TOKENS, ROWS, [*SCHEDULES["one"], MixtureStage(1234, (1, 0, 0))])
    past = np.arange(1234)
    for first, second in zip(before.places(past), after.places(past), strict=True):
        assert first.tolist() == second.tolist()
    sources, indices = after.places(np.arange(1234, 1300))
    assert set(sources.tolist()) == {0}
    assert indices[0] == before.counts(1234)[0]  # goes on where the source was left


def test_source_that_was_read_as_often_as_it_may_be_gives_its_share_to_the_others() -> None:
    mixture = Mixture(TOKENS, ROWS, SCHEDULES["one"], epochs=(2, None, 1))
    assert mixture.counts(1_000_000).tolist() == [20, 1_000_000 - 23, 3]
    assert mixture.end is None and mixture.position(0, 20) is None and mixture.position(2, 2) is not None
    closed = Mixture(TOKENS, ROWS, SCHEDULES["one"], epochs=(2, 1, 1))
    assert closed.end == 2 * 10 + 50 + 3


def test_tiny_share_is_never_rounded_away() -> None:
    mixture = Mixture([10**12, 10], [10**9, 1], [MixtureStage(0, (1, 1))])
    assert mixture.counts(1 << 20)[1] == 1
    far = np.array([8 * 10**11, 8 * 10**11 + 1])
    sources, indices = mixture.places(far)
    assert mixture.position(int(sources[0]), int(indices[0])) == far[0]
