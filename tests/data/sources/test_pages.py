"""Bytes of pages become the characters that were meant, or are refused with a reason."""

import codecs
import time

import pytest

from bessemer.data.sources.pages import MOST_PAGE_BYTES, html_text, page_text, plain_text

GERMAN = "Über die Größe der Öfen und die Wärme des Stahls wird später noch ausführlich gesprochen werden."
RUSSIAN = "Сталь выплавляют из чугуна, продувая через него воздух; при этом сгорает лишний углерод."
JAPANESE = "鋼は鉄と炭素の合金であり、ベッセマー法によって大量生産が可能になった。空気を吹き込む。"
CHINESE = "贝塞麦转炉炼钢法是第一个能够大量生产钢的方法。其主要原理是通过向熔融的生铁吹入空气。"


def page(text: str, encoding: str, head: str = "") -> bytes:
    return f"<html><head>{head}</head><body><p>{text}</p></body></html>".encode(encoding)


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        (GERMAN, "utf-8", "UTF8"),
        (GERMAN, "cp1252", "ISO-8859-1"),
        (GERMAN + " €“", "cp1252", "iso-8859-1"),  # browsers take one for the other
        (RUSSIAN, "cp1251", "windows-1251"),
        (RUSSIAN, "koi8-r", '"KOI8-R"'),
        (JAPANESE + "①", "cp932", "Shift_JIS"),  # a character that strict Shift JIS lacks
        (JAPANESE, "iso2022_jp", "ISO-2022-JP"),
        (CHINESE + "镕", "gb18030", "gb2312"),
        ("베서머 제강법은 용융 선철로부터 강철을", "cp949", "euc-kr"),
    ],
)
def test_declared_encodings_are_followed_by_header_and_by_meta(text: str, encoding: str, name: str) -> None:
    assert page_text(page(text, encoding), name) == (text, None)
    quoted = name.strip('"')
    assert page_text(page(text, encoding, f'<meta charset="{quoted}">')) == (text, None)
    old = f'<meta http-equiv="Content-Type" content="text/html; charset={quoted}">'
    assert page_text(page(text, encoding, old)) == (text, None)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(GERMAN, "cp1252"), (RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r"), (JAPANESE, "shift_jis"), (CHINESE, "gbk")],
)
def test_undeclared_encodings_are_detected(text: str, encoding: str) -> None:
    assert page_text(page(text, encoding)) == (text, None)


def test_marks_at_the_beginning_win_over_everything_declared() -> None:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        meta = '<meta charset="koi8-r">'
        assert page_text(mark + page(GERMAN, encoding, meta), "windows-1251") == (GERMAN, None)


def test_header_wins_over_meta_and_utf8_over_a_default_of_latin1() -> None:
    assert page_text(page(RUSSIAN, "koi8-r", '<meta charset="windows-1251">'), "koi8-r") == (RUSSIAN, None)
    assert page_text(page(GERMAN, "utf-8"), "iso-8859-1") == (GERMAN, None)
    assert page_text(page(GERMAN, "utf-8", '<meta charset="utf-16">')) == (GERMAN, None)
    xml = f'<?xml version="1.0" encoding="koi8-r"?><html><body><p>{RUSSIAN}</p></body></html>'
    assert page_text(xml.encode("koi8-r")) == (RUSSIAN, None)


def test_python_only_codecs_are_no_encodings() -> None:
    for name in ("rot13", "zlib", "idna", "unicode_escape", "utf-7", "punycode", "bogus", "", "\x00"):
        assert page_text(page(GERMAN, "utf-8"), name) == (GERMAN, None)


def test_a_cut_character_is_replaced_and_garbage_is_refused() -> None:
    text = GERMAN * 30
    cut = page(text, "utf-8", '<meta charset="utf-8">').replace("Öfen".encode(), b"\xc3fen", 1)
    assert page_text(cut) == (text.replace("Öfen", "\ufffdfen", 1), None)
    garbage = bytes(range(128, 256)) * 30
    assert page_text(garbage) == (None, "undecodable")
    assert page_text(garbage, "utf-8") == (None, "undecodable")
    assert page_text(b"<p>nul \0 byte") == (None, "binary")
    assert page_text(page(GERMAN, "utf-16-le"), "utf-8") == (None, "binary")
    assert page_text(b"") == ("", None)
    assert plain_text(b"a\r\n<b>\n\xe9", "latin1") == ("a\n<b>\né", None)


def test_pages_that_would_fill_the_memory_are_refused() -> None:
    assert page_text(b" " * (MOST_PAGE_BYTES + 1)) == (None, "too_large")


def test_html_gives_its_main_content_or_else_all_text() -> None:
    content = "<body><nav>Home</nav><main><h1>Steel</h1><p>Made&nbsp;of iron &amp; coal.</p></main></body>"
    assert "Made of iron & coal." in html_text(content) and "\xa0" not in html_text(content)
    assert html_text("<p>Only this.</p>") == "Only this."
    assert html_text("<body></body>") == ""


def test_pages_of_endless_depth_take_no_endless_time() -> None:
    start = time.process_time()
    for opened, closed in (
        ("<div>", ""),
        ("<dIv >", "</DIV>"),
        ("<section>", ""),
        ("<ul><li>", "</li></ul>"),
    ):
        text, error = page_text(f"{opened * 50_000}steel{closed * 50_000}".encode())
        assert error is None and "steel" in (text or "")
    assert time.process_time() - start < 20  # two minutes for the first one alone, were it searched
    assert html_text("<nav>Home</nav>" + "<div>a</div>" * 2000).startswith("a")
