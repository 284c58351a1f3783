"""What the rules measure in lines and paragraphs: repeated ones, short ones, how they begin and end, C4's.

Three notions of a line, as datatrove's filters have them: str.splitlines for Gopher's bullets and C4, runs of
newlines between lines for Gopher's repetitions, single newlines for FineWeb (empty lines left out).
Cost: a sixth of all signals. Sources: arXiv:2112.11446 table A1, arXiv:1910.10683 section 2.2,
arXiv:2406.17557 section 3.6; datatrove's filters (Apache-2.0) for what the papers leave open.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bessemer.data.clean import c4, characters
from bessemer.data.clean.characters import Block, Flags, Positions, is_one_of, places_of, shifted
from bessemer.data.clean.spans import SpanHashes, repeated_keys, within_documents
from bessemer.data.clean.words import Words, words

Counts = NDArray[np.int64]
_NO_LINE, _KEPT = -1, 0
_NAMED: dict[str, int] = {"lorem_ipsum": 1, "curly_bracket": 2, "javascript": 3, "policy": 4}
SHORT_LINE = 30  # characters; FineWeb's short_line_length


@dataclass(frozen=True)
class Lines:
    """Spans of a block, in order, and the document of each."""

    starts: Positions
    ends: Positions
    documents: Positions

    def only(self, which: Flags | Positions) -> "Lines":
        return Lines(self.starts[which], self.ends[which], self.documents[which])

    def count(self, num_documents: int) -> Counts:
        return np.bincount(self.documents, minlength=num_documents)

    def size(self, num_documents: int) -> Counts:
        """Characters in the lines of each document."""
        weights = self.ends - self.starts
        return np.bincount(self.documents, weights, minlength=num_documents).astype(np.int64)


@dataclass(frozen=True)
class Chunks:
    """Stretches without white space: what str.split finds."""

    starts: Positions
    ends: Positions

    @staticmethod
    def of(block: Block) -> "Chunks":
        solid = ~block.has(characters.SPACE)
        borders = np.flatnonzero(solid[1:] != solid[:-1]) + 1  # a block begins and ends with white space
        return Chunks(borders[0::2], borders[1::2])

    def within(self, lines: Lines) -> tuple[Positions, Positions]:
        """Per line the first chunk, and the one behind the last."""
        return np.searchsorted(self.starts, lines.starts), np.searchsorted(self.starts, lines.ends)


def newline_lines(block: Block) -> Lines:
    """Parted at each newline; so an empty document is one empty line."""
    newlines = block.where("\n")
    starts, ends = newlines[:-1] + 1, newlines[1:]
    inside = (starts >= block.starts[0]) & (ends <= block.ends[-1])
    return _owned(block, starts[inside], ends[inside])


def text_lines(block: Block, by_newline: Lines) -> Lines:
    """Parted as str.splitlines does, but for carriage returns that it takes off the ends of lines."""
    breaks = block.has(characters.BREAKS_LINE)
    breaks[(block.signs == ord("\r")) & shifted(block.signs == ord("\n"), -1)] = False
    places = places_of(breaks)
    lines = by_newline
    if len(places) != len(block.where("\n")):
        starts, ends = places[:-1] + 1, places[1:]
        inside = (starts >= block.starts[0]) & (ends <= block.ends[-1])
        lines = _owned(block, starts[inside], ends[inside])
    # Behind the last newline of a document there is no line.
    return lines.only((lines.starts < lines.ends) | (lines.ends < block.ends[lines.documents]))


def repetition_counts(block: Block, lines: Lines, chunks: Chunks, hashes: SpanHashes) -> dict[str, Counts]:
    """Gopher's and FineWeb's repeated lines and paragraphs, in number and size. lines: newline_lines."""
    num = len(block.starts)
    first, behind = chunks.within(lines)
    filled = np.flatnonzero(lines.starts < lines.ends)
    full, is_written = lines.only(filled), (first < behind)[filled]
    later = _later(full, hashes)
    # Newlines at the beginning and the end leave an empty line each; the second one is a repetition.
    newline = block.codes == ord("\n")
    is_empty = block.starts == block.ends
    leading, trailing = newline[block.starts] & ~is_empty, newline[block.ends - 1] & ~is_empty
    written, paragraphs = full.only(is_written), _paragraphs(lines, chunks, first, behind)
    later_paragraphs = _later(paragraphs, hashes)
    short = written.ends - written.starts <= SHORT_LINE
    ended = (block.kinds[written.ends - 1] & characters.TERMINAL) != 0
    return {
        "newlines": lines.count(num) - 1,
        "lines": full.count(num) + leading + trailing,
        "repeated_lines": full.only(later).count(num) + (leading & trailing),
        "repeated_line_characters": full.only(later).size(num),
        "written_lines": written.count(num),
        "repeated_written_characters": full.only(later & is_written).size(num),
        "short_lines": written.only(short).count(num),
        "ended_lines": written.only(ended).count(num),
        "paragraphs": np.maximum(paragraphs.count(num), 1),
        "repeated_paragraphs": paragraphs.only(later_paragraphs).count(num),
        "repeated_paragraph_characters": paragraphs.only(later_paragraphs).size(num),
    }


def edge_counts(block: Block, lines: Lines, chunks: Chunks) -> dict[str, Counts]:
    """Gopher's lines that begin with a bullet or end with an ellipsis. lines: text_lines."""
    num, signs = len(block.starts), block.signs
    first, behind = chunks.within(lines)
    written = np.flatnonzero(first < behind)
    documents = lines.documents[written]
    begins = chunks.starts[first[written]]
    bullet = is_one_of(signs[begins], "•-")
    ellipsis = _ends_in_dots(signs, chunks.ends[behind[written] - 1])
    return {
        "text_lines": np.bincount(lines.documents, minlength=num),
        "bullet_lines": np.bincount(documents[bullet], minlength=num),
        "ellipsis_lines": np.bincount(documents[ellipsis], minlength=num),
    }


def c4_counts(
    block: Block, lines: Lines, chunks: Chunks, found: Words, kinds: NDArray[np.uint16]
) -> dict[str, Counts]:
    """Lines that C4's rules for whole lines name, and sentences in those kept. lines: text_lines.

    kinds: of each word, those of all its characters.
    """
    num = len(block.starts)
    verdicts, odd = _verdicts(block, lines, chunks)
    kept = lines.only(verdicts == _KEPT)
    counts = np.bincount(kept.documents, _sentences(kept, found, kinds), minlength=num).astype(np.int64)
    if odd:  # lines without their citations: documents of one line each
        cleaned = Block.of([line for _, line in odd])
        of_cleaned = words(cleaned)
        each = Lines(cleaned.starts, cleaned.ends, np.arange(len(odd)))
        sentences = _sentences(each, of_cleaned, of_cleaned.kinds(cleaned))
        np.add.at(counts, lines.documents[[number for number, _ in odd]], sentences)
    named = {f"c4_{name}": lines.only(verdicts == verdict).count(num) for name, verdict in _NAMED.items()}
    return {"c4_sentences": counts, **named}


def _owned(block: Block, starts: Positions, ends: Positions) -> Lines:
    sizes = np.diff(np.append(np.searchsorted(starts, block.starts), len(starts)))
    return Lines(starts, ends, np.repeat(np.arange(len(block.starts)), sizes))


def _later(spans: Lines, hashes: SpanHashes) -> Flags:
    """Which spans their document has had before."""
    later = np.zeros(len(spans.starts), dtype=np.bool_)
    later[repeated_keys(within_documents(hashes.of(spans.starts, spans.ends), spans.documents)).later] = True
    return later


def _paragraphs(lines: Lines, chunks: Chunks, first: Positions, behind: Positions) -> Lines:
    """What two newlines or more part, when white space around the document is gone.

    first, behind: of each line, its first chunk and the one behind its last.
    """
    written = np.flatnonzero(first < behind)
    if not len(written):
        return lines.only(written)
    owners = lines.documents[written]
    begins = np.flatnonzero(np.diff(owners, prepend=-1))  # the first written line of each document
    stops = np.append(begins[1:], len(written)) - 1
    inside = np.zeros(len(lines.starts) + 1, dtype=np.int64)
    np.add.at(inside, written[begins], 1)
    np.add.at(inside, written[stops] + 1, -1)
    places = np.flatnonzero((np.cumsum(inside[:-1]) > 0) & (lines.starts < lines.ends))
    starts, ends = lines.starts.copy(), lines.ends.copy()
    starts[written[begins]] = chunks.starts[first[written[begins]]]
    ends[written[stops]] = chunks.ends[behind[written[stops]] - 1]
    documents = lines.documents[places]
    new = (np.diff(places, prepend=-2) > 1) | (np.diff(documents, prepend=-1) != 0)
    heads = np.flatnonzero(new)
    tails = np.append(heads[1:], len(places)) - 1
    return Lines(starts[places[heads]], ends[places[tails]], documents[heads])


def _ends_in_dots(signs: NDArray[np.uint8], ends: Positions) -> Flags:
    """Whether "..." or "…" stands before each of these places."""
    dots: Flags = signs[ends - 1] == ord(".")
    for by in (2, 3):
        dots &= signs[ends - by] == ord(".")
    return dots | is_one_of(signs[ends - 1], "…")


def _verdicts(block: Block, lines: Lines, chunks: Chunks) -> tuple[NDArray[np.int8], list[tuple[int, str]]]:
    """C4's verdict on each line; and of lines with citations that are kept, the number and what is left."""
    first, behind = chunks.within(lines)
    verdicts = np.full(len(lines.starts), _NO_LINE, dtype=np.int8)
    enough = np.flatnonzero(behind - first >= c4.FEWEST_WORDS)
    ends = chunks.ends[behind[enough] - 1]
    ellipsis = _ends_in_dots(block.signs, ends) & (block.signs[ends - 1] == ord("."))
    verdicts[enough[is_one_of(block.signs[ends - 1], "".join(c4.ENDS)) & ~ellipsis]] = _KEPT
    too_long = chunks.starts[chunks.ends - chunks.starts > c4.LONGEST_WORD]
    verdicts[_lines_at(lines, too_long)] = _NO_LINE
    _apply_phrases(block, lines, verdicts)
    brackets = block.where("[")
    brackets = brackets[is_one_of(block.signs[brackets + 1], "0123456789]ec")]
    odd = []
    for number in np.unique(_lines_at(lines, brackets)).tolist():
        line, verdict = c4.judge(block.text[lines.starts[number] : lines.ends[number]])
        verdicts[number] = _NAMED.get(verdict, _NO_LINE)
        if verdict == "kept":
            odd.append((number, line))
    return verdicts, odd


def _apply_phrases(block: Block, lines: Lines, verdicts: NDArray[np.int8]) -> None:
    """Kept lines that name something get its verdict; the first rule of c4.judge is applied last."""
    kept = np.flatnonzero(verdicts == _KEPT)
    spans = zip(lines.starts[kept].tolist(), lines.ends[kept].tolist(), strict=True)
    # The only character that becomes two when it is lowered would move the places of all behind it.
    text = "\n".join([block.text[start:end] for start, end in spans]).replace("İ", "i").lower()
    ends = np.cumsum(lines.ends[kept] - lines.starts[kept] + 1)
    phrases = {
        "policy": c4.POLICIES, "curly_bracket": ("{",), "javascript": ("javascript",),
        "lorem_ipsum": ("lorem ipsum",),
    }  # fmt: skip
    for name, those in phrases.items():
        places = [place for phrase in those for place in _found(text, phrase)]
        verdicts[kept[np.searchsorted(ends, places, side="right")]] = _NAMED[name]


def _found(text: str, phrase: str) -> list[int]:
    places, place = [], text.find(phrase)
    while place >= 0:
        places.append(place)
        place = text.find(phrase, place + 1)
    return places


def _lines_at(lines: Lines, places: Positions) -> Positions:
    """The line in which each place is; places that no line has are left out."""
    numbers = np.searchsorted(lines.starts, places, side="right") - 1
    numbers, places = numbers[numbers >= 0], places[numbers >= 0]
    return numbers[places < lines.ends[numbers]]


def _sentences(lines: Lines, found: Words, kinds: NDArray[np.uint16]) -> Counts:
    """Sentences of each line: one, and one more for each word that follows a full stop, ? or !.

    Punctuation behind a full stop belongs to its sentence, as spaCy's sentencizer has it.
    """
    first, behind = np.searchsorted(found.starts, lines.starts), np.searchsorted(found.starts, lines.ends)
    sizes = behind - first
    owners = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.arange(len(owners)) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)
    single = found.ends[numbers] - found.starts[numbers] == 1
    ends_sentence = single & ((kinds[numbers] & characters.ENDS_SENTENCE) != 0)
    counted = np.flatnonzero(ends_sentence | ((kinds[numbers] & characters.NOT_PUNCTUATION) != 0))
    owners, ends_sentence = owners[counted], ends_sentence[counted]
    begins = ends_sentence[:-1] & ~ends_sentence[1:] & (owners[:-1] == owners[1:])
    return 1 + np.bincount(owners[1:][begins], minlength=len(sizes))
