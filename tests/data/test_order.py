import numpy as np
import pytest

from bessemer.data.order import position_of, sample, samples


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 16, 17, 100, 255, 256, 257, 1000, 4097, 65537])
def test_every_row_is_read_once_an_epoch(num_rows: int) -> None:
    for seed, epoch in ((0, 0), (1, 0), (7, 3), (2**64 - 1, 10**6)):
        rows = samples(seed, np.arange(epoch * num_rows, (epoch + 1) * num_rows), num_rows)
        assert sorted(rows.tolist()) == list(range(num_rows))


def test_one_position_and_many_agree_across_epochs() -> None:
    random = np.random.default_rng(0)
    for num_rows in (1, 2, 7, 300, 12345, 2**33 + 5):
        positions = random.integers(0, 5 * num_rows, 50)
        expected = [sample(3, int(position), num_rows) for position in positions]
        assert samples(3, positions, num_rows).tolist() == expected


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(samples(seed, np.arange(64) + 64 * epoch, 64)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_order_is_shuffled_and_does_not_change_between_versions() -> None:
    rows = samples(0, np.arange(10_000), 10_000)
    assert abs(np.corrcoef(rows, np.arange(10_000))[0, 1]) < 0.05
    neighbours = np.abs(np.diff(rows)).mean()
    assert 3000 < neighbours < 3700  # a third of the range, as in a random order
    assert [sample(0, position, 1000) for position in range(6)] == [920, 406, 930, 83, 496, 13]


def test_position_of_a_row_is_where_it_is_read() -> None:
    for num_rows in (1, 7, 300):
        for epoch in (0, 3):
            for row in range(num_rows):
                position = position_of(5, row, epoch, num_rows)
                assert position // num_rows == epoch and sample(5, position, num_rows) == row
