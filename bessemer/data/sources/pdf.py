"""The text of a PDF, page after page with an empty line between, as PDFium reads it.

A word that a hyphen breaks at a line's end is joined when a lower-case letter follows: "con-/verter" is
"converter", "Anglo-/Saxon" keeps its hyphen. ("well-/known" loses it: nothing in the file tells.)
A scan without a layer of text gives an empty text. A document whose one page cannot be read is `corrupt`
as a whole: half a book would look like a book.
Cost: 1,200 pages, 2.4 M characters a CPU-second; pypdf and pdfminer need ten times as long.
PDFium is not thread-safe: one thread a process. Out of memory it ends the process (SIGABRT): a stream of
some kB that inflates to 1 GB, under the worker's memory limit. Whoever runs it counts the file then.
"""

import re
from typing import BinaryIO

import pypdfium2

from bessemer.data.sources.pages import Extracted, tidy
from bessemer.data.sources.parts import LARGEST_BYTES

MOST_PAGES = 10_000
_WRONG_PASSWORD, _UNKNOWN_SECURITY = 4, 5  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY in fpdfview.h
_BROKEN_WORD = re.compile("\ufffe(.?)", re.DOTALL)  # PDFium's mark for a hyphen and the line break after it


def pdf_text(content: BinaryIO | bytes) -> Extracted:
    """`content`: bytes, or a file that can seek and stays open meanwhile."""
    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        locked = error.err_code in (_WRONG_PASSWORD, _UNKNOWN_SECURITY)
        return Extracted(None, "encrypted" if locked else "corrupt")
    try:
        title = document.get_metadata_value("Title").strip() or None
        if len(document) > MOST_PAGES:
            return Extracted(None, "too_large", title)
        pages, num_chars = [], 0
        for number in range(len(document)):
            pages.append(_page(document, number))
            num_chars += len(pages[-1])
            if num_chars > LARGEST_BYTES:
                return Extracted(None, "too_large", title)
    except pypdfium2.PdfiumError:
        return Extracted(None, "corrupt")
    finally:
        document.close()
    return Extracted("\n\n".join(page for page in pages if page), None, title)


def _page(document: pypdfium2.PdfDocument, number: int) -> str:
    page = document[number]
    try:
        layer = page.get_textpage()
        try:
            text: str = layer.get_text_range()
        finally:
            layer.close()
    finally:
        page.close()  # else each page stays in memory until the end
    # NUL: a glyph without a character. U+00AD: where a word may be broken, no part of it.
    text = text.replace("\r\n", "\n").replace("\0", "").replace("\xad", "")
    return tidy(_BROKEN_WORD.sub(_joined, text))


def _joined(broken: re.Match[str]) -> str:
    after = broken[1]
    return after if after.islower() else "-" + after
