"""The fast encoder against Hugging Face tokenizers, and what happens where it may not be used."""

import os
import subprocess
import sys
from typing import Any

import fastokens
import numpy as np
import pyarrow as pa
import pytest
from kinds import BYTE_LEVEL, NAMES, OTHERS
from real_text import real_texts

from bessemer.data.tokens import encoder, tokenizer
from bessemer.data.tokens.encoder import Encoder, framed, fuzz
from bessemer.data.tokens.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def learnt() -> TextTokenizer:
    return tokenizer.train(real_texts(300_000), 2000)


def lists(encoded: tuple[Any, Any]) -> list[list[int]]:
    ids, offsets = encoded
    assert ids.dtype == np.int32 and offsets.dtype == np.int64
    return [part.tolist() for part in np.split(ids, offsets[1:-1])] if len(offsets) > 1 else []


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_byte_level_tokenizers_are_encoded_fast_and_as_by_hugging_face(kind: str) -> None:
    known = tokenizer.from_text(BYTE_LEVEL[kind]().to_str(), kind)
    proven = Encoder.proven(known, real_texts(20_000), num_fuzz=300)
    assert proven.slow_because is None
    texts = [*real_texts(300_000), *fuzz(1500, NAMES, seed=1)]
    assert lists(proven.encode(texts)) == known.encode(texts)
    assert proven.slow_batches == 0


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tokenizers_are_encoded_by_hugging_face_and_it_is_said_why(kind: str) -> None:
    known = tokenizer.from_text(OTHERS[kind]().to_str(), kind)
    proven = Encoder.proven(known, num_fuzz=100)
    assert proven.slow_because is not None and "does not know this tokenizer" in proven.slow_because
    texts = [*real_texts(20_000), *fuzz(100)]
    assert lists(proven.encode(texts)) == known.encode(texts)


@pytest.mark.slow
def test_thirty_thousand_fuzz_strings_are_encoded_without_a_difference(learnt: TextTokenizer) -> None:
    texts = fuzz(30_000, ["<|bos|>", "<|eos|>"], seed=2)
    fast, slow = Encoder(learnt).encode(texts), Encoder(learnt, fast=False).encode(texts)
    assert all(np.array_equal(one, other) for one, other in zip(fast, slow, strict=True))


def test_encoder_that_differs_in_one_sample_is_not_used(
    learnt: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tokenizer.train(real_texts(300_000), 1990)
    monkeypatch.setattr(encoder, "_fast_engine", lambda _: fastokens.Tokenizer.from_json_str(other.text))
    proven = Encoder.proven(learnt, real_texts(300_000), num_fuzz=1)
    assert proven.slow_because is not None and proven.slow_because.startswith("encodes '")
    assert lists(proven.encode(["a b c"])) == learnt.encode(["a b c"])


class PanicException(BaseException):
    """As Rust's panics arrive."""


@pytest.mark.parametrize("error", [ValueError, PanicException])
def test_batch_that_the_fast_encoder_refuses_is_encoded_all_the_same(
    learnt: TextTokenizer, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    class Broken:
        def encode_batch_flat(self, *_: Any, **__: Any) -> Any:
            raise error("no")

    monkeypatch.setattr(encoder, "_fast_engine", lambda _: Broken())
    broken = Encoder(learnt)
    assert lists(broken.encode(["a b"])) == learnt.encode(["a b"]) and broken.slow_batches == 1
    assert Encoder.proven(learnt).slow_because == "does not know this tokenizer: no"


def test_interrupt_is_not_taken_for_a_refusal(learnt: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder, "_fast_engine", stop)
    with pytest.raises(KeyboardInterrupt):
        Encoder.proven(learnt)


def test_text_never_becomes_a_special_token(learnt: TextTokenizer) -> None:
    ids, _ = Encoder(learnt).encode(["<|bos|> a <|eos|><|pad|>", "<|eos|>"])
    assert ids.min() > 2


def test_arrays_and_lists_in_any_batches_give_the_same(
    learnt: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*fuzz(50), "", "a"]
    plain = Encoder(learnt).encode(texts)
    array = pa.array([*texts, None])
    assert lists(Encoder(learnt).encode(array)) == [*lists(plain), []]
    assert lists(Encoder(learnt).encode(array[:10])) == lists(plain)[:10]
    assert lists(Encoder(learnt).encode([])) == []
    monkeypatch.setattr(encoder, "_BATCH_CHARACTERS", 40)
    assert lists(Encoder(learnt).encode(pa.chunked_array([array[:9], array[9:-1]]))) == lists(plain)


@pytest.mark.parametrize("bos_id", [0, None])
def test_framing_all_at_once_is_framing_one_by_one(learnt: TextTokenizer, bos_id: int | None) -> None:
    random = np.random.default_rng(0)
    own = TextTokenizer(learnt.engine, learnt.text, learnt.vocab, bos_id, 1, 2)
    parts = [random.integers(0, 4, random.integers(0, 5)).tolist() for _ in range(500)]
    for some in (parts, [], [[]], [[0]], [[1]], [[0, 1]], [[], [], [5]]):
        ids = np.array([token for part in some for token in part], np.int32)
        offsets = np.cumsum([0, *map(len, some)])
        assert lists(framed(ids, offsets, own)) == [own.document(part) for part in some]


THREADS = """
import os, sys
from bessemer.data.tokens import tokenizer
from bessemer.data.tokens.encoder import Encoder
encoder = Encoder(tokenizer.train(["a b c d " * 50], 300))
before = len(os.listdir("/proc/self/task"))
encoder.encode(["a b c d " * 1000] * 500)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_worker_told_to_use_one_thread_starts_no_more() -> None:
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1
