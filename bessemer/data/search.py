"""Where a passage stands in prepared data, and in which steps of a run it is, or was, trained on.

Tokens are searched, not text: those of a few words of the passage at a time, without the first and the last,
which may be cut otherwise in another neighbourhood. Each find is proven by decoding what stands there. Exact
but for white space; not found are passages with a line break every few words, and of fewer than ten words
those that hold several, or an indented line. One of a few words is looked for by decoding every document.
Cost: 100 MB of tokens in 0.1 to 0.4 s on one core; decoding, 5 MB/s.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bessemer.data.mixed_rows import MixedRows
from bessemer.data.mixture import Mixing, Mixture
from bessemer.data.prepared import Prepared, Split
from bessemer.data.tokens.shards import Shard, Tokens
from bessemer.data.tokens.sidecar import read_row
from bessemer.errors import RecipeError

_MOST = 100  # finds that are told
_BLOCK_TOKENS = 1 << 24
_MARGIN_TOKENS = 32  # around a find, for white space
_PIECE_WORDS = 5


@dataclass(frozen=True)
class Training:
    """What a run reads of the data, and when."""

    context: int
    seed: int
    batch_rows: int
    steps: int
    mixing: Mixing


def search(prepared: Prepared, text: str, training: Training | None) -> dict[str, Any]:
    """Every place of the passage, in the order of the shards, as JSON; with a run, the steps that read it."""
    wanted = " ".join(text.split())
    if not wanted:
        raise RecipeError("the passage is empty", found=repr(text), wanted="some words", fix='"a few words"')
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    engine.encode_special_tokens = True  # a special token's name inside a text is text
    found: list[dict[str, Any]] = []
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        steps = _Steps(prepared, training) if training is not None and split == "train" else None
        for source, stems in enumerate(prepared.stems(split)):
            before = 0  # tokens of the source's earlier shards
            for stem in stems:
                shard = Shard(stem)
                for number, begin, end in _places(shard, wanted, engine):
                    row = read_row(stem, number)
                    place = {"split": split, "shard": str(stem), "document": number, "token": begin}
                    read = steps.of(source, before + begin, before + end) if steps is not None else None
                    known = {name: row[name] for name in ("source", "id", "origin", "licence")}
                    found.append({**known, **place, "steps": read})
                    if len(found) == _MOST:
                        return {"text": wanted, "found": found, "complete": False}
                before += len(shard.tokens)
    return {"text": wanted, "found": found, "complete": True}


class _Steps:
    """Which steps of a run read a stretch of a source's tokens."""

    def __init__(self, prepared: Prepared, training: Training) -> None:
        self._training = training
        self._rows: MixedRows = prepared.rows("train", training.context)
        self._mixture = Mixture(training.mixing.kept)

    def of(self, source: int, begin: int, end: int) -> list[int]:
        training = self._training
        rows = range(begin // training.context, (end - 1) // training.context + 1)
        before = training.steps * training.batch_rows
        positions = [
            position
            for row in rows
            for position in self._rows.positions(self._mixture, training.seed, source, row, before)
        ]
        return sorted({position // training.batch_rows + 1 for position in positions})


def _places(shard: Shard, wanted: str, engine: Tokenizer) -> list[tuple[int, int, int]]:
    """(document, begin, end) of each place, in their order: no more tokens than hold the passage."""
    found: set[tuple[int, int, int]] = set()
    for number, begin, end, place in _candidates(shard, wanted, engine):
        if any(known[1] <= place < known[2] for known in found):
            continue
        while (narrow := _narrowed(shard.tokens, begin, end, wanted, engine)) is not None:
            found.add((number, *narrow))
            begin = narrow[0] + 1
            if len(found) == _MOST:
                return sorted(found)
    return sorted(found)


def _candidates(shard: Shard, wanted: str, engine: Tokenizer) -> Iterator[tuple[int, int, int, int]]:
    """(document, begin, end, a token inside) of stretches of tokens that may hold the passage."""
    reach = len(wanted.encode()) + _MARGIN_TOKENS  # a token is a byte or more
    for text in _pieces(wanted):
        inner = _inner(engine, text)
        if len(inner) < 2:
            borders = shard.borders.tolist()
            yield from ((number, *place, -1) for number, place in enumerate(pairwise(borders)))
            return
        for place in _matches(shard.tokens, np.array(inner)):
            number = int(np.searchsorted(shard.borders, place, "right")) - 1
            first, last = int(shard.borders[number]), int(shard.borders[number + 1])
            yield number, max(first, place - reach), min(last, place + reach), place


def _pieces(wanted: str) -> list[str]:
    """Texts of which one at least has the tokens that the passage has, also where a line breaks inside it.

    Of a long one some piece is free of breaks; in a short one, any one word may begin a line.
    """
    words = wanted.split(" ")
    if len(words) >= 2 * _PIECE_WORDS:
        cuts = range(0, len(words) - _PIECE_WORDS + 1, _PIECE_WORDS)
        return [" ".join(words[begin:end]) for begin, end in pairwise([*cuts, len(words)])]
    places = range(1, len(words))
    return [wanted, *(" ".join(words[:k]) + "\n" + " ".join(words[k:]) for k in places)]


def _inner(engine: Tokenizer, text: str) -> list[int]:
    """Its tokens but for those of the first and the last word."""
    words = text.split()
    begin, end = len(words[0]), len(text) - len(words[-1]) - 1
    try:
        encoded = engine.encode(text, add_special_tokens=False)
    except Exception:  # the library raises bare Exception for a word that the tokenizer does not know
        return []
    places = zip(encoded.ids, encoded.offsets, strict=True)
    return [token for token, (first, last) in places if first >= begin and last <= end]


def _narrowed(tokens: Tokens, begin: int, end: int, wanted: str, engine: Tokenizer) -> tuple[int, int] | None:
    """The first place of the passage inside these tokens, by bisection; None: it is not there."""

    def holds(first: int, last: int) -> bool:
        return wanted in _text(engine, tokens[first:last])

    if not holds(begin, end):
        return None
    least = bisect_left(range(begin, end), True, key=lambda last: holds(begin, last + 1))
    end = begin + least + 1
    most = bisect_left(range(begin, end), True, key=lambda first: not holds(first, end))
    return begin + most - 1, end


def _matches(tokens: Tokens, wanted: Tokens) -> Iterator[int]:
    """Where `wanted` begins."""
    for begin in range(0, len(tokens), _BLOCK_TOKENS):
        block = tokens[begin : begin + _BLOCK_TOKENS + len(wanted) - 1]
        starts = np.flatnonzero(block[: len(block) - len(wanted) + 1] == wanted[0])
        for place, token in enumerate(wanted[1:].tolist(), 1):
            starts = starts[block[starts + place] == token]
        yield from (begin + starts).tolist()


def _text(engine: Tokenizer, tokens: Tokens) -> str:
    return " ".join(str(engine.decode(tokens.tolist())).split())


def training_of(stage: dict[str, Any]) -> Training:
    """Of a stage.json."""
    plan = stage["plan"]
    return Training(
        context=stage["context"],
        seed=stage["seed"],
        batch_rows=plan["batch_rows"],
        steps=plan["steps"],
        mixing=Mixing.from_json(stage["mixture"]),
    )
