"""EPUB and PDF files give their text in reading order, one document a file."""

import io
import zipfile
from pathlib import Path

import pytest
from making_archives import ENCRYPTION, chapter, epub, item, package, pdf, pdf_of_stream, raw_pdf, zipped

from bessemer.data.sources.books import book_text, read_books
from bessemer.data.sources.inputs import find_inputs
from bessemer.data.sources.pages import Extracted
from bessemer.data.sources.parts import Part
from bessemer.recipe.schema import Source

FONTS = "http://www.idpf.org/2008/embedding"
LOCK = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"


def text_of(content: bytes) -> Extracted:
    return book_text(io.BytesIO(content))


def test_epub3_chapters_come_in_order_of_the_spine_without_contents_and_notes() -> None:
    chapters = {
        "text/two%20b.xhtml": chapter("<h2>Two</h2><p>Iron.</p>"),
        "one.xhtml": chapter("<h1>One</h1><p>Steel is&#160;made<br/>of iron.</p><ul><li>coal</li></ul>"),
        "nav.xhtml": chapter("<nav><ol><li>One</li></ol></nav>"),
        "notes.xhtml": chapter("<p>A note.</p>"),
    }
    items = "".join(
        (
            item("b", "text/two%20b.xhtml"),
            item("a", "one.xhtml"),
            item("n", "nav.xhtml", 'properties="nav"'),
            item("x", "notes.xhtml"),
            item("p", "cover.svg", kind="image/svg+xml"),
        )
    )
    places = ("p", "n", "a", "b", "a")
    spine = "".join(f'<itemref idref="{key}"/>' for key in places) + '<itemref idref="x" linear="no"/>'
    chapters["text/two b.xhtml"] = chapters.pop("text/two%20b.xhtml")
    book = text_of(epub(chapters, package([], items, spine)))
    assert book == Extracted("One\n\nSteel is made\nof iron.\n\n  • coal\n\nTwo\n\nIron.", None, "On Steel")


def test_epub2_with_a_guide_and_a_package_at_the_top_is_read() -> None:
    old = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">'
    chapters = {
        "toc.html": chapter("<p>Contents</p>"),
        "a.html": chapter("<p>Caf&eacute; &mdash; first.</p>").replace("<!DOCTYPE html>", old),
        "b.html": chapter("<p>Größe</p>").replace("utf-8", "iso-8859-1").encode("latin-1"),
    }
    guide = '<guide><reference type="toc" title="Contents" href="toc.html#top"/></guide>'
    opf = package(list(chapters), guide=guide, version="2.0")
    assert text_of(epub(chapters, opf, folder="")).text == "Café — first.\n\nGröße"


def test_elements_closed_at_once_do_not_swallow_the_chapter() -> None:
    body = '<p>One <a id="x"/>two <i/>three</p><script src="a.js"/><div class="c" /><p>four</p>'
    assert text_of(epub({"a.xhtml": chapter(body, "<title/><style/>")})).text == "One two three\n\nfour"


def test_headings_stay_and_soft_hyphens_go() -> None:
    body = "<h1>Chapter One</h1><p>Bes\xadse\xadmer</p>"
    assert text_of(epub({"a.xhtml": chapter(body)})).text == "Chapter One\n\nBessemer"


def test_books_behind_a_lock_are_told_from_books_with_scrambled_fonts() -> None:
    chapters = {"a.xhtml": chapter("<p>text</p>")}
    scrambled = {"META-INF__encryption.xml": ENCRYPTION.format(FONTS, "OEBPS/font.otf")}
    locked = {"META-INF__encryption.xml": ENCRYPTION.format(LOCK, "OEBPS/a.xhtml")}
    picture = {"META-INF__encryption.xml": ENCRYPTION.format(LOCK, "OEBPS/cover.jpg")}
    assert text_of(epub(chapters, **scrambled)).text == "text"
    assert text_of(epub(chapters, **picture)).text == "text"
    assert text_of(epub(chapters, **locked)).error == "encrypted"


@pytest.mark.parametrize(
    ("opf", "error"),
    [
        (package(["missing.xhtml"]), "corrupt"),
        (package([], spine='<itemref idref="nobody"/>'), "corrupt"),
        ("<package/>", "corrupt"),
        ("<package", "corrupt"),
        (package(["http://example.org/a.xhtml"]), "corrupt"),
        (package(["a.xhtml"]).replace("<spine>", "<spine/><x>").replace("</spine>", "</x>"), None),
    ],
)
def test_books_with_missing_pieces_are_corrupt(opf: str, error: str | None) -> None:
    assert text_of(epub({"a.xhtml": chapter("<p>text</p>")}, opf)).error == error


def test_zips_without_a_container_are_no_books() -> None:
    assert text_of(zipped({"word/document.xml": "<x/>"})).error == "not_a_book"
    assert text_of(zipped({"mimetype": "application/epub+zip"})).error == "corrupt"
    assert text_of(zipped({})).error == "not_a_book"
    assert text_of(b"").error == text_of(b"plain text").error == "not_a_book"


def test_names_in_utf8_are_found_whether_or_not_the_zip_says_so() -> None:
    good = epub({"größe.xhtml": chapter("<p>text</p>")}, package(["gr%C3%B6%C3%9Fe.xhtml"]))
    assert text_of(good).text == "text"
    # Bit 11 of the flags, in the local header and in the directory.
    unsaid = good.replace(b"\x14\x00\x00\x08\x08\x00", b"\x14\x00\x00\x00\x08\x00")
    assert unsaid != good and text_of(unsaid).text == "text"


def test_zip64_is_read() -> None:
    file = io.BytesIO()
    plain = zipfile.ZipFile(io.BytesIO(epub({"a.xhtml": chapter("<p>text</p>")})))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(plain.read(name))
    assert text_of(file.getvalue()).text == "text"


def test_pdf_gives_its_pages_in_order_and_joins_broken_words() -> None:
    first = "Steel is made in a con-\nverter by the method of Anglo-\nSaxons. The end-\n 12"
    book = text_of(pdf(first, "Second page", "", "café", title=" On Steel "))
    joined = "Steel is made in a converter by the method of Anglo-Saxons. The end-\n 12"
    assert book == Extracted(f"{joined}\n\nSecond page\n\ncafé", None, "On Steel")


def test_pdf_behind_a_password_or_damaged_is_told() -> None:
    assert text_of(pdf("secret", password="word")).error == "encrypted"
    assert text_of(pdf("secret", password="")).text == "secret"
    whole = pdf("text")
    assert text_of(whole[: len(whole) // 2]).error == "corrupt"
    assert text_of(b"%PDF-1.7 nothing").error == "corrupt"
    assert text_of(b"some bytes before\n" + whole).text == "text"


def test_pdf_without_text_is_empty_and_with_too_many_pages_refused() -> None:
    assert text_of(pdf("")) == Extracted("", None)
    assert text_of(pdf_of_stream(b"0 0 10 10 re f", filters=b"")).text == ""
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>"
    pages = b"<</Type/Pages/Kids[%b]/Count 10001>>" % (b"3 0 R " * 10001)
    assert text_of(raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", pages, page)).error == "too_large"


def test_each_file_is_one_row_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    files = {"a.b.epub": pdf("one"), "b.pdf": epub({"a.xhtml": chapter("<p>two</p>")}), "c.epub": b"no"}
    for name, content in files.items():
        (tmp_path / "books" / name).write_bytes(content)
    source = Source(name="books", kind="books", path="books", group="stem")
    part = Part(tuple(find_inputs("source 'books'", "books", tmp_path)))
    rows = [(row.id, row.group, row.text, row.error, row.origin) for row in read_books(source, part)]
    assert rows == [
        ("books/a.b.epub", "a", "one", None, None),
        ("books/b.pdf", "b", "two", None, "On Steel"),
        ("books/c.epub", "c", None, "not_a_book", None),
    ]
