"""Personal data and secrets out of texts, placeholders in: e-mail addresses, telephone numbers, IP addresses,
bank accounts, payment cards, keys and tokens. What was replaced is counted by kind and document.

A wrong hit damages a text and a missed one leaks, so each kind asks for more than its shape: checksums (IBAN,
cards), prefixes (cards, tokens), a country code or a word such as "Tel." (telephones), public addresses only
(IP). Names, postal addresses and birthdays are not looked for: that takes a model. What each kind takes and
leaves: `pii_addresses`, `pii_numbers`, `pii_secrets`.
How: numpy finds the few places of a batch where there may be something (an "@", ten digits, a known prefix),
and only round these a regular expression is tried. Cost: 85 to 240 MB/CPU-s where nothing is found, 40 with
300 hits a MB. A second time changes nothing. Agreement with datatrove's PIIFormatter: 99.7 % of its
e-mail addresses are found at the same place; most of the rest begin elsewhere (user=joe@...), or name a
repository. Of its IP addresses four in five are left: versions, RFC sections, object identifiers (1.3.6.1).
On 40 MB of manuals and sources.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bessemer.data.clean.buffers import Buffers, Positions
from bessemer.data.clean.pii_addresses import email_spans, ip_spans
from bessemer.data.clean.pii_numbers import number_spans
from bessemer.data.clean.pii_secrets import secret_spans
from bessemer.data.clean.pii_spans import KINDS, Span

PLACEHOLDERS = {kind: f"[{kind.upper()}]" for kind in KINDS}
# Where two overlap, the first of these is meant: a password in a URL is no e-mail address.
_PRECEDENCE = {kind: place for place, kind in enumerate(("secret", "email", "iban", "card", "ip", "phone"))}


def redact(texts: pa.Array) -> tuple[pa.Array, pa.RecordBatch]:
    """(texts with placeholders such as [EMAIL], how many of each of KINDS: a column each). Nulls stay."""
    counts = np.zeros((len(KINDS), len(texts)), dtype=np.int32)
    rows = np.arange(len(texts))
    found = texts
    # Again on what was changed, until nothing is found: a number that ended in another one is free now.
    while len(rows):
        changed = _redact_once(found, rows, counts)
        rows = np.array(sorted(changed), dtype=np.int64)
        if len(rows):
            found = pa.array([changed[row] for row in rows.tolist()], texts.type)
            mask = np.zeros(len(texts), dtype=bool)
            mask[rows] = True
            texts = pc.replace_with_mask(texts, pa.array(mask), found)
    return texts, pa.record_batch([pa.array(column) for column in counts], names=list(KINDS))


def _redact_once(texts: pa.Array, rows: Positions, counts: NDArray[np.int32]) -> dict[int, str]:
    """The new texts of those that change; `rows`: where each of `texts` stands in `counts`."""
    buffers = Buffers.of(texts)
    spans_of_row: dict[int, list[Span]] = {}
    for find in (secret_spans, email_spans, number_spans, ip_spans):
        for span in find(buffers):
            spans_of_row.setdefault(span.row, []).append(span)
    changed = {}
    for row, spans in spans_of_row.items():
        place = int(rows[row])
        content = buffers.row(row)
        chosen = _without_overlaps(spans, len(content))
        changed[place] = _replaced(content, chosen)
        for span in chosen:
            counts[KINDS.index(span.kind), place] += 1
    return changed


def _without_overlaps(spans: Sequence[Span], num_bytes: int) -> list[Span]:
    chosen: list[Span] = []
    taken = bytearray(num_bytes)
    for span in sorted(spans, key=lambda span: (_PRECEDENCE[span.kind], span.start)):
        if taken.find(1, span.start, span.end) < 0:
            taken[span.start : span.end] = b"\1" * (span.end - span.start)
            chosen.append(span)
    return sorted(chosen, key=lambda span: span.start)


def _replaced(content: bytes, spans: Sequence[Span]) -> str:
    pieces, done = [], 0
    for span in spans:
        pieces += [content[done : span.start], PLACEHOLDERS[span.kind].encode()]
        done = span.end
    return b"".join([*pieces, content[done:]]).decode()
