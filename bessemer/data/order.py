"""The order of samples: a pure function of seed and position, so that resuming costs nothing.

Each epoch is another permutation of all rows: a Feistel network over the next power of four, whose
values beyond the number of rows are sent through it again until they fall inside (at most a few times
on average). Any rank computes any position alone; world size, batch and length of a run may change
without moving a sample.
Cost: about 10 µs a position, 1 M positions/s for arrays; no memory.
Source: cycle-walking, Black and Rogaway, CT-RSA 2002; round function after splitmix64.
"""

import numpy as np

_MASK64 = (1 << 64) - 1
_ROUNDS = 6
_MIN_HALF_BITS = 4  # smaller networks have too few permutations to be called shuffled
Positions = np.ndarray[tuple[int], np.dtype[np.int64]]
Keys = np.ndarray[tuple[int], np.dtype[np.uint64]]


def sample(seed: int, position: int, num_rows: int) -> int:
    """The row that is read at `position` (from 0, over all epochs)."""
    assert num_rows > 0 and position >= 0, f"position {position} of {num_rows} rows"
    epoch, index = divmod(position, num_rows)
    keys, half_bits = _keys(seed, epoch), _half_bits(num_rows)
    while True:
        index = _permute(index, keys, half_bits)
        if index < num_rows:
            return index


def position_of(seed: int, row: int, epoch: int, num_rows: int) -> int:
    """Where `row` is read in an epoch (from 0, over all epochs): the inverse of `sample`."""
    assert 0 <= row < num_rows, f"row {row} of {num_rows}"
    keys, half_bits, index = _keys(seed, epoch), _half_bits(num_rows), row
    while True:
        index = _permute_back(index, keys, half_bits)
        if index < num_rows:
            return epoch * num_rows + index


def samples(seed: int, positions: Positions, num_rows: int) -> Positions:
    """`sample` for an array of positions."""
    rows = np.empty(len(positions), dtype=np.int64)
    epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), num_rows)
    half_bits = _half_bits(num_rows)
    for epoch in np.unique(epochs).tolist():
        keys = [np.uint64(key) for key in _keys(seed, epoch)]
        waiting = np.flatnonzero(epochs == epoch)
        index = places[waiting].astype(np.uint64)
        while len(waiting):
            index = _permute_array(index, keys, half_bits)
            inside = index < np.uint64(num_rows)
            rows[waiting[inside]] = index[inside]
            waiting, index = waiting[~inside], index[~inside]
    return rows


def mixed(numbers: Keys) -> Keys:
    """64-bit numbers to others, one to one: an order by these says nothing of the order before."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _half_bits(num_rows: int) -> int:
    return max(_MIN_HALF_BITS, ((num_rows - 1).bit_length() + 1) // 2)


def _keys(seed: int, epoch: int) -> list[int]:
    state = _mix(_mix(seed & _MASK64) ^ (epoch & _MASK64))
    return [_mix(state + number * 0x9E3779B97F4A7C15) for number in range(1, _ROUNDS + 1)]


def _mix(value: int) -> int:
    """splitmix64's finaliser: every input bit moves every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _permute(index: int, keys: list[int], half_bits: int) -> int:
    left, right = index >> half_bits, index & ((1 << half_bits) - 1)
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) >> (64 - half_bits))
    return (left << half_bits) | right


def _permute_back(index: int, keys: list[int], half_bits: int) -> int:
    left, right = index >> half_bits, index & ((1 << half_bits) - 1)
    for key in reversed(keys):
        left, right = right ^ (_mix(left ^ key) >> (64 - half_bits)), left
    return (left << half_bits) | right


def _permute_array(index: np.ndarray, keys: list[np.uint64], half_bits: int) -> np.ndarray:
    bits = np.uint64(half_bits)
    left, right = index >> bits, index & np.uint64((1 << half_bits) - 1)
    for key in keys:
        mixed = (right ^ key) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        left, right = right, left ^ (mixed >> np.uint64(64 - half_bits))
    return (left << bits) | right
