"""Where a passage stands in prepared data, and in which steps of a run it is, or was, trained on.

Tokens are searched, not text: those of the passage without its first and last words, which may be cut
otherwise in another neighbourhood. Each find is proven by decoding what stands there. Exact but for white
space; a passage of a word or two is looked for by decoding every document.
Cost: 300 MB/s of tokens on one core; decoding, 5 MB/s.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bessemer.data.mixed_rows import MixedRows
from bessemer.data.mixture import Mixing, Mixture
from bessemer.data.prepared import Prepared, Split
from bessemer.data.tokens.shards import Shard, Tokens
from bessemer.data.tokens.sidecar import read_sidecar
from bessemer.errors import RecipeError

_MOST = 100  # finds that are told
_BLOCK_TOKENS = 1 << 24
_MARGIN_TOKENS = 32  # around a find, for its first and last words


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
    found: list[dict[str, Any]] = []
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        steps = _Steps(prepared, training) if training is not None and split == "train" else None
        for source, stems in enumerate(prepared.stems(split)):
            before = 0  # tokens of the source's earlier shards
            for stem in stems:
                shard = Shard(stem)
                for number, begin, end in _places(shard, wanted, engine):
                    row = read_sidecar(stem).slice(number, 1).to_pylist()[0]
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


def _places(shard: Shard, wanted: str, engine: Tokenizer) -> Iterator[tuple[int, int, int]]:
    """(document, begin, end) of each place: the tokens that hold the passage, and a few around."""
    inner = engine.encode(wanted, add_special_tokens=False).ids[1:-1]
    if len(inner) < 2:
        yield from _by_text(shard, wanted, engine)
        return
    shown = 0
    for place in _matches(shard.tokens, np.array(inner)):
        number = int(np.searchsorted(shard.borders, place, "right")) - 1
        first, last = int(shard.borders[number]), int(shard.borders[number + 1])
        begin, end = max(first, place - _MARGIN_TOKENS), min(last, place + len(inner) + _MARGIN_TOKENS)
        if begin >= shown and wanted in _text(engine, shard.tokens[begin:end]):
            shown = place + len(inner)
            yield number, max(first, place - 1), min(last, place + len(inner) + 1)


def _by_text(shard: Shard, wanted: str, engine: Tokenizer) -> Iterator[tuple[int, int, int]]:
    for number in range(shard.num_documents):
        if wanted in _text(engine, shard.document(number)):
            yield number, int(shard.borders[number]), int(shard.borders[number + 1])


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
        batch_rows=plan["batch_tokens"] // stage["context"],
        steps=plan["steps"],
        mixing=Mixing.from_json(stage["mixture"]),
    )
