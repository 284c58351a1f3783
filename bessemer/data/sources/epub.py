"""The text of an EPUB (2 and 3): its chapters in reading order, an empty line between.

An EPUB is a zip: META-INF/container.xml names the package file, whose spine orders the chapters (XHTML).
Left out: the table of contents and what is marked linear="no" (notes, answers). Chapters go through
resiliparse's plain text; its search for main content is made for web pages.
Nothing is unpacked to disk: names are only looked up inside the archive. An archive that lies is refused:
what it says to inflate to is added up before anything is inflated, no entry gives more than it said,
and a package that declares entities is refused, so none expands.
Locked books (an encryption.xml that names a chapter) are `encrypted`; scrambled fonts do not matter.
Cost: 21 MB of chapters, 13 M characters a CPU-second.
Source: https://www.w3.org/TR/epub-33/, https://idpf.org/epub/20/spec/OPF_2.0.1_draft.htm
"""

import errno
import posixpath
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from resiliparse.extract.html2text import extract_plain_text

from bessemer.data.sources.pages import MOST_PAGE_BYTES, Extracted, plain_text, tidy
from bessemer.data.sources.parts import LARGEST_BYTES
from bessemer.data.sources.streams import Broken

_MOST_DIRECTORY_BYTES = 16 << 20  # some 200,000 entries, each of which costs 600 bytes of memory
_MOST_XML_BYTES = 16 << 20
_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_CHAPTER_TYPES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")
_FONT_SCRAMBLING = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # all that an EPUB may use; others inflate unbounded
_DECLARATIONS = re.compile(r"<!DOCTYPE[^\[>]*+\[.*?\]\s*>", re.DOTALL)  # HTML would show them as text
# XHTML may close any element at once. To an HTML parser <title/> or <script/> opens one without an end.
_CLOSED_AT_ONCE = re.compile(r"<([A-Za-z][\w:.-]*+)((?:\s[^<>]*)?)/>")
_VOID = frozenset(("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"))


def epub_text(file: BinaryIO) -> Extracted:
    title = None
    try:
        archive = _Archive.open(file)
        package_path = _package_path(archive)
        package = _xml(archive, package_path)
        title = _title(package)
        chapters = _chapters(archive, package, posixpath.dirname(package_path))
        text = "\n\n".join(filter(None, (_chapter_text(archive, name) for name in chapters)))
    except Broken as broken:
        return Extracted(None, broken.reason, title)
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # of the disk; the others are places that are none
            raise
        return Extracted(None, "corrupt", title)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, RuntimeError):
        return Extracted(None, "corrupt", title)
    return Extracted(text, None, title)


@dataclass(frozen=True)
class _Archive:
    """A zip of which single entries are read, bounded."""

    zip: zipfile.ZipFile
    entries: dict[str, zipfile.ZipInfo]

    @staticmethod
    def open(file: BinaryIO) -> "_Archive":
        if _directory_bytes(file) > _MOST_DIRECTORY_BYTES:
            raise Broken("too_large")
        archive = zipfile.ZipFile(file)
        entries = {}
        for info in archive.infolist():  # of two with one name the later counts, as where they are unpacked
            entries[_name(info)] = info
        return _Archive(archive, entries)

    def size(self, name: str) -> int:
        if name not in self.entries:
            raise Broken("corrupt")
        return self.entries[name].file_size

    def read(self, name: str, most_bytes: int) -> bytes:
        if self.size(name) > most_bytes:
            raise Broken("too_large")
        info = self.entries[name]
        if info.flag_bits & 1:
            raise Broken("encrypted")
        if info.compress_type not in _METHODS:
            raise Broken("corrupt")
        with self.zip.open(info) as entry:
            # One more than it said: without a number it inflates whatever is there before it counts. At the
            # size that was said it stops and checks the CRC.
            return entry.read(info.file_size + 1)


def _directory_bytes(file: BinaryIO) -> int:
    """The size of the zip's directory as it says itself; zipfile would read and keep whatever is there."""
    end = file.seek(0, 2)
    file.seek(max(0, end - 65_557))  # the end record with the longest comment
    tail = file.read(65_557)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + 22:
        raise Broken("corrupt")
    (size,) = struct.unpack_from("<L", tail, place + 12)
    if size == 0xFFFFFFFF and place >= 76:  # ZIP64: its record, then its locator of 20 bytes, before this one
        (size,) = struct.unpack_from("<Q", tail, place - 76 + 40)
    return int(size)


def _name(info: zipfile.ZipInfo) -> str:
    """As UTF-8, also where the writer forgot to say so and Python read it as the PC's old code page."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _package_path(archive: _Archive) -> str:
    if _CONTAINER not in archive.entries:
        # A document of an office, say: a zip, but none that calls itself an EPUB.
        raise Broken("corrupt" if "mimetype" in archive.entries else "not_a_book")
    for element in _xml(archive, _CONTAINER).iterfind(".//{*}rootfile"):
        return posixpath.normpath(element.get("full-path", ""))
    raise Broken("corrupt")


def _chapters(archive: _Archive, package: ET.Element, folder: str) -> list[str]:
    """The names of the chapters in reading order, all there, none locked, not too much in sum."""
    items = {item.get("id"): item for item in package.iterfind("{*}manifest/{*}item")}
    spine = package.find("{*}spine")
    if spine is None:
        raise Broken("corrupt")
    contents = {
        _resolve(folder, reference.get("href", ""))
        for reference in package.iterfind("{*}guide/{*}reference")
        if reference.get("type") == "toc"
    }
    names: dict[str, None] = {}  # ordered, and each once
    for place in spine.iterfind("{*}itemref"):
        item = items.get(place.get("idref"))
        if item is None:
            raise Broken("corrupt")
        name = _resolve(folder, item.get("href", ""))
        is_contents = "nav" in item.get("properties", "").split() or name in contents
        is_text = item.get("media-type", "").lower() in _CHAPTER_TYPES
        if is_text and not is_contents and place.get("linear") != "no":
            names[name] = None
    if _locked(archive).intersection(names):
        raise Broken("encrypted")
    if sum(archive.size(name) for name in names) > LARGEST_BYTES:
        raise Broken("too_large")
    return list(names)


def _resolve(folder: str, reference: str) -> str:
    path = unquote(reference.split("#")[0])
    return posixpath.normpath(posixpath.join(folder, path))


def _locked(archive: _Archive) -> set[str]:
    """Entries that only a key opens."""
    if _ENCRYPTION not in archive.entries:
        return set()
    locked: set[str] = set()
    for data in _xml(archive, _ENCRYPTION).iterfind(".//{*}EncryptedData"):
        method = data.find("{*}EncryptionMethod")
        if method is not None and method.get("Algorithm") in _FONT_SCRAMBLING:
            continue
        locked.update(_resolve("", entry.get("URI", "")) for entry in data.iterfind(".//{*}CipherReference"))
    return locked


def _title(package: ET.Element) -> str | None:
    title = package.find("{*}metadata//{http://purl.org/dc/elements/1.1/}title")
    return " ".join("".join(title.itertext()).split()) or None if title is not None else None


def _xml(archive: _Archive, name: str) -> ET.Element:
    text, _ = plain_text(archive.read(name, _MOST_XML_BYTES))
    if text is None or "<!ENTITY" in text:  # no package needs one; ten lines of them fill any memory
        raise Broken("corrupt")
    try:
        return ET.fromstring(text)  # noqa: S314 (without declared entities nothing can expand)
    except ET.ParseError as error:
        raise Broken("corrupt") from error


def _chapter_text(archive: _Archive, name: str) -> str:
    page, error = plain_text(archive.read(name, MOST_PAGE_BYTES))
    if page is None:
        raise Broken(error or "corrupt")
    declarations = _DECLARATIONS.match(page, max(0, page.find("<!DOCTYPE", 0, 1000)))
    page = _CLOSED_AT_ONCE.sub(_opened_and_closed, page[declarations.end() :] if declarations else page)
    return tidy(extract_plain_text(page, preserve_formatting=True).replace("\xad", ""))


def _opened_and_closed(element: re.Match[str]) -> str:
    name, rest = element[1], element[2]
    return element[0] if name.lower() in _VOID else f"<{name}{rest}></{name}>"
