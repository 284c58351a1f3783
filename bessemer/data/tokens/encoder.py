"""Texts to token ids, fast: fastokens behind a gate that compares it with Hugging Face tokenizers.

fastokens gives flat ids and offsets without a Python object a token. It is young, so before a build it
encodes texts of the data and strings made to trip tokenizers (`fuzz`), and any difference from
`tokenizers`, or a tokenizer.json that it does not know (SentencePiece's, WordPiece), puts the slow way in
its place: `Encoder.proven`, whose `slow_because` the caller says aloud.
Batches of about 256 kB: 1.5 times the rate of one batch of 100 MB.
Threads: both libraries run on rayon, which reads RAYON_NUM_THREADS once, at its first use in a process;
whoever starts a worker process sets it to 1 there. Without it each worker takes all cores.
Cost: 239 MB/s on one core, 72 times `encode_batch_fast` (byte-level BPE, 32,768 tokens; list of strings
included); no difference on 35 M tokens of real text nor on 30,000 fuzz strings. The gate takes 0.5 s.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, final

import fastokens
import numpy as np
import pyarrow as pa

from bessemer.data.tokens.tokenizer import TextTokenizer

_BATCH_CHARACTERS = 256_000
_GATE_CHARACTERS = 400_000
Ids = np.ndarray[Any, np.dtype[np.int32]]
Offsets = np.ndarray[Any, np.dtype[np.int64]]


@final
class Encoder:
    """`fast=False`: with tokenizers. Whether fastokens may be used is for `proven` to say, once a build."""

    def __init__(self, tokenizer: TextTokenizer, *, fast: bool = True) -> None:
        self._tokenizer = tokenizer
        self._engine = _fast_engine(tokenizer) if fast else None
        self.slow_because: str | None = None
        self.slow_batches = 0  # that fastokens refused, and tokenizers encoded

    @classmethod
    def proven(cls, tokenizer: TextTokenizer, samples: Sequence[str] = (), num_fuzz: int = 2000) -> "Encoder":
        """Fast where fastokens stands the comparison; else slow, and `slow_because` says what was found.

        `samples`: some texts of the data; the first 400,000 characters of them count.
        """
        try:
            encoder = cls(tokenizer)
            found = encoder._difference([*_some(samples), *fuzz(num_fuzz, _names(tokenizer))])
        except BaseException as error:
            if not _is_refusal(error):
                raise
            found = f"does not know this tokenizer: {error}"
        if found is not None:
            encoder = cls(tokenizer, fast=False)
            encoder.slow_because = found
        return encoder

    def encode(self, texts: pa.Array | pa.ChunkedArray | Sequence[str]) -> tuple[Ids, Offsets]:
        """Text k is ids[offsets[k] : offsets[k + 1]], without begin and end.

        A special token's name inside a text is encoded as the letters it is.
        """
        flat, sizes = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for batch in _batches(texts):
            ids, offsets = self._encode(batch)
            flat.append(ids)
            sizes.append(np.diff(offsets))
        return np.concatenate(flat), _offsets(np.concatenate(sizes))

    def _encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        if self._engine is not None:
            try:
                return _flat(self._engine, texts)
            except BaseException as error:
                if not _is_refusal(error):
                    raise
                self.slow_batches += 1
        return _slow(self._tokenizer, texts)

    def _difference(self, texts: list[str]) -> str | None:
        fast, slow = _flat(self._engine, texts), _slow(self._tokenizer, texts)
        for number, text in enumerate(texts):
            own, right = (ids[offsets[number] : offsets[number + 1]] for ids, offsets in (fast, slow))
            if not np.array_equal(own, right):
                return f"encodes {text[:60]!r} as {own[:8].tolist()}, not as {right[:8].tolist()}"
        return None


def framed(ids: Ids, offsets: Offsets, tokenizer: TextTokenizer) -> tuple[Ids, Offsets]:
    """Begin and end tokens around each text, each once: as TextTokenizer.document, for all at once."""
    bos_id, eos_id = tokenizer.bos_id, tokenizer.eos_id
    begins, ends = offsets[:-1], offsets[1:]
    inner = ends - begins
    keep = np.ones(len(ids), bool)
    if bos_id is not None:
        filled = np.flatnonzero(inner)
        begun = filled[ids[begins[filled]] == bos_id]
        keep[begins[begun]] = False
        inner[begun] -= 1
    filled = np.flatnonzero(inner)
    ended = np.zeros(len(inner), bool)
    ended[filled] = ids[ends[filled] - 1] == eos_id
    new_offsets = _offsets((bos_id is not None) + inner + ~ended)
    new_ids = np.full(new_offsets[-1], eos_id, np.int32)
    free = np.ones(len(new_ids), bool)
    if bos_id is not None:
        new_ids[new_offsets[:-1]] = bos_id
        free[new_offsets[:-1]] = False
    free[new_offsets[1:][~ended] - 1] = False
    new_ids[free] = ids[keep]
    return new_ids, new_offsets


def fuzz(count: int, names: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Strings that tokenizers stumble over: all planes of Unicode, marks, controls, runs, special names."""
    random = np.random.default_rng(seed)
    pieces = [*_PIECES, *names, *(name[:-1] for name in names), *(name + " " for name in names)]
    texts = []
    for _ in range(count):
        highest = (0x80, 0x250, 0x3000, 0x10000, 0x110000)[int(random.integers(5))]
        points = random.integers(0, highest, 12)
        parts = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
        parts += [chr(point) for point in random.integers(32, 127, 8)]
        parts += [pieces[place] for place in random.integers(0, len(pieces), 6)]
        run = pieces[int(random.integers(len(pieces)))]
        parts.append(run * int(random.choice([1, 2, 3, 17, 300])))
        texts.append("".join(parts[place] for place in random.permutation(len(parts))))
    return ["", *texts]


_PIECES = (
    *" \t\n\r\0\x1c\x85\xa0\u200b\u200d\ufeff\u3000\u2028\u0301\u064b\ufe0f\U0010ffff\U000e0061",
    *(
        "\r\n",
        "\n\n",
        "  ",
        " \n ",
        "'s",
        "'S",
        "'ll",
        "'\u017f",
        "don't",
        "123456",
        "\u0663\u0664",
        "\u2167",
    ),
    *(
        "e\u0301",
        "\u00e9",
        "\u1100\u1161\u11a8",
        "\ud55c",
        "\u6f22\u5b57",
        "\u0e44\u0e17\u0e22",
        "\u0915\u094d\u0937",
    ),
    *(
        "\ufb01",
        "\u00bd",
        "\u0130",
        "\u00df",
        "\U0001f468\u200d\U0001f469",
        "\U0001f1e9\U0001f1ea",
        "\u2581",
        "<0x0A>",
    ),
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<|endoftext|>",
        "<|im_start|>",
        "[CLS]",
        "##a",
        "\u0120the",
        "http://a.b/c?d=e",
    ),
)


def _fast_engine(tokenizer: TextTokenizer) -> Any:
    # As the engine writes itself: without the padding and truncation that its file may have asked for.
    return fastokens.Tokenizer.from_json_str(tokenizer.engine.to_str())


def _flat(engine: Any, texts: list[str]) -> tuple[Ids, Offsets]:
    ids, offsets = engine.encode_batch_flat(texts, add_special_tokens=False, split_special_tokens=True)
    return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)


def _slow(tokenizer: TextTokenizer, texts: list[str]) -> tuple[Ids, Offsets]:
    ids = [np.array(one, np.int32) for one in tokenizer.encode(texts)]
    sizes = np.array([len(one) for one in ids], np.int64)
    return np.concatenate([np.zeros(0, np.int32), *ids]), _offsets(sizes)


def _offsets(sizes: Offsets) -> Offsets:
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def _is_refusal(error: BaseException) -> bool:
    """A panic inside the library comes as a BaseException of its own, which it does not export."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _names(tokenizer: TextTokenizer) -> list[str]:
    """Special and other added tokens, some of them."""
    added = json.loads(tokenizer.text).get("added_tokens") or []
    return [str(token["content"]) for token in added[:40]]


def _some(samples: Sequence[str]) -> Iterator[str]:
    room = _GATE_CHARACTERS
    for text in samples:
        if room <= 0:
            return
        yield text[:room]
        room -= len(text)


def _batches(texts: pa.Array | pa.ChunkedArray | Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else texts:
        batch.append(text or "")
        size += len(batch[-1])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
