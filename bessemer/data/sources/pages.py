"""The text of a web page, or of any text whose bytes came over the web.

Bytes become characters by the first of these that fits them whole: the mark at their beginning, what the
server declared, what the page declares, UTF-8, what resiliparse's detector says. A declared Latin-1 is
often only the server's default, so bytes that are valid UTF-8 win over it. A page that breaks its own
declared encoding in fewer than one character of a thousand keeps U+FFFD there, as browsers do; a cut
character is no reason to take UTF-8 for Latin-1.
The text is the main content as resiliparse finds it, or all text where it finds none: 13 times as fast as
trafilatura at similar quality of text.
Cost: 21 MB a CPU-second (250 pages of 85 kB: HTML documentation), and up to 43 bytes of memory for a byte
of page where every word has a tag of its own: 0.9 GB at MOST_PAGE_BYTES. The search for main content takes
time with the square of the depth of <div> (50,000: two minutes), so deep pages give all their text; one
element of 50,000 attributes takes the parser 8 s, of more with their square: the caller must limit the time.
Source: https://html.spec.whatwg.org/#determining-the-character-encoding, strict and for training.
"""

import re
from typing import NamedTuple

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

MOST_PAGE_BYTES = 16 << 20  # crawlers cut pages at 1 to 5 MiB
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_DECLARED = re.compile(
    rb"""<meta\s[^>]*?charset\s*=\s*["']?\s*([\w.:-]+)|^\s*<\?xml\s[^>]*?encoding\s*=\s*["']([\w.:-]+)""",
    re.IGNORECASE,
)
# What browsers read under these names holds more characters than Python's codec of the name.
_WIDER = {
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "iso8859-11": "cp874",
    "iso8859-9": "cp1254",
}
_DIV = re.compile(r"<(/?)div\b", re.IGNORECASE)
_MOST_DEPTH = 1000  # twice what browsers build
_MOST_REPLACED = 1 / 1000  # characters that are no part of the declared encoding


class Extracted(NamedTuple):
    """One of text and error is set."""

    text: str | None
    error: str | None
    title: str | None = None


def page_text(content: bytes, declared: str | None = None) -> tuple[str | None, str | None]:
    """(text, None), or (None, the reason). `declared`: the encoding that the server named."""
    if len(content) > MOST_PAGE_BYTES:
        return None, "too_large"
    page, error = plain_text(content, declared)
    if page is None:
        return None, error
    try:
        return html_text(page), None
    except (ValueError, RuntimeError):
        return None, "unparsable"


def plain_text(content: bytes, declared: str | None = None) -> tuple[str | None, str | None]:
    """The characters, whatever they are. (None, reason) where they are none."""
    text = _decoded(content, declared)
    if text is None:
        return None, "undecodable"
    if "\0" in text:  # valid UTF-8, but no text has it
        return None, "binary"
    return text.replace("\r\n", "\n"), None


def html_text(page: str) -> str:
    """The text of a web page, without navigation, with its paragraphs."""
    text = ""
    if not _is_deep(page):
        text = extract_plain_text(page, main_content=True, preserve_formatting=True)
    if not text.strip():
        text = extract_plain_text(page, preserve_formatting=True)
    return tidy(text)


def _is_deep(page: str) -> bool:
    if page.count("<") < _MOST_DEPTH:
        return False
    depth = 0
    for found in _DIV.finditer(page):
        depth = max(0, depth - 1) if found[1] else depth + 1
        if depth > _MOST_DEPTH:
            return True
    return False


def tidy(text: str) -> str:
    """No space at the end of lines, never two empty lines."""
    text = "\n".join(map(str.rstrip, text.replace("\xa0", " ").split("\n")))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _decoded(content: bytes, declared: str | None) -> str | None:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return _strict(content[len(mark) :], encoding) or _lenient(content[len(mark) :], encoding)
    named = [name for name in (_known(declared), _known(_own_declaration(content))) if name is not None]
    if "cp1252" in named:
        named.insert(0, "utf-8")
    for encoding in [*named, "utf-8"]:
        text = _strict(content, encoding)
        if text is not None:
            return text
    for encoding in named:
        text = _lenient(content, encoding)
        if text is not None:
            return text
    detected = _known(detect_encoding(content))
    return None if detected is None else _strict(content, detected)


def _own_declaration(content: bytes) -> str | None:
    found = _DECLARED.search(content, 0, 1024)  # browsers look no further either
    if found is None:
        return None
    name: str = (found[1] or found[2]).decode("ascii", "replace")
    # Whoever reads this in ASCII does not read UTF-16.
    return "utf-8" if name.lower().startswith("utf-16") else name


def _known(label: str | None) -> str | None:
    """A codec of Python's for a label of the web's; none of those that only Python has (rot13, zlib)."""
    if not label:
        return None
    name: str | None = map_encoding_to_html5(label.strip(" \"'"), fallback_utf8=False)
    return None if name is None else _WIDER.get(name, name)


def _strict(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def _lenient(content: bytes, encoding: str) -> str | None:
    text = content.decode(encoding, "replace")
    return text if text.count("\ufffd") <= len(text) * _MOST_REPLACED else None
