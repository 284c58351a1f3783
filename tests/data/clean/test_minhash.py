"""The share of bins in which two documents agree is the share of grams that they have in common."""

import random

import numpy as np
import pyarrow as pa

from bessemer.data.clean.minhash import ROWS, signatures, similarity


def texts_of(count: int, num_words: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(50_000)}" for _ in range(num_words)) for _ in range(count)]


def edited(text: str, share: float, rng: random.Random) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = rng.choice(["", f"new{rng.randrange(9999)}", words[place] + " more"])
    return " ".join(words)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


def made(texts: list[str | None], **options: int) -> tuple[np.ndarray, np.ndarray]:
    batch = signatures(pa.array(texts, pa.large_string()), **options)
    bands = np.array(batch["bands"].to_pylist(), dtype=np.uint64)
    return bands, np.array([list(sketch) for sketch in batch["sketch"].to_pylist()], dtype=np.uint8)


def test_near_duplicates_with_two_percent_of_edits_share_a_band_and_unlike_texts_do_not() -> None:
    rng = random.Random(3)
    texts = [text for length in (40, 100, 300, 1500) for text in texts_of(100, length, length)]
    copies = [edited(text, 0.02, rng) for text in texts]
    bands, sketches = made([*texts, *copies])
    found = (bands[:400] == bands[400:]).any(axis=1)
    assert found.mean() >= 0.9 and found[100:].mean() > 0.95
    assert (found & (similarity(sketches[:400], sketches[400:]) >= 0.75))[100:].mean() > 0.9
    assert not (bands[:399] == bands[1:400]).any()


def test_similarity_estimates_the_jaccard_similarity_without_bias() -> None:
    rng = random.Random(4)
    for num_words, share in ((60, 0.05), (400, 0.02), (400, 0.1), (3000, 0.05)):
        texts = texts_of(200, num_words, num_words)
        copies = [edited(text, share, rng) for text in texts]
        true = np.array(
            [
                len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))
                for one, two in zip(texts, copies, strict=True)
            ]
        )
        _, sketches = made([*texts, *copies])
        errors = similarity(sketches[:200], sketches[200:]) - true
        assert abs(errors.mean()) < 0.015 and errors.std() < 0.06


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = texts_of(20, 80, 5) + texts_of(5, 3, 6) + ["", "one"]
    together = signatures(pa.array(texts, pa.large_string()))
    for number, text in enumerate(texts):
        assert signatures(pa.array([text])).equals(together.slice(number, 1))


def test_short_texts_are_alike_only_when_their_words_are_the_same() -> None:
    bands, sketches = made(["Yes, please!", "yes please", "yes please not", "one two three four five"])
    assert (bands[0] == bands[1]).all() and (sketches[0] == sketches[1]).all()
    assert not (bands[0] == bands[2]).any() and not (bands[0] == bands[3]).any()


def test_texts_without_words_have_nulls() -> None:
    batch = signatures(pa.array([None, "", " -- ", "word"], pa.large_string()))
    assert batch["bands"].is_null().to_pylist() == batch["sketch"].is_null().to_pylist()
    assert batch["bands"].is_null().to_pylist() == [True, True, True, False]
    assert signatures(pa.array([], pa.string())).num_rows == 0


def test_bands_and_rows_are_as_many_as_asked() -> None:
    bands, sketches = made(texts_of(3, 50, 7), num_bands=20, rows=6)
    assert bands.shape == (3, 20) and sketches.shape == (3, 120)
    assert len(np.unique(made(["the same words again and again"])[0])) == 14, "a band's hash says which band"


def test_signatures_are_the_same_on_every_machine() -> None:
    """A change of these makes all caches void: raise the version of the stage then."""
    bands, sketches = made(["It was the best of times, it was the worst of times"])
    assert bands[0, :2].tolist() == [15831560648027093487, 13973031263116302302]
    assert bytes(sketches[0, :ROWS]).hex() == "37dd493729a0dddd"
