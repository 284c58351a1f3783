"""Where the words of a block of documents begin and end: the words that Gopher's and FineWeb's rules count.

Words are those of spaCy's English tokenizer, which datatrove's filters use: parted at white space; brackets,
quotes, marks and symbols at either end are words of their own; inside, some characters part words by their
neighbours (a-b, a/b, a=b, "end.Next"), and n't, 's, 're, units behind digits are cut off.
Where the rule of spaCy is a list (contractions, abbreviations), here it is the pattern of the list's entries.
Scripts written without spaces (Han, hiragana, Thai, Lao, Khmer, Burmese) do not wait for white space: each
character that can begin a syllable begins a word. Gopher's lengths of words are for languages with spaces.
Of 938,000 words of man pages, HTML and sources 227 are not parted that spaCy parts; scripts without spaces
aside, 288 the other way. Cost: 40 MB/CPU-s.
Source: spacy/lang/punctuation.py and en/tokenizer_exceptions.py (MIT).
"""

import functools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bessemer.data.clean import characters
from bessemer.data.clean.characters import Block, Flags, Positions, flood, is_one_of, places_of, shifted

_FACES = {
    ":": ")]}(/|*>3PpOo0XxD1", "=": ")](}[/|3D", ";": ")D", ")": ":", "(": ":;=", "[": ":=", "]": "=",
    "<": "3", "'": "'",
}  # fmt: skip
_BEHIND_NUMBER = "%+$£€¥"
_LONGEST_ADDRESS = 2048  # characters: the expression goes back and forth in longer ones
_ADDRESS = re.compile(
    r"(?:[\w+.-]{2,}://)?(?:\S+@)?"  # scheme, user
    r"(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{0,62})?[A-Za-z0-9\u00a1-\uffff]\.)+"
    r"[a-z\u00df-\uffff]{2,63}"  # domain
    r"(?::\d{2,5})?(?:[/?#]\S*)?"  # port, path
)


@dataclass(frozen=True)
class Words:
    starts: Positions  # of every word of the block, in order
    ends: Positions  # exclusive
    bounds: Positions  # of each document's first word, and of the end of the last document's words

    @property
    def lengths(self) -> Positions:
        return self.ends - self.starts

    @property
    def counts(self) -> Positions:
        return np.diff(self.bounds)

    def kinds(self, block: Block) -> NDArray[np.uint16]:
        """Of each word, the kinds that any of its characters has."""
        if not len(self.starts):
            return np.zeros(0, dtype=np.uint16)
        # What lies between words is white space, whose kinds say nothing of words.
        return np.bitwise_or.reduceat(block.kinds, self.starts)


def words(block: Block) -> Words:
    solid = ~block.has(characters.SPACE)
    begins = _begins(block, solid)
    starts = places_of(begins)
    ends = places_of(solid & (shifted(begins, -1) | ~shifted(solid, -1))) + 1
    return Words(starts, ends, block.bounds(starts))


def _begins(block: Block, solid: Flags) -> Flags:
    """Per character: whether a word begins with it."""
    dot = block.signs == ord(".")
    dots = dot & (shifted(dot, 1) | shifted(dot, -1))
    edge = ~shifted(solid, 1)
    front = flood(solid & edge, _opens(block) | dots)
    back = flood(solid & ~shifted(solid, -1), _closes(block, places_of(dot & ~dots)) | dots, forward=False)
    core = solid & ~front & ~back
    inner, dashes = _parts(block, core)
    alone = front | back | dots | block.has(characters.SPLITS)
    alone[_without_addresses(block, core, inner)] = True
    begins = alone | shifted(alone, 1) | edge
    begins[_cut_off(block, core)] = True
    begins[dashes] = False
    # Dots in a row are one word wherever they stand.
    begins &= solid & ~(dots & shifted(dots, 1))
    begins[_faces(block, begins, solid)] = False
    return begins


def _opens(block: Block) -> Flags:
    """What is a word of its own in front of a word."""
    opens = block.has(characters.OPENS)
    plus = block.where("+")
    opens[plus] = (block.kinds[plus + 1] & characters.DIGIT) == 0
    return opens


def _closes(block: Block, dots: Positions) -> Flags:
    """What is a word of its own behind a word. dots: those that stand alone."""
    kinds, signs = block.kinds, block.signs
    closes = block.has(characters.CLOSES)
    digits = shifted(block.has(characters.DIGIT), 1)
    amounts = places_of(digits & ~shifted(digits, -1))
    amounts = amounts[is_one_of(signs[amounts], _BEHIND_NUMBER)]
    closes[amounts] = True
    capitals = kinds[dots - 1] & kinds[dots - 2] & characters.UPPER
    ends_word = ((kinds[dots - 1] & characters.BEFORE_DOT) | capitals) != 0
    # "a." and "e.g." keep their dot.
    letter = (signs[dots - 1] >= ord("a")) & (signs[dots - 1] <= ord("z"))
    outside = characters.SPACE | characters.OPENS
    short = (kinds[dots - 2] & outside) != 0
    pair = (signs[dots - 2] == ord(".")) & ((kinds[dots - 3] & characters.LOWER) != 0)
    short |= pair & ((kinds[dots - 4] & outside) != 0)
    closes[dots] = ends_word & ~(letter & short)
    return closes


def _parts(block: Block, core: Flags) -> tuple[Positions, Positions]:
    """Characters inside of words that part them, by what stands before and behind; and which go on a dash."""
    places = places_of(core & block.has(characters.INNER))
    signs, before, behind = (
        block.signs[places],
        *(block.kinds[places + by] * core[places + by] for by in (-1, 1)),
    )
    letter, digit, quote = characters.ALPHABETIC, characters.DIGIT, characters.QUOTE
    found = is_one_of(signs, ":<>=/~–—-") & ((before & (letter | digit)) != 0) & ((behind & letter) != 0)
    found &= ~((signs == ord("/")) & _is_and_or(block.signs, places))
    found |= (signs == ord(",")) & ((before & behind & letter) != 0)
    dash_behind = (block.signs[places + 1] == ord("-")) & core[places + 1]
    found |= is_one_of(signs, "+-*^") & ((before & digit) != 0) & (((behind & digit) != 0) | dash_behind)
    found |= (
        (signs == ord("."))
        & ((before & (characters.LOWER | quote)) != 0)
        & ((behind & (characters.UPPER | quote)) != 0)
    )
    first = places[(signs == ord("-")) & dash_behind & ((before & (letter | digit)) != 0)]
    length = 2 + (block.signs[first + 2] == ord("-"))
    is_dash = (block.kinds[first + length] * core[first + length] & letter) != 0
    first, length = first[is_dash], length[is_dash]
    goes_on = np.concatenate((first + 1, first[length == 3] + 2))
    return np.concatenate((places[found], first, goes_on)), goes_on


def _is_and_or(signs: NDArray[np.uint8], places: Positions) -> Flags:
    """Whether the slashes are those of "and/or", which is one word."""
    spelled = np.ones(len(places), dtype=np.bool_)
    for by, letter in ((-3, "a"), (-2, "n"), (-1, "d"), (1, "o"), (2, "r")):
        spelled &= signs[places + by] == ord(letter)
    return spelled


def _without_addresses(block: Block, core: Flags, inner: Positions) -> Positions:
    """`inner` without the places in addresses such as https://a-b.org/c or a-b@c.org, which nothing parts."""
    dots = block.where(".")
    kinds = block.kinds
    named = (kinds[dots + 1] & kinds[dots + 2] & characters.LOWER) != 0
    dots = dots[named & ((kinds[dots - 1] & (characters.OPENS | characters.SPACE)) == 0)]
    if not len(dots) or not len(inner):
        return inner
    borders = places_of(core[1:] != core[:-1]) + 1  # where cores begin and end, in turn
    owners = np.searchsorted(borders, inner, side="right")
    parted = np.zeros(len(borders) + 1, dtype=np.bool_)
    parted[owners] = True
    dotted = np.unique(np.searchsorted(borders, dots, side="right"))
    suspects = dotted[parted[dotted]]
    spans = zip(suspects.tolist(), borders[suspects - 1].tolist(), borders[suspects].tolist(), strict=True)
    is_address = np.zeros(len(borders) + 1, dtype=np.bool_)
    for suspect, start, end in spans:
        is_address[suspect] = end - start <= _LONGEST_ADDRESS and _ADDRESS.fullmatch(block.text, start, end)
    return inner[~is_address[owners]]


def _cut_off(block: Block, core: Flags) -> Positions:
    """Where the n't, 's, 're of a word, the unit behind a number and the "not" of "cannot" begin."""
    signs, found = block.signs, []
    last = core & ~shifted(core, -1)
    places = places_of(((signs == ord("'")) | (signs == characters.sign("’"))) & core)
    places = places[core[places - 1]]
    one, two = last[places + 1], last[places + 2] & ~last[places + 1]
    found.append(places[one & is_one_of(signs[places + 1], "smdS")])
    for first, second in ("ll", "re", "ve"):
        found.append(places[two & (signs[places + 1] == ord(first)) & (signs[places + 2] == ord(second))])
    found.append(
        places[one & (signs[places + 1] == ord("t")) & (signs[places - 1] == ord("n")) & core[places - 2]] - 1
    )
    numbers = block.has(characters.DIGIT) & core
    units = places_of(numbers & shifted(block.has(characters.ALPHABETIC) & core, -1)) + 1
    found.append(units[last[units] & is_one_of(signs[units], "mgtTGMK")])
    for firsts, seconds in (("kcdmnµ", "m"), ("kmµ", "g"), ("kmMgGtT", "bB")):
        is_unit = is_one_of(signs[units], firsts) & is_one_of(signs[units + 1], seconds) & last[units + 1]
        found.append(units[is_unit & ~last[units]])
    places = places_of((signs == ord("n")) & shifted(signs == ord("n"), -1))
    for by, letter in ((-1, "a"), (2, "o"), (3, "t")):
        places = places[signs[places + by] == ord(letter)]
    found.append(places[is_one_of(signs[places - 2], "cC") & ~core[places - 3] & last[places + 3]] + 1)
    return np.concatenate(found)


def _faces(block: Block, begins: Flags, solid: Flags) -> Positions:
    """The second of two marks that spaCy takes for a face, as in "f(x):"; they are one word."""
    single = begins & (shifted(begins, -1) | ~shifted(solid, -1))
    pairs = places_of(single & shifted(single, -1))
    found = _faces_table()[block.signs[pairs], block.signs[pairs + 1]]
    pairs = pairs[found]
    return pairs[np.diff(pairs, prepend=-2) > 1] + 1


@functools.cache
def _faces_table() -> Flags:
    table = np.zeros((256, 256), dtype=np.bool_)
    for first, seconds in _FACES.items():
        table[ord(first), [ord(second) for second in seconds]] = True
    return table
