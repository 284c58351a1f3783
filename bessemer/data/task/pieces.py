"""A rendered conversation is cut into pieces, each encoded for itself, so that it has tokens of its own.

A text is cut where any answer begins and ends, learnt or not, and so is what a model is asked with: what was
said before has the tokens that it was learnt with. What was spelt (spelt.py) is a piece of letters.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer as Engine

from bessemer.data.tokens.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Piece:
    """What is encoded at once."""

    text: str
    is_first: bool  # of its document
    is_spelt: bool  # a special token that somebody spelt: it stays text


class PieceEncoder:
    def __init__(self, tokenizer: TextTokenizer, definition: dict[str, Any], *, all_special: bool) -> None:
        """definition: tokenizer.json; all_special: what a template writes is known as special to it."""
        self._engine = Engine.from_str(tokenizer.text)  # special tokens are tokens here
        self._engine.no_padding()
        self._engine.no_truncation()
        self._letters = tokenizer.engine if all_special else _without_tokens(definition)
        self._newline, alone, behind = [
            self._engine.encode(text, add_special_tokens=False).ids for text in ("\n", "a b", "\na b")
        ]
        self._puts_blank = alone != behind[len(self._newline) :]

    def encode(self, pieces: Sequence[Piece]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in pieces]
        for spelt, engine in ((False, self._engine), (True, self._letters)):
            places = [place for place, piece in enumerate(pieces) if piece.is_spelt == spelt]
            # Some tokenizers put a blank before whatever text begins; behind a line end it does not begin.
            lines = [self._puts_blank and not pieces[place].is_first for place in places]
            texts = ["\n" * line + pieces[place].text for place, line in zip(places, lines, strict=True)]
            encoded = engine.encode_batch_fast(texts, add_special_tokens=False)
            for place, line, one in zip(places, lines, encoded, strict=True):
                found[place] = self._behind_line(engine, pieces[place].text, one.ids) if line else one.ids
        return found

    def _behind_line(self, engine: Engine, text: str, ids: list[int]) -> list[int]:
        size = len(self._newline)
        if ids[:size] == self._newline:
            return ids[size:]
        return list(engine.encode(text, add_special_tokens=False).ids)


def cut(text: str, borders: set[int], marks: str) -> tuple[list[Piece], dict[int, int]]:
    """(pieces, how many of them stand before each border)."""
    places = sorted({0, len(text), *(place for place in borders if place < len(text))})
    pieces: list[Piece] = []
    counts = {0: 0}
    for begin, end in pairwise(places):
        pieces += _parted(text[begin:end], marks, is_first=begin == 0)
        counts[end] = len(pieces)
    return pieces, counts


def _parted(text: str, marks: str, *, is_first: bool) -> list[Piece]:
    """What stands between the two marks apart from the rest."""
    parts = re.split(f"{marks[0]}(.*?){marks[1]}", text, flags=re.DOTALL) if marks else [text]
    pieces = []
    for number, part in enumerate(parts):
        # A template may have taken a text apart between the two: a lone mark is dropped.
        whole = part.replace(marks[0], "").replace(marks[1], "") if marks else part
        if whole:
            pieces.append(Piece(whole, is_first and number == 0, number % 2 == 1))
    return pieces


def _without_tokens(definition: dict[str, Any]) -> Engine:
    """The tokenizer, to which every added token's name is text: those that are not special as well."""
    added = [{**token, "special": True} for token in definition["added_tokens"]]
    engine = Engine.from_str(json.dumps({**definition, "added_tokens": added}))
    engine.encode_special_tokens = True
    engine.no_padding()
    engine.no_truncation()
    return engine
