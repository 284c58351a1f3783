"""Telephone numbers, payment cards and bank accounts (IBAN).

Telephone: international with "+" and 10 to 15 digits; North American with its groups, (212) 555-0123,
212-555-0123, 212.555.0123; any other number of 7 to 15 digits only behind a word such as "Tel." or "Fax:".
Dates, ISBN, serial numbers and columns of figures have none of these.
Card: 14 to 19 digits in one piece or in a card's groups, a known prefix with its length, and Luhn's check
digit. IBAN: the length that its country has, in one piece or in groups of four, and remainder 1 modulo 97
(ISO 13616). Sources: ITU-T E.164, NANP, ISO/IEC 7812, SWIFT's IBAN registry.
"""

import re
from collections.abc import Iterator

import numpy as np

from bessemer.data.clean.buffers import Buffers, Positions
from bessemer.data.clean.pii_spans import Span

_LEAST_DIGITS = 7
_LONGEST_GAP = 3
_SEPARATORS = np.isin(np.arange(256), list(b" .-()/"))
_BEFORE = 32  # bytes in which a word may announce a number

_INTERNATIONAL = re.compile(rb"(?<![\w+.\-/=~])\+[1-9](?:[ ().\-/]{0,3}\d){9,14}(?!\w)")
_FLOAT = re.compile(rb"\+\d*\.\d+")
_NORTH_AMERICAN = re.compile(
    rb"(?<![\w.\-/+(])(?:1[-. ])?(?:\([2-9]\d\d\) ?[2-9]\d\d[-. ]|[2-9]\d\d([-.])[2-9]\d\d\1)"
    rb"\d{4}(?!\w|[-./]\d)"
)
_ANNOUNCED = re.compile(
    r"(?<!\w)(?:tele?phone|telefono?|telefax|t[eé]l|t[eé]l[eé]phone|t[eé]l[eé]fono|phone|fax|mobile?|whatsapp"
    r"|тел|Тел|телефон|Телефон|电话|電話|전화)"
    r"(?:[. ]{0,2}(?:number|no|nr|num))?[.:)： ]{1,4}".encode()
    + rb"(\+?\(?\d(?:[ ().\-/]{0,3}\d){6,14})(?!\w)",
    re.IGNORECASE,
)
_CARD = re.compile(
    rb"(?<![\w.\-+/])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3\d{3}([ -])\d{6}\2\d{4,5}|\d{14,19})"
    rb"(?!\w|[./-]\d)"
)
_BRANDS = [  # prefix, lengths
    (r"4", (16, 19)),  # Visa; of 13 digits none are left, but many barcodes begin so
    (r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),  # Mastercard
    (r"3[47]", (15,)),  # American Express
    (r"6011|65|64[4-9]", (16, 19)),  # Discover
    (r"35(?:2[89]|[3-8])", (16,)),  # JCB
    (r"36|38|30[0-5]", (14,)),  # Diners Club
    (r"62", (16, 17, 18, 19)),  # UnionPay
]
_IBAN = re.compile(rb"[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?!\w)")
_IBAN_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 "
    "EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 "
    "IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 "
    "NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 "
    "SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30 "
)


def number_spans(buffers: Buffers) -> Iterator[Span]:
    starts, ends = _digit_runs(buffers)
    if len(starts):
        yield from _iban_spans(buffers, starts)
        yield from _phone_and_card_spans(buffers, *_fields(buffers, starts, ends))


def _digit_runs(buffers: Buffers) -> tuple[Positions, Positions]:
    """First byte of each run of digits, and the one behind its last. A run ends with its document."""
    digits = np.flatnonzero((buffers.data - np.uint8(ord("0"))) < 10)
    begins = np.diff(digits, prepend=-2) != 1
    first_of_row = np.searchsorted(digits, buffers.starts[:-1])
    begins[first_of_row[first_of_row < len(digits)]] = True
    firsts = np.flatnonzero(begins)
    return digits[firsts], digits[np.append(firsts[1:], len(digits)) - 1] + 1 if len(digits) else digits


def _fields(buffers: Buffers, starts: Positions, ends: Positions) -> tuple[Positions, Positions]:
    """Runs with nothing but separators between them, together: those with digits enough for a number."""
    gaps = starts[1:] - ends[:-1]
    together = gaps <= _LONGEST_GAP
    for byte in range(_LONGEST_GAP):
        inside = np.minimum(ends[:-1] + byte, len(buffers.data) - 1)
        together &= (gaps <= byte) | _SEPARATORS[buffers.data[inside]]
    rows = buffers.rows_of(starts)
    together &= rows[1:] == rows[:-1]
    firsts = np.flatnonzero(np.append(True, ~together))
    num_digits = np.add.reduceat(ends - starts, firsts)
    long = num_digits >= _LEAST_DIGITS
    lasts = np.append(firsts[1:], len(starts)) - 1
    return starts[firsts[long]], ends[lasts[long]]


def _phone_and_card_spans(buffers: Buffers, starts: Positions, ends: Positions) -> Iterator[Span]:
    lengths = (ends - starts).tolist()
    for (row, content, start), length in zip(buffers.in_rows(starts), lengths, strict=True):
        # From the "+" or "(" that may stand before the digits, to what may not stand behind them.
        begin, stop = max(start - 2, 0), start + length + 2
        for match in _CARD.finditer(content, begin, stop):
            if _is_card(match[0]):
                yield Span(row, *match.span(), "card")
        for match in _INTERNATIONAL.finditer(content, begin, stop):
            if not _FLOAT.fullmatch(match[0]):
                yield Span(row, *match.span(), "phone")
        for match in _NORTH_AMERICAN.finditer(content, begin, stop):
            yield Span(row, *match.span(), "phone")
        for match in _ANNOUNCED.finditer(content, max(begin - _BEFORE, 0), stop):
            yield Span(row, *match.span(1), "phone")


def _is_card(number: bytes) -> bool:
    digits = number.decode().replace(" ", "").replace("-", "")
    known = any(len(digits) in lengths and re.match(prefix, digits) for prefix, lengths in _BRANDS)
    return known and _luhn_remainder(digits) == 0


def _luhn_remainder(digits: str) -> int:
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(map(int, digits[-1::-2]))) % 10


def _iban_spans(buffers: Buffers, starts: Positions) -> Iterator[Span]:
    data = buffers.data
    starts = starts[(starts >= 2) & (starts + 1 < len(data))]
    capital = (data[starts - 1] - np.uint8(ord("A")) < 26) & (data[starts - 2] - np.uint8(ord("A")) < 26)
    starts = starts[capital]
    lengths = {entry[:2]: int(entry[2:]) for entry in _IBAN_LENGTHS.split()}
    for row, content, start in buffers.in_rows(starts):
        begin = start - 2
        if begin < 0 or (begin > 0 and chr(content[begin - 1]).isalnum()):
            continue
        match = _IBAN.match(content, begin)
        if match is None:
            continue
        account = match[0].decode().replace(" ", "")
        if lengths.get(account[:2]) == len(account) and _remainder_97(account) == 1:
            yield Span(row, begin, match.end(), "iban")


def _remainder_97(account: str) -> int:
    return int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97
