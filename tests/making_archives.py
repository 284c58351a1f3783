"""WARC files, books and hostile archives, written by libraries of others or byte by byte."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence

from fpdf import FPDF
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

MB = 1_000_000


class Writer(WARCWriter):  # type: ignore[misc]
    @classmethod
    def _create_temp_file(cls) -> io.BytesIO:  # warcio's own one is never closed
        return io.BytesIO()


CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="{}" media-type="application/oebps-package+xml"/></rootfiles></container>"""
PACKAGE = """<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="{version}" unique-identifier="id">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></metadata>
<manifest>{manifest}</manifest><spine>{spine}</spine>{guide}</package>"""
ENCRYPTION = """<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"
 xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData>
<enc:EncryptionMethod Algorithm="{}"/><enc:CipherData><enc:CipherReference URI="{}"/></enc:CipherData>
</enc:EncryptedData></encryption>"""


def chapter(body: str, title: str = "<title>Steel</title>") -> str:
    head = (
        '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml">'
    )
    return f"{head}<head>{title}</head><body>{body}</body></html>"


def item(key: str, name: str, more: str = "", kind: str = "application/xhtml+xml") -> str:
    return f'<item id="{key}" href="{name}" media-type="{kind}" {more}/>'


def package(
    chapters: Sequence[str], more_items: str = "", spine: str = "", guide: str = "", version: str = "3.0"
) -> str:
    manifest = "".join(item(f"c{n}", name) for n, name in enumerate(chapters)) + more_items
    spine = spine or "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    return PACKAGE.format(version=version, title="On  Steel", manifest=manifest, spine=spine, guide=guide)


def zipped(entries: Mapping[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def epub(
    chapters: Mapping[str, str | bytes], opf: str | None = None, folder: str = "OEBPS", **others: str | bytes
) -> bytes:
    """`chapters`: names inside the folder. `others`: name of an entry, with __ for /."""
    path = f"{folder}/content.opf" if folder else "content.opf"
    entries: dict[str, str | bytes] = {"mimetype": "application/epub+zip"}
    entries["META-INF/container.xml"] = CONTAINER.format(path)
    entries[path] = opf if opf is not None else package(list(chapters))
    for name, content in chapters.items():
        entries[f"{folder}/{name}" if folder else name] = content
    entries.update({name.replace("__", "/"): content for name, content in others.items()})
    return zipped(entries)


def pdf(*pages: str, title: str = "", password: str | None = None) -> bytes:
    document = FPDF()
    if title:
        document.set_title(title)
    if password is not None:
        document.set_encryption(owner_password="owner", user_password=password)
    for page in pages:
        document.add_page()
        document.set_font("helvetica", size=12)
        document.multi_cell(90, 6, page)
    return bytes(document.output())


def raw_pdf(*objects: bytes) -> bytes:
    """Numbered from 1; the first one is the catalogue."""
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    tail = b"xref\n0 %d\n0000000000 65535 f \n%btrailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n"
    return out + tail % (count, table, count, len(out))


def pdf_of_stream(stream: bytes, filters: bytes = b"/FlateDecode") -> bytes:
    """One page that shows this."""
    return raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</Font<</F1 5 0 R>>>>/Contents 4 0 R>>",
        b"<</Length %d/Filter[%b]>>stream\n%b\nendstream" % (len(stream), filters, stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )


def deflated(
    num_mb: int, wbits: int = -15, unit: bytes = b"\0", before: bytes = b"", after: bytes = b""
) -> bytes:
    """`num_mb` times the same MB, packed once: a thousandth of that in size, and made at once."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    block = unit * (MB // len(unit))
    middle = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = start + middle * num_mb + packer.compress(after) + packer.flush()
    if wbits == -15:
        return packed
    if wbits == 15:  # zlib: with a wrong sum, which nobody reaches
        return b"\x78\x9c" + packed + bytes(4)
    crc = zlib.crc32(before)
    for _ in range(num_mb):
        crc = zlib.crc32(block, crc)
    size = len(before) + len(block) * num_mb + len(after)
    return gzip.compress(b"")[:10] + packed + struct.pack("<2L", zlib.crc32(after, crc), size & 0xFFFFFFFF)


def response(
    number: int,
    body: bytes,
    headers: str = "Content-Type: text/html; charset=utf-8",
    status: str = "200 OK",
    **more: str,
) -> dict[str, object]:
    return {"number": number, "body": body, "headers": headers, "status": status, "more": more}


def warc(
    *rows: dict[str, object], packed: bool = True, version: str = "1.0", with_requests: bool = False
) -> bytes:
    """As warcio writes it: a member a record, digests of block and payload."""
    file = io.BytesIO()
    writer = Writer(file, gzip=packed, warc_version=version)
    writer.write_record(writer.create_warcinfo_record("a.warc", {"software": "a test"}))
    for row in rows:
        pairs = [tuple(line.split(": ", 1)) for line in str(row["headers"]).split("\n") if line]
        http = StatusAndHeaders(str(row["status"]), pairs, protocol="HTTP/1.1")
        address = f"http://www.host{row['number']}.example/page"
        extra = {name.replace("_", "-"): value for name, value in row["more"].items()}  # type: ignore[attr-defined]
        headers = {"WARC-Record-ID": f"<urn:uuid:{row['number']}>", **extra}
        if with_requests:
            asked = StatusAndHeaders("GET /page HTTP/1.1", [("Host", "a")], is_http_request=True)
            writer.write_record(writer.create_warc_record(address, "request", http_headers=asked))
        payload = io.BytesIO(row["body"])  # type: ignore[arg-type]
        writer.write_record(
            writer.create_warc_record(
                address, "response", payload=payload, http_headers=http, warc_headers_dict=headers
            )
        )
    return file.getvalue()


def raw_record(
    number: int, block: bytes, length: int | None = None, more: str = "", kind: str = "response"
) -> bytes:
    """Without a digest, and with any Content-Length."""
    length = len(block) if length is None else length
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n"
        f"WARC-Target-URI: http://host{number}.example/\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n{more}"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def answer(body: bytes, headers: str = "Content-Type: text/html\r\n", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\n".encode() + body


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def zip_of_bytes(names: Sequence[str], packed: bytes, num_bytes: int, crc: int, method: int = 8) -> bytes:
    """Entries of which the directory says this; all of them are the same bytes of the file."""
    local, directory = b"", b""
    for name in names:
        common = struct.pack("<5H3L2H", 20, 0, method, 0, 0, crc, len(packed), num_bytes, len(name), 0)
        if not local:
            local = b"PK\3\4" + common + name.encode() + packed
        directory += (
            b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<3H2L", 0, 0, 0, 0, 0) + name.encode()
        )
    count = len(names)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(local), 0)
    return local + directory + end


def with_size(content: bytes, num_bytes: int) -> bytes:
    """The directory says this of its last entry."""
    entry = content.rfind(b"PK\1\2")
    return content[: entry + 24] + struct.pack("<L", num_bytes) + content[entry + 28 :]
