"""What is held out, and what of the rest is refused: duplicates, and documents that hold held-out text.

Held out is what hashes below `data.validation`: by group where the source has one, else by the id that
the source gives, else by content. The hash depends on nothing else, so every rendering of one group,
also in the task's data, falls on the same side, on any machine, and more data moves no document.
Duplicates (equal text but for white space and Unicode form): a held-out one stays, else the first.
`leak`: a training document that shares a passage with a held-out one is refused. A passage is three
long lines in a row (40 characters or more, shorter ones between them not counted), or one of 200. A
passage shared by more than 10 training groups is boilerplate, such as a licence header, and no leak.
Cost: 20 MB/s of text on one core. Not found: text that was re-wrapped; that is for near-duplicates.
"""

import unicodedata
from collections.abc import Iterable

import numpy as np
import xxhash

from bessemer.data.spool import Numbered, Numbers, Spool

TRAIN, VALIDATION, DUPLICATE, LEAK = 0, 1, 2, 3
REFUSED = {DUPLICATE: "dedup.exact", LEAK: "leak"}
_LONG_LINE, _VERY_LONG_LINE, _BOILERPLATE_GROUPS = 40, 200, 10
_MASK64 = (1 << 64) - 1


def normalise(text: str) -> bytes:
    """Equal for texts that are the same but for white space and Unicode form; empty for no text."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split()).encode()


def holdout_hash(group: str | None, own_id: str | None, content: bytes) -> int:
    label = group if group is not None else own_id
    return xxhash.xxh3_64_intdigest(b"held out\0" + (content if label is None else label.encode()))


def split(hashes: Numbers, share: float) -> Numbers:
    """TRAIN or VALIDATION of each. Where there are two groups or more, none of the splits stays empty.

    A few documents may all hash above the share: then the group with the smallest hash is held out.
    """
    groups = np.unique(hashes)
    if share == 0 or len(groups) < 2:
        return np.full(len(hashes), TRAIN, dtype=np.int8)
    border = max(int(share * 2.0**64), int(groups[0]) + 1)
    border = min(border, int(groups[-1]))
    return np.where(hashes < np.uint64(border), VALIDATION, TRAIN).astype(np.int8)


def refuse_duplicates(parts: Numbers, numbers: Numbered) -> None:
    """Set DUPLICATE for all but one of the documents with the same content."""
    if len(parts) < 2:
        return
    order = np.lexsort(
        (np.arange(len(parts)), parts != VALIDATION, numbers.content_low, numbers.content_high)
    )
    high, low = numbers.content_high[order], numbers.content_low[order]
    again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    parts[order[1:][again]] = DUPLICATE


def refuse_leaks(parts: Numbers, numbers: Numbered, spool: Spool) -> None:
    """Set LEAK for training documents that hold a held-out passage, or all of a held-out document."""
    held_out = np.flatnonzero(parts == VALIDATION)
    if len(held_out) == 0:
        return
    secret: set[int] = set()
    for document in spool.read(held_out):
        secret.update(passages(document.text or ""))
    whole = set(
        zip(numbers.content_high[held_out].tolist(), numbers.content_low[held_out].tolist(), strict=True)
    )
    training = np.flatnonzero(parts == TRAIN)
    shared: dict[int, list[int]] = {}  # document: its held-out passages
    groups: dict[int, set[int]] = {}  # held-out passage: training groups that have it
    for number, document in zip(training.tolist(), spool.read(training), strict=True):
        if (int(numbers.content_high[number]), int(numbers.content_low[number])) in whole:
            parts[number] = LEAK  # only with deduplication off
        elif found := [passage for passage in passages(document.text or "") if passage in secret]:
            shared[number] = found
            for passage in found:
                groups.setdefault(passage, set()).add(int(numbers.holdout[number]))
    for number, found in shared.items():
        if any(len(groups[passage]) <= _BOILERPLATE_GROUPS for passage in found):
            parts[number] = LEAK


def passages(text: str) -> Iterable[int]:
    """Hashes of the text's passages. Lines are compared without margins: ` |  ` of help pages is one."""
    lines = [" ".join(line.strip(" \t|#*").split()) for line in text.split("\n")]
    long_lines = [line for line in lines if len(line) >= _LONG_LINE]
    hashes = [xxhash.xxh3_64_intdigest(line.encode("utf-8", "surrogatepass")) for line in long_lines]
    for line, one in zip(long_lines, hashes, strict=True):
        if len(line) >= _VERY_LONG_LINE:
            yield one
    for one, two, three in zip(hashes, hashes[1:], hashes[2:], strict=False):
        yield (one + 3 * two + 5 * three) & _MASK64
