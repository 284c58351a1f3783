"""What kinds of characters there are, and documents as arrays of characters with their kinds.

Everything that reads words, lines and n-grams works on a Block: documents joined by newlines, each character
one number (one byte where all are ASCII, four bytes where not), so that a rule about neighbours is one
comparison of shifted arrays: 0.03 ns a character on AVX-512. Blocks fit a core's cache; a longer document is
alone in its block.
Cost: a tenth of all signals. Kinds beyond ASCII: one table of 256 Ki entries, 0.05 s once a process.
Sources: spaCy's English tokenizer (spacy/lang/char_classes.py, MIT) for what parts words, datatrove's
utils/text.py (Apache-2.0) for symbols and terminal punctuation; "alphabetic" is Python's str.isalpha.
"""

import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Positions = NDArray[np.int64]
Codes = NDArray[np.uint8] | NDArray[np.uint32]

BLOCK_CHARACTERS = 1 << 18
LONGEST_DOCUMENT = (
    1 << 23
)  # characters: 0.6 GB to measure (65 bytes each); the rest of a longer one is not read

# One bit per kind.
(SPACE, ALPHABETIC, NOT_SYMBOL, DIGIT, LOWER, UPPER, OPENS, CLOSES, BEFORE_DOT, QUOTE, SPLITS, INNER) = (
    1 << bit for bit in range(12)
)
TERMINAL, ENDS_SENTENCE, NOT_PUNCTUATION, BREAKS_LINE = (1 << bit for bit in range(12, 16))
# Signs outside of ASCII that rules name, as one byte each; all others are 0x80.
_NAMED = "’—–…•µ£€¥"

_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉\u2329\u232a⟦⟧"
_STRIPPED = "….,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪".replace(".", "")
_CURRENCIES = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_SYMBOLS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
# Full stops, question and exclamation marks of the scripts of the world (Unicode's Sentence_Terminal).
_ENDS = (
    "!.?։؟۔܀܁܂߹।॥၊။።፧፨᙮᜵᜶᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？"
    "𐩖𐩗𑁇𑁈𑂾𑂿𑃀𑃁𑅁𑅂𑅃𑇅𑇆𑇍𑇞𑇟𑈸𑈹𑈻𑈼𑊩𑑋𑑌𑗂𑗃𑗉𑗊𑗋𑗌𑗍𑗎𑗏𑗐𑗑𑗒𑗓𑗔𑗕𑗖𑗗𑙁𑙂𑜼𑜽𑜾𑩂𑩃𑪛𑪜𑱁𑱂𖩮𖩯𖫵𖬷𖬸𖭄𛲟𝪈｡。"
)
_TERMINALS_TOO = (
    "\u061d\u061e\u0837\u0839\u083d\u083e\u17d4\u17d5\u17d6\u17d9\u17da\u1b7d\u1b7e\u2e53\u2e54"
    "\U00010f55\U00010f56\U00010f57\U00010f58\U00010f59\U00010f86\U00010f87\U00010f88\U00010f89"
    "\U00011944\U00011946\U00011ef7\U00011ef8\U00011f43\U00011f44\U00016e98"
)
_NO_SPACES = [
    (0x0E01, 0x0E30), (0x0E40, 0x0E44), (0x0E81, 0x0EB0), (0x0EC0, 0x0EC4), (0x1000, 0x102A),
    (0x1780, 0x17B3), (0x3005, 0x3007), (0x3041, 0x3096), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFD),
]  # fmt: skip
_TABLE_END = 0x40000  # behind it are tags and private use: like the last of the table


@dataclass(frozen=True)
class Block:
    """Some documents: document r is text[starts[r] : ends[r]]; newlines before, between and behind them."""

    text: str
    codes: Codes
    signs: NDArray[np.uint8]  # ASCII as it is, other characters above 0x7F: see sign()
    kinds: NDArray[np.uint16]
    starts: Positions
    ends: Positions

    def has(self, kind: int) -> Flags:
        """Per character: whether it is of one of these kinds."""
        return (self.kinds & np.uint16(kind)) != 0

    def where(self, character: str) -> Positions:
        """The places of a character, ASCII or named."""
        return places_of(self.signs == sign(character))

    def bounds(self, places: Positions) -> Positions:
        """Where in the sorted `places` each document begins, and where the last one ends."""
        return np.searchsorted(places, np.append(self.starts, self.ends[-1]))

    @staticmethod
    def of(documents: list[str]) -> "Block":
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        text = "\n" * PADDING + "\n".join(documents) + "\n" * PADDING
        # utf-32 knows no lone surrogates, nor does Arrow: none can come.
        if text.isascii():
            codes: Codes
            codes = signs = np.frombuffer(text.encode(), np.uint8)
        else:
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            signs = np.minimum(codes, 0x80).astype(np.uint8)
            others = places_of(signs == 0x80)
            signs[others] = _signs_table().take(codes[others], mode="clip")
        kinds = kinds_table()[:0x81].take(signs, mode="clip")
        if codes is not signs:
            kinds[others] = kinds_table().take(codes[others], mode="clip")
        ends = np.cumsum(lengths + 1) + PADDING - 1
        return Block(text, codes, signs, kinds, ends - lengths, ends)


PADDING = 4  # newlines on both sides of a block: rules look at most so far


def blocks(texts: pa.Array) -> Iterator[Block]:
    """All documents of an array of strings, in order. A null is an empty document."""
    gathered: list[str] = []
    size = 0
    for text in texts:
        document = (text.as_py() or "")[:LONGEST_DOCUMENT]
        if gathered and size + len(document) > BLOCK_CHARACTERS:
            yield Block.of(gathered)
            gathered, size = [], 0
        gathered.append(document)
        size += len(document) + 1
    if gathered:
        yield Block.of(gathered)


def places_of(flags: Flags) -> Positions:
    """np.flatnonzero, three times as fast where few flags are set: eight are looked at in one step."""
    whole = len(flags) // 8 * 8
    eights = np.flatnonzero(np.ascontiguousarray(flags[:whole]).view(np.uint64) != 0)
    if len(eights) * 24 > whole:
        return np.flatnonzero(flags)
    inside = np.flatnonzero(flags[:whole].reshape(-1, 8)[eights])
    places = (eights[inside >> 3] << 3) + (inside & 7)
    return places if whole == len(flags) else np.append(places, np.flatnonzero(flags[whole:]) + whole)


def shifted(flags: Flags, by: int) -> Flags:
    """At each place what stands `by` places before it (behind it, if negative); zeros at the border."""
    if by == 0:
        return flags
    out = np.zeros_like(flags)
    if by > 0:
        out[by:] = flags[:-by]
    else:
        out[:by] = flags[-by:]
    return out


def flood(seeds: Flags, through: Flags, forward: bool = True) -> Flags:
    """All of `through` that is reached from a seed without a gap. Rounds: log2 of the longest run."""
    step = 1 if forward else -1
    reached = seeds & through
    open_run = through
    while reached.any():
        grown = reached | (shifted(reached, step) & open_run)
        if (grown == reached).all():
            break
        reached = grown
        open_run = open_run & shifted(open_run, step)
        step *= 2
        if abs(step) >= len(reached):
            break
    return reached


def sign(character: str) -> int:
    """The byte of a character in Block.signs."""
    return ord(character) if character.isascii() else 0x81 + _NAMED.index(character)


def is_one_of(signs: NDArray[np.uint8], those: str) -> Flags:
    """Which of `signs` are those characters, ASCII or named."""
    table = np.zeros(256, dtype=np.bool_)
    table[[sign(one) for one in those]] = True
    return table.take(signs)


@functools.cache
def _signs_table() -> NDArray[np.uint8]:
    table = np.full(_TABLE_END, 0x80, dtype=np.uint8)
    table[:0x80] = np.arange(0x80)
    for character in _NAMED:
        table[ord(character)] = sign(character)
    return table


@functools.cache
def kinds_table() -> NDArray[np.uint16]:
    """The kinds of every character below _TABLE_END; later ones are like the last."""
    table = np.zeros(_TABLE_END, dtype=np.uint16)
    for code in range(0x20000):
        table[code] = _kinds_of(chr(code))
    table[0x20000:0x3FFFE] = _kinds_of("\U00020000")
    for low, high in _NO_SPACES:
        table[low : high + 1] |= SPLITS
    for characters, kind in [
        (_QUOTES, OPENS | CLOSES | QUOTE | BEFORE_DOT), (_STRIPPED, OPENS | CLOSES | BEFORE_DOT),
        ("—–", OPENS | CLOSES), ("§%=" + _CURRENCIES, OPENS), (":<>=/~–—,+-*^.", INNER),
        ("%²-+(?:)|", BEFORE_DOT), ("…", SPLITS), (_TERMINALS_TOO, TERMINAL),
        (_ENDS, TERMINAL | ENDS_SENTENCE),
        ("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", BREAKS_LINE),
    ]:  # fmt: skip
        table[[ord(character) for character in characters]] |= kind
    symbols = [ord(character) for character in _SYMBOLS + _ENDS + _TERMINALS_TOO]
    table[symbols] &= ~np.uint16(NOT_SYMBOL)
    for low, high in ((0, 32), (127, 160)):
        table[low:high] &= ~np.uint16(NOT_SYMBOL)
    return table


def _kinds_of(character: str) -> int:
    if character.isspace():
        return SPACE
    category = unicodedata.category(character)
    kinds = NOT_SYMBOL
    if character.isalpha():
        lower, upper = character.islower(), character.isupper()
        # A script without cases counts as both, as spaCy has it.
        kinds |= ALPHABETIC | (0 if upper else LOWER | BEFORE_DOT) | (0 if lower else UPPER)
    if "0" <= character <= "9":
        kinds |= DIGIT | BEFORE_DOT
    if category == "So":
        kinds |= OPENS | CLOSES | SPLITS
    if category[0] != "P":
        kinds |= NOT_PUNCTUATION
    return kinds
