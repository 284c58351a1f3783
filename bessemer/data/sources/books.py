"""Books: EPUB and PDF files, each one row. What a file is, its first bytes say, whatever its name."""

import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from bessemer.data.sources.epub import epub_text
from bessemer.data.sources.inputs import open_input, unfinished
from bessemer.data.sources.pages import Extracted
from bessemer.data.sources.parts import LARGEST_BYTES, Document, Part
from bessemer.data.sources.pdf import pdf_text
from bessemer.recipe.schema import Source


def read_books(source: Source, part: Part) -> Iterator[Document]:
    """One document a file; its origin is the book's title."""
    for entry in part.inputs:
        what = f"source {source.name!r}"
        with open_input(entry, what) as file:
            try:
                book = _far_book(file) if entry.url else book_text(file)
            except OSError as error:
                raise unfinished(what, entry, error) from error
        group = PurePosixPath(entry.name).name.split(".")[0] if source.group == "stem" else None
        yield Document(entry.name, group, entry.size_bytes, book.text, error=book.error, origin=book.title)


def book_text(file: BinaryIO) -> Extracted:
    """The whole text, or the reason why there is none. The file must be able to seek."""
    head = file.read(1024)
    file.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return epub_text(file)
    if b"%PDF-" in head:  # readers allow other bytes before it
        return pdf_text(file)
    return Extracted(None, "not_a_book")


def _far_book(file: BinaryIO) -> Extracted:
    """Held as a whole: both formats are read here and there, and each place would be a request."""
    content = file.read(LARGEST_BYTES + 1)
    return Extracted(None, "too_large") if len(content) > LARGEST_BYTES else book_text(io.BytesIO(content))
