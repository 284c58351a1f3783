r"""Unicode and white space of documents made uniform, and nothing that a reader would miss taken away.

Of text:
- line ends: CRLF, CR, form feed and vertical tab become LF;
- canonical composition (NFC): "e" with a combining accent becomes "é"; nothing is folded (no NFKC: x² stays);
- no-break space (U+00A0) becomes a space;
- removed: control characters but TAB and LF (C0, DEL, C1), terminal colours, what a backspace overstrikes,
  byte order marks and word joiners (U+FEFF, U+2060), soft hyphens inside a word (at a line's end they stay:
  there they say that the word goes on), zero-width spaces (U+200B) but between letters of Thai, Lao, Burmese
  and Khmer, where they part words;
- spaces and tabs at the end of a line are removed; more than two empty lines in a row become two. Kept:
  indentation, blanks inside a line, joiners and variation selectors (Persian, Indic scripts, emoji), marks of
  direction (Arabic, Hebrew), typographic quotes and spaces, private use.
Of code: CRLF and CR become LF, no more. Form feeds, tabs, trailing blanks and escapes in literals may mean
something.

A second time changes nothing. A document that stays as it is costs a look at its bytes (350 to 500 MB/CPU-s);
one that may change is worked on alone (about 50 MB/CPU-s).
"""

import functools
import re
import unicodedata
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bessemer.data.clean.buffers import Buffers, Bytes, Positions

_BLOCK_BYTES = 1 << 17  # with its masks it stays in a core's cache
_LF, _TAB, _SPACE, _DEL = 10, 9, 32, 127

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[@-~]")  # terminal colours and the like
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\u2060]+")
_ASCII_CONTROLS = bytes((*range(0x09), *range(0x0E, 0x20), 0x7F))
_PARTS_WORDS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_ZERO_WIDTH = re.compile(f"(?<=[{_PARTS_WORDS}])(\u200b)\u200b*(?=[{_PARTS_WORDS}])|\u200b+")
_SOFT_HYPHENS = re.compile("(?<=\\w)\u00ad+(?=\\w)")
_EMPTY_LINES = re.compile(r"\n{4,}")
_REMOVED = [*range(0x80, 0xA1), 0xAD, 0x200B, 0x2060, 0xFEFF]
_TABLE_END = 0x20000  # behind it are rare Han and private use: looked at one by one


def normal_text(texts: pa.Array, kind: Literal["text", "code"] = "text") -> pa.Array:
    """As the head of this module says. The very array that was given where nothing changes."""
    buffers = Buffers.of(texts)
    suspects = _with_returns(buffers) if kind == "code" else _suspects(buffers)
    mend = code_text if kind == "code" else plain_text
    changed = {}
    for row in suspects.tolist():
        before = texts[row].as_py()
        after = mend(before)
        if after != before:
            changed[row] = after
    if not changed:
        return texts
    mask = np.zeros(len(texts), dtype=bool)
    mask[list(changed)] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(list(changed.values()), texts.type))


def code_text(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def plain_text(text: str) -> str:
    """One text. Again until nothing changes: what was apart may now compose or overstrike."""
    while True:
        before = text
        text = lines = code_text(text).replace("\f", "\n").replace("\v", "\n").replace("\xa0", " ")
        # Most texts have none of these, and a character is found 20 times as fast as an expression.
        if "\x1b" in text:
            text = _ESCAPES.sub("", text)
        if "\b" in text:
            text = _without_overstruck(text)
        if text.isascii():
            text = text.encode().translate(None, _ASCII_CONTROLS).decode()  # ten times as fast
        else:
            text = _CONTROLS.sub("", text)
            text = unicodedata.normalize("NFC", text)
            if "\u200b" in text:
                text = _ZERO_WIDTH.sub(r"\1", text)
            if "\xad" in text:
                text = _SOFT_HYPHENS.sub("", text)
        is_last = text == lines  # all that follows leaves nothing to do, here or above
        if " \n" in text or "\t\n" in text or text[-1:] in (" ", "\t"):
            text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
        if "\n\n\n\n" in text:
            text = _EMPTY_LINES.sub("\n\n\n", text)
        if is_last or text == before:
            return text


def _without_overstruck(text: str) -> str:
    r"""As a printer leaves it: "N\bN" is a bold N, "_\bN" an underlined one. One pass."""
    kept: list[str] = []
    for character in text:
        if character != "\b":
            kept.append(character)
        elif kept and kept[-1] != "\n":
            kept.pop()
    return "".join(kept)


def _with_returns(buffers: Buffers) -> Positions:
    return np.unique(buffers.rows_of(np.flatnonzero(buffers.data == 13)))


def _suspects(buffers: Buffers) -> Positions:
    """Rows of which something may change: all that do, and few that do not."""
    data, starts = buffers.data, buffers.starts
    found, feeds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(data), _BLOCK_BYTES):
        # Three bytes more on either side: what is looked for may lie across the border.
        begin = max(first - 3, 0)
        block = data[begin : first + _BLOCK_BYTES + 3]
        found.append(np.flatnonzero(_suspicious(block)) + begin)
        feeds.append(_four_feeds(block) + begin)
        if not block.tobytes().isascii():
            found.append(_suspicious_characters(block) + begin)
    lasts = starts[1:][starts[1:] > starts[:-1]] - 1
    found.append(lasts[(data[lasts] == _SPACE) | (data[lasts] == _TAB)])
    four = np.concatenate(feeds)
    found.append(four[buffers.rows_of(four) == buffers.rows_of(four + 3)])
    return np.unique(buffers.rows_of(np.concatenate(found)))


def _suspicious(block: Bytes) -> NDArray[np.bool_]:
    """Controls, and blanks before a line's end."""
    is_end = block == _LF
    is_blank = block == _TAB
    marks = (block < _SPACE) & ~(is_end | is_blank)
    marks |= block == _DEL
    is_blank |= block == _SPACE
    marks[:-1] |= is_blank[:-1] & is_end[1:]
    return marks


def _four_feeds(block: Bytes) -> Positions:
    is_end = block == _LF
    pairs = is_end[:-1] & is_end[1:]
    return np.flatnonzero(pairs[:-2] & pairs[2:])


def _suspicious_characters(block: Bytes) -> Positions:
    """Places of characters that are not ASCII and that may change. A last one cut off is the next block's."""
    may_change, may_lead = _changing()
    places = np.flatnonzero(may_lead[block])
    lead = block[places].astype(np.int64)
    second, third, fourth = (
        block[np.minimum(places + byte, len(block) - 1)].astype(np.int64) & 0x3F for byte in (1, 2, 3)
    )
    three = second << 6 | third
    codes = np.where(lead < 0xE0, (lead & 0x1F) << 6 | second, (lead & 0x0F) << 12 | three)
    codes = np.where(lead < 0xF0, codes, (lead & 0x07) << 18 | three << 6 | fourth)
    return places[may_change[np.minimum(codes, _TABLE_END)]]


@functools.cache
def _changing() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(characters that may change, alone or by what stands before; their first bytes). 20 ms a process."""
    may_change, may_lead = np.zeros(_TABLE_END + 1, dtype=bool), np.zeros(256, dtype=bool)
    may_change[_REMOVED] = True
    may_change[0x1161:0x1176] = may_change[0x11A8:0x11C3] = True  # vowels and finals of Hangul syllables
    may_change[_TABLE_END] = True
    for code in range(0x80, _TABLE_END):
        character = chr(code)
        if unicodedata.combining(character) or not unicodedata.is_normalized("NFC", character):
            may_change[code] = True
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and parts[0][0] != "<":
            may_change[int(parts[1], 16)] = True
    for code in [*np.flatnonzero(may_change[0x80:_TABLE_END]) + 0x80]:
        may_lead[chr(code).encode("utf-8", "surrogatepass")[0]] = True
    may_lead[0xF0:] = True
    return may_change, may_lead
