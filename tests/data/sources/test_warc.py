"""Crawls: each response and conversion is one row, in one part, whatever is broken around it."""

import base64
import gzip
import hashlib
import io
import random
import zlib
from pathlib import Path
from typing import Any

import brotli
import pyarrow as pa
import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType
from making_archives import answer, chunked, pdf, raw_record, response, warc
from warcio.archiveiterator import ArchiveIterator as WarcioIterator

from bessemer.data.sources.inputs import find_inputs
from bessemer.data.sources.parts import Document, Part
from bessemer.data.sources.warc import read_warc, warc_cuts
from bessemer.recipe.schema import Source

TEXT = "Steel is made of iron, coal and air; the rest is work. "
HTML = "Content-Type: text/html; charset=utf-8\r\n"


def page(number: int | str) -> bytes:
    return f"<html><body><p>Größe {number}: {TEXT}</p></body></html>".encode()


def read(
    tmp_path: Path, content: bytes, *, begin: int = 0, end: int | None = None, **more: Any
) -> list[Document]:
    (tmp_path / "a.warc").write_bytes(content)
    source = Source(name="crawl", kind="warc", path="a.warc", **more)
    return list(read_warc(source, Part(tuple(find_inputs("it", "a.warc", tmp_path)), begin, end)))


def outcomes(rows: list[Document]) -> list[str | None]:
    """The number in each page's text, or the reason why there is none."""
    return [row.error if row.text is None else row.text.split(":")[0].removeprefix("Größe ") for row in rows]


def members(*records: bytes) -> bytes:
    return b"".join(map(gzip.compress, records))


def records(count: int = 6) -> list[bytes]:
    return [raw_record(number, answer(page(number), HTML)) for number in range(count)]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("packed", [True, False])
def test_responses_are_rows_and_nothing_else_is(tmp_path: Path, version: str, packed: bool) -> None:
    content = warc(
        *(response(n, page(n)) for n in range(5)), packed=packed, version=version, with_requests=True
    )
    rows = read(tmp_path, content, group="host")
    wanted = [record for record in WarcioIterator(io.BytesIO(content)) if record.rec_type == "response"]
    assert [row.origin for row in rows] == [r.rec_headers.get_header("WARC-Target-URI") for r in wanted]
    assert [row.num_bytes for row in rows] == [
        int(r.rec_headers.get_header("Content-Length")) for r in wanted
    ]
    assert rows[3].text == f"Größe 3: {TEXT.strip()}"
    assert (rows[3].id, rows[3].group, rows[3].has_own_id) == ("3", "host3.example", True)
    assert outcomes(rows) == ["0", "1", "2", "3", "4"]


def test_files_of_other_packing_hold_the_same_rows(tmp_path: Path) -> None:
    plain = b"".join(records())
    frames = b"".join(pa.compress(record, "zstd", asbytes=True) for record in records())
    for content in (plain, members(*records()), gzip.compress(plain), frames, members(plain, plain)[:-1]):
        assert outcomes(read(tmp_path, content))[:6] == ["0", "1", "2", "3", "4", "5"]
    assert read(tmp_path, b"") == read(tmp_path, gzip.compress(b"")) == []


def test_converted_text_is_taken_as_it_is(tmp_path: Path) -> None:
    records = [
        raw_record(n, body, kind="conversion").replace(b"application/http; msgtype=response", kind)
        for n, (body, kind) in enumerate(
            (
                ("Größe 0:\n<p>".encode(), b"text/plain"),
                (b"{}", b"application/json"),
                (bytes(range(128, 256)), b"text/plain"),
            )
        )
    ]
    rows = read(tmp_path, members(*records))
    assert rows[0].text == "Größe 0:\n<p>"
    assert outcomes(rows)[1:] == ["content_type", "undecodable"]


def test_each_response_that_is_no_document_has_its_reason(tmp_path: Path) -> None:
    cases = [
        (response(0, page(0), status="404 Not Found"), "http_status"),
        (response(0, page(0), status="301 Moved"), "http_status"),
        (response(0, page(0), "Content-Type: image/png"), "content_type"),
        (response(0, page(0), ""), "content_type"),
        (response(0, page(0), "", WARC_Identified_Payload_Type="text/html"), "0"),
        (response(0, page(0), "Content-Type: APPLICATION/XHTML+XML"), "0"),
        (response(0, page(0), "Content-Type: text/html\nContent-Encoding: sdch"), "encoding"),
        (response(0, page(0), WARC_Truncated="length"), "truncated"),
        (response(0, b"a\0b"), "binary"),
        (response(0, b"<p>" + bytes(range(128, 256)) * 20), "undecodable"),
        (response(0, "Größe 7: <b>".encode(), "Content-Type: text/plain"), "7"),
        (response(0, pdf("Grade 8: x"), "Content-Type: application/pdf"), "Grade 8"),
        (response(0, b"no pdf", "Content-Type: application/pdf"), "corrupt"),
        (response(0, "Größe 9:".encode("latin-1"), "Content-Type: text/html; Charset='latin1'"), "9"),
    ]
    rows = read(tmp_path, warc(*(case for case, _ in cases)))
    assert outcomes(rows) == [wanted for _, wanted in cases]


def test_digests_of_the_block_are_checked_in_every_spelling(tmp_path: Path) -> None:
    block = answer(page(0), HTML)
    sha1 = base64.b32encode(hashlib.sha1(block).digest()).decode()
    cases = {
        f"sha1:{sha1}": "0",
        f"SHA-1: {sha1.lower()}": "0",
        f"sha256:{hashlib.sha256(block).hexdigest()}": "0",
        f"sha256:{base64.b32encode(hashlib.sha256(block).digest()).decode().rstrip('=')}": "0",
        f"md5:{hashlib.md5(block).hexdigest()}": "0",
        "blake9:AAAA": "0",
        f"sha1:{'A' * 32}": "corrupt",
        "sha1:": "corrupt",
    }
    made = [raw_record(0, block, more=f"WARC-Block-Digest: {digest}\r\n") for digest in cases]
    assert outcomes(read(tmp_path, members(*made))) == list(cases.values())


def test_codings_are_taken_off_in_their_order(tmp_path: Path) -> None:
    body = page(1)
    raw = zlib.compressobj(wbits=-15)
    cases = {
        "Content-Encoding: gzip": [gzip.compress(body), body, gzip.compress(body) + gzip.compress(b"x")],
        "Content-Encoding: x-gzip": [gzip.compress(body)],
        "Content-Encoding: deflate": [zlib.compress(body), raw.compress(body) + raw.flush()],
        "Content-Encoding: br": [brotli.compress(body)],
        "Content-Encoding: zstd": [pa.compress(body, "zstd", asbytes=True), body],
        "Transfer-Encoding: chunked": [chunked(body[:20], body[20:]), body, chunked(body) + b"trailer"],
        "Content-Encoding: gzip\nTransfer-Encoding: chunked": [chunked(gzip.compress(body))],
        "Content-Encoding: deflate, gzip": [gzip.compress(zlib.compress(body))],
        "Transfer-Encoding: gzip, chunked": [chunked(gzip.compress(body))],
        "Content-Encoding: identity": [body],
    }
    for headers, bodies in cases.items():
        made = warc(*(response(1, body, f"Content-Type: text/html\n{headers}") for body in bodies))
        assert outcomes(read(tmp_path, made)) == ["1"] * len(bodies), headers


def test_broken_codings_are_corrupt(tmp_path: Path) -> None:
    body = page(1) * 20
    cases = {
        "Content-Encoding: gzip": [gzip.compress(body)[:-9], b"\x1f\x8b garbage"],
        "Content-Encoding: deflate": [zlib.compress(body)[:-9], b"garbage"],
        "Content-Encoding: br": [brotli.compress(body)[:-3], b"garbage garbage"],
        "Content-Encoding: zstd": [pa.compress(body, "zstd", asbytes=True)[:-9]],
        "Transfer-Encoding: chunked": [
            chunked(body)[:-9],
            b"fffffff\r\n" + body,
            b"3\r\n" + body + b"\r\n0\r\n\r\n",
            b"5\r\nhello\r\nzz\r\n",
        ],
    }
    for headers, bodies in cases.items():
        made = warc(*(response(1, body, f"Content-Type: text/html\n{headers}") for body in bodies))
        assert outcomes(read(tmp_path, made)) == ["corrupt"] * len(bodies), headers


def test_a_file_cut_anywhere_gives_its_whole_records_and_one_truncated_row(tmp_path: Path) -> None:
    packed = [gzip.compress(record) for record in records(3)]
    whole, last = b"".join(packed[:2]), packed[2]
    for length in range(1, len(last)):
        assert outcomes(read(tmp_path, whole + last[:length])) == ["0", "1", "truncated"], length
    plain = b"".join(records(3))
    start = len(b"".join(records(2)))
    for length in range(start + 1, len(plain) - 4):
        reason = "truncated" if length >= start + len("WARC/1.0") else "corrupt"
        assert outcomes(read(tmp_path, plain[:length])) == ["0", "1", reason], length


def test_damage_costs_its_own_record_only(tmp_path: Path) -> None:
    packed = [gzip.compress(record) for record in records()]
    damaged = packed[2][:60] + bytes([packed[2][60] ^ 0x55]) + packed[2][61:]
    wrong_sum = packed[2][:-8] + b"\0\0\0\0" + packed[2][-4:]
    for bad in (damaged, wrong_sum, packed[2][:-30], b"garbage" * 9, gzip.compress(b"no record" * 99)):
        rows = read(tmp_path, b"".join([*packed[:2], bad, *packed[3:]]))
        assert outcomes(rows) == ["0", "1", "corrupt", "3", "4", "5"]
    assert outcomes(read(tmp_path, b"".join(packed) + bytes(70_000))) == ["0", "1", "2", "3", "4", "5"]
    assert outcomes(read(tmp_path, b"garbage" * 99)) == ["corrupt"]


@pytest.mark.parametrize("length", [30, 70, 100_000, 2**62, -5])
@pytest.mark.parametrize("packed", [True, False])
def test_a_length_that_lies_costs_its_own_record_only(tmp_path: Path, length: int, packed: bool) -> None:
    made = records()
    made[2] = raw_record(2, answer(page(2), HTML), length)
    content = members(*made) if packed else b"".join(made)
    rows = outcomes(read(tmp_path, content))
    assert rows[:2] == ["0", "1"] and rows[-3:] == ["3", "4", "5"]
    assert rows[2:-3] in (["corrupt"], ["truncated"], ["too_large"])


def test_every_record_is_in_exactly_one_part_wherever_the_file_is_cut(tmp_path: Path) -> None:
    inner = members(*records(40))  # a crawl inside a page of the crawl, stored so that its bytes stand there
    nested = response(99, inner, "Content-Type: application/octet-stream")
    rows = [response(n, page(n) * (n % 7 + 1)) for n in range(60)]
    packed = warc(*rows[:30], nested, *rows[30:], with_requests=True)
    damaged = packed[: len(packed) // 3] + b"damage" + packed[len(packed) // 3 + 6 :]
    plain = warc(*rows, packed=False, with_requests=True)
    for content in (packed, plain, damaged, gzip.compress(plain), members(*records(5)) + bytes(999)):
        whole = read(tmp_path, content)
        for every in (1, 300, 1000, 4001, 10_000, 10**9):
            cuts = warc_cuts(io.BytesIO(content), every)
            begins = [(0, 1), *cuts[:-1]]
            parts = [
                read(tmp_path, content, begin=begin, end=end)
                for (begin, _), end in zip(begins, [place for place, _ in cuts], strict=True)
            ]
            assert [row for part in parts for row in part] == whole
            numbers = [1 + sum(map(len, parts[:index])) for index in range(len(parts) + 1)]
            assert [number for _, number in (*begins, cuts[-1])] == numbers
    assert len(warc_cuts(io.BytesIO(packed), 1)) > 100


def test_random_bytes_and_random_damage_never_raise_and_lose_few_rows(tmp_path: Path) -> None:
    chance = random.Random(4)
    packed = warc(*(response(n, page(n)) for n in range(20)))
    plain = warc(*(response(n, page(n)) for n in range(20)), packed=False)
    for content in (packed, plain) * 40:
        bad = bytearray(content)
        for _ in range(3):
            bad[chance.randrange(8, len(bad))] = chance.randrange(256)
        rows = outcomes(read(tmp_path, bytes(bad)))
        assert sum(row in map(str, range(20)) for row in rows) >= 17 and len(rows) <= 23
    for _ in range(50):
        read(tmp_path, chance.choice([b"", b"WARC/1.0\r\n", b"\x1f\x8b\x08\0"]) + chance.randbytes(3000))


def test_ids_without_a_record_id_are_the_place(tmp_path: Path) -> None:
    made = [record.replace(b"WARC-Record-ID", b"X-Record-ID") for record in records(2)]
    rows = read(tmp_path, members(*made, b"".join(made)))
    first, second = (len(gzip.compress(record)) for record in made)
    places = ["0", str(first), str(first + second), f"{first + second}.2"]
    assert [row.id for row in rows] == [f"a.warc:{place}" for place in places]
    assert not any(row.has_own_id for row in rows)


def test_rows_are_those_that_fastwarc_finds(tmp_path: Path) -> None:
    content = warc(*(response(n, page(n)) for n in range(50)), with_requests=True)
    found = ArchiveIterator(io.BytesIO(content), record_types=WarcRecordType.response, parse_http=True)
    bodies = [record.reader.read() for record in found]
    assert bodies == [page(n) for n in range(50)]
    assert outcomes(read(tmp_path, content)) == [str(n) for n in range(50)]
