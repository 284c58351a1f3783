"""E-mail addresses and IP addresses.

E-mail: the part before "@" of letters (Latin ones with accents too), digits and . _ % + - ', a domain with a
top level of letters. Not taken: names of systemd units and of files (user@1000.service, icon@2x.png),
accounts of code repositories (git@host), and what a URL has before its host (`pii_secrets`).
IP: public addresses only; private, local, documentation and multicast ranges tell nothing of anyone. IPv4
needs four numbers that stand alone: no fifth one, no letters, no "version" or "Firefox/" before and no "-rc1"
behind them; four numbers under 20 (1.2.3.4, 10.4.2.1) are a version or a section far more often than an
address. IPv6 is taken where it begins with the 2000::/3 that public ones have, as Python's `ipaddress` reads
it.
"""

import ipaddress
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bessemer.data.clean.buffers import Buffers, Bytes, Positions
from bessemer.data.clean.pii_spans import Span

_LATIN = "".join(map(chr, [*range(0xC0, 0xD7), *range(0xD8, 0xF7), *range(0xF8, 0x180)]))
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" + _LATIN
_LOCAL = _LETTERS + "0123456789._%+-'"
_MOST_LOCAL, _MOST_DOMAIN = 64, 255
_LABEL = f"[{_LETTERS}0-9](?:[{_LETTERS}0-9-]{{0,61}}[{_LETTERS}0-9])?"
_DOMAIN = re.compile(
    rf"(?:{_LABEL}\.)+([A-Za-z]{{2,24}}|xn--[A-Za-z0-9-]{{2,59}})(?![{_LETTERS}0-9_@]|-[{_LETTERS}0-9])"
)
_MAY_BEGIN = np.array([byte >= 0x80 or chr(byte).isalnum() for byte in range(256)])  # a domain
_UNITS = ("service", "socket", "target", "timer", "mount", "slice", "device", "path", "scope", "swap")
_FILES = ("png", "jpg", "jpeg", "gif", "svg", "webp", "pdf", "html", "css", "js", "json", "po")
_NO_TOP_LEVEL = frozenset((*_UNITS, *_FILES))
_REPOSITORIES = frozenset(("git", "hg", "svn"))

_IPV4 = re.compile(rb"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w~+]|\.\d|-[A-Za-z])")
_NOT_BEFORE_IPV4 = re.compile(
    rb"(?:[\w.~+]|==|[A-Za-z)][-/]"
    rb"|\b(?:v|ver|vers|versions?|release|revision|rev|build|update|kernel|driver|firmware)[.:=]?[ \"']?)\Z",
    re.IGNORECASE,
)
_SMALL = 20
_IPV6 = re.compile(rb"[0-9A-Fa-f:.]{6,45}(?![\w])")


def email_spans(buffers: Buffers) -> Iterator[Span]:
    places = np.flatnonzero(buffers.data[:-1] == ord("@"))
    places = places[_MAY_BEGIN[buffers.data[places + 1]]]
    for row, content, place in buffers.in_rows(places):
        after = _text(content[place + 1 : place + 1 + _MOST_DOMAIN])
        domain = _DOMAIN.match(after)
        if domain is None or domain[1].lower() in _NO_TOP_LEVEL:
            continue
        before = _text(content[max(place - 4 * _MOST_LOCAL, 0) : place])
        local = before[len(before.rstrip(_LOCAL)) :].rpartition("..")[2].lstrip(".%-'")
        if local and len(local) <= _MOST_LOCAL and local[-1] != "." and local not in _REPOSITORIES:
            yield Span(row, place - len(local.encode()), place + 1 + len(domain[0].encode()), "email")


def ip_spans(buffers: Buffers) -> Iterator[Span]:
    yield from _ipv4_spans(buffers)
    yield from _ipv6_spans(buffers)


def _ipv4_spans(buffers: Buffers) -> Iterator[Span]:
    for row, content, start in buffers.in_rows(_first_dots(buffers.data)):
        while start > 0 and content[start - 1] in b"0123456789":
            start -= 1
        match = _IPV4.match(content, start)
        if match is None or _NOT_BEFORE_IPV4.search(content[max(start - 16, 0) : start]):
            continue
        if max(map(int, match[0].split(b"."))) >= _SMALL and _is_public(match[0]):
            yield Span(row, start, match.end(), "ip")


def _first_dots(data: Bytes) -> Positions:
    """Of four numbers with dots between them, the place of the first dot."""
    dots = np.flatnonzero(data[1:-1] == ord(".")) + 1
    dots = dots[_is_digit(data[dots - 1]) & _is_digit(data[dots + 1])]
    gaps = np.diff(dots)
    near = gaps <= 4
    # Between dots 2 or 3 apart there are digits only; with 4 the middle one is not known yet.
    near &= (gaps < 4) | _is_digit(data[dots[:-1] + 2])
    return dots[:-2][near[:-1] & near[1:]] if len(dots) > 2 else dots[:0]


def _is_digit(data: Bytes) -> NDArray[np.bool_]:
    return (data - np.uint8(ord("0"))) < 10


def _ipv6_spans(buffers: Buffers) -> Iterator[Span]:
    data = buffers.data
    colons = np.flatnonzero(data[4:] == ord(":")) + 4
    first_digit = data[colons - 4]
    colons = colons[(first_digit == ord("2")) | (first_digit == ord("3"))]
    for row, content, colon in buffers.in_rows(colons):
        start = colon - 4
        if start < 0 or (start > 0 and (content[start - 1] in b":._" or chr(content[start - 1]).isalnum())):
            continue
        match = _IPV6.match(content, start)
        address = match[0].rstrip(b".") if match else b""
        if address.endswith(b":") and not address.endswith(b"::"):
            address = address[:-1]
        if _is_public(address):
            yield Span(row, start, start + len(address), "ip")


def _is_public(address: bytes) -> bool:
    try:
        known = ipaddress.ip_address(address.decode())
    except ValueError:
        return False
    return known.is_global and not known.is_multicast


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="ignore")
