"""Files made to harm, read by a process with 1.5 GB of memory, as a worker is.

Each gives an error with its reason, or its text, within seconds. Only what makes PDFium run out of memory
or of time may end the process: nothing inside it can stop that, and whoever runs workers counts the file.
"""

import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from making_archives import (
    CONTAINER,
    MB,
    answer,
    chapter,
    chunked,
    deflated,
    epub,
    item,
    package,
    pdf_of_stream,
    raw_pdf,
    raw_record,
    with_size,
    zip_of_bytes,
    zipped,
)

from bessemer.data.sources.documents import read, source_inputs
from bessemer.data.sources.pages import MOST_PAGE_BYTES
from bessemer.data.sources.parts import Part
from bessemer.recipe.schema import Source

MEMORY_BYTES = 1_500 * MB
LONGEST_S = 10.0
PAGE = {"a.xhtml": chapter("<p>text</p>")}
ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
LAUGHS = f'<!DOCTYPE package [<!ENTITY e0 "ha">{ENTITIES}]>'
THIEF = '<!DOCTYPE package [<!ENTITY e9 SYSTEM "file:///etc/passwd">]>'


def reader(folder: Path) -> None:
    """In the child: a JSON line a file, [name, outcomes, seconds of CPU, MB at most]. Kinds are suffixes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for path in sorted(folder.iterdir()):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the highest memory so far
        start = time.process_time()
        source = Source(name="hostile", kind=path.suffix[1:], path=path.name)
        part = Part(tuple(source_inputs(source, folder)))
        rows = [row.error or (row.text or "")[:40] for row in read(source, part)]
        highest = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        memory_mb = int(highest[1]) / 1000 if highest else 0.0
        print(json.dumps([path.stem, rows, time.process_time() - start, memory_mb]), flush=True)


def outcomes(folder: Path, files: dict[str, bytes]) -> tuple[int, dict[str, list[str]]]:
    """(how the process ended, what each row of each file gave), of one process that reads them all."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, __file__, str(folder)]
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run(command, capture_output=True, timeout=300, check=False, env=paths)
    assert child.returncode <= 0, child.stderr.decode()
    found = {}
    for name, rows, cpu_s, memory_mb in map(json.loads, child.stdout.splitlines()):
        print(f"{name:36} {cpu_s:6.2f} s {memory_mb:6.0f} MB  {rows}")
        assert cpu_s < LONGEST_S and memory_mb < MEMORY_BYTES / MB, name
        found[name] = rows
    return child.returncode, found


def with_entries(entries: dict[str, str | bytes | zipfile.ZipInfo]) -> bytes:
    start = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER.format("content.opf")}
    return zipped({**start, **entries})


def laughing(head: str) -> bytes:
    return epub(PAGE, head + package(["a.xhtml"]).split("?>\n", 1)[1].replace("On  Steel", "&e9;"))


def laughing_package() -> bytes:
    return laughing(LAUGHS)


def thieving_package() -> bytes:
    return laughing(THIEF)


def zip_bomb() -> bytes:
    """4 GB in one chapter; zipfile would inflate it."""
    return with_size(epub(PAGE), 4000 * MB)


def lying_zip_bomb() -> bytes:
    """2 GB of which the directory says that they are 10 bytes."""
    return zip_of_bytes(["META-INF/container.xml"], deflated(2000), 10, 0)


def many_chapters() -> bytes:
    """300 MB in chapters of 10 MB, none of which is large in itself."""
    return epub({f"{n}.xhtml": b" " * (10 * MB) for n in range(30)})


def nested() -> bytes:
    """A zip in a zip in a zip, as bombs that unpack themselves are."""
    inner = zipped({"a": b"\0" * MB})
    for _ in range(5):
        inner = zipped({f"{n}.zip": inner for n in range(10)})
    return epub({"inner.zip": inner, **PAGE}, package(["a.xhtml"], item("z", "inner.zip")))


def eating_itself() -> bytes:
    """An entry that is the archive itself, one level down; what a quine does without end."""
    book = epub(PAGE)
    return epub({"self.epub": book, **PAGE}, package(["self.epub"]))


def overlapping() -> bytes:
    """5,000 entries of 20 MB that are one: 100 GB in 300 kB."""
    names = ["META-INF/container.xml", "mimetype", *(f"OEBPS/{n}.xhtml" for n in range(5000))]
    return zip_of_bytes(names, deflated(15, unit=b" "), 15 * MB, 0)


def same_chapter_often() -> bytes:
    book = {"a.xhtml": chapter("<p>text</p>") + " " * (9 * MB)}
    return epub(book, package(["a.xhtml"], spine='<itemref idref="c0"/>' * 100_000))


def traversing() -> bytes:
    return epub(PAGE, package(["../../../../../../etc/passwd"]))


def absolute() -> bytes:
    return epub(PAGE, package(["/etc/passwd"]))


def outside_and_inside() -> bytes:
    """A name that leads out of the archive is only a name, and is found under it."""
    opf = package(["../../evil.xhtml"])
    return with_entries({"content.opf": opf, "../../evil.xhtml": chapter("<p>only a name</p>")})


def symbolic_link() -> bytes:
    """The entry says that it is a link; it is read as what it holds."""
    return epub({"a.xhtml": "/etc/passwd"}).replace(b"\x80\x01", b"\xff\xa1")  # mode: a link


def wrong_sum() -> bytes:
    whole = bytearray(epub(PAGE))
    entry = whole.rfind(b"PK\1\2")
    whole[entry + 16] ^= 0xFF
    return bytes(whole)


def cut_directory() -> bytes:
    return epub(PAGE)[:-40]


def huge_directory() -> bytes:
    """A million empty entries: 50 MB that would cost 1 GB as objects."""
    entry = b"PK\1\2" + bytes(24) + b"\1\0" + bytes(16) + b"a"
    end = b"PK\5\6" + bytes(4) + b"\xff\xff\xff\xff" + (len(entry) * 10**6).to_bytes(4, "little")
    return b"PK\3\4" + bytes(26) + entry * 10**6 + end + b"\x1e\0\0\0" + b"\0\0"


def unbounded_packing() -> bytes:
    """bzip2, which zipfile would inflate in blocks of any size."""
    entries = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER.format("content.opf")}
    return zipped({**entries, "content.opf": b" " * (15 * MB)}, zipfile.ZIP_BZIP2)


def laughing_chapter() -> bytes:
    page = chapter("<p>text &e9;</p>").replace("<!DOCTYPE html>", LAUGHS.replace("package", "html"))
    return epub({"a.xhtml": page})


def duplicate_names() -> bytes:
    opf = package(["a.xhtml"])
    first, second = chapter("<p>first</p>"), chapter("<p>other</p>")
    return with_entries({"content.opf": opf, "b.xhtml": first, "a.xhtml": second}).replace(
        b"b.xhtml", b"a.xhtml"
    )


def deep_package() -> bytes:
    return epub(PAGE, "<a>" * 200_000 + "</a>" * 200_000)


def pdf_loop() -> bytes:
    return raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R]/Count 5>>")


def pdf_of_endless_pages() -> bytes:
    return raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R]/Count 2000000000>>")


BOOKS: dict[Callable[[], bytes], list[str]] = {
    zip_bomb: ["too_large"],
    lying_zip_bomb: ["corrupt"],
    many_chapters: ["too_large"],
    nested: ["text"],
    eating_itself: ["undecodable"],
    overlapping: ["corrupt"],
    same_chapter_often: ["text"],
    traversing: ["corrupt"],
    absolute: ["corrupt"],
    outside_and_inside: ["only a name"],
    symbolic_link: ["/etc/passwd"],
    laughing_package: ["corrupt"],
    thieving_package: ["corrupt"],
    laughing_chapter: ["text &e9;"],
    wrong_sum: ["corrupt"],
    cut_directory: ["corrupt"],
    huge_directory: ["too_large"],
    unbounded_packing: ["corrupt"],
    duplicate_names: ["other"],
    deep_package: ["corrupt"],
    pdf_loop: ["corrupt"],
    pdf_of_endless_pages: ["corrupt"],
}


def pages_around(record: bytes, packed: bool = True) -> bytes:
    good = [raw_record(n, answer(f"<p>page {n}".encode())) for n in range(2)]
    pieces = [good[0], record, good[1]]
    return b"".join(map(gzip.compress, pieces) if packed else pieces)


def record_of_1_gb() -> bytes:
    """An honest length, 1 MB in size."""
    head = raw_record(7, b"", 1000 * MB).removesuffix(b"\r\n\r\n")
    first, last = pages_around(b"").split(gzip.compress(b""))
    return first + deflated(1000, 31, before=head, after=b"\r\n\r\n") + last


CODED = "Content-Type: text/html\r\nContent-Encoding: {}\r\n"
RECORDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "record of 1 GB": (record_of_1_gb, "too_large"),
    "gzip bomb": (
        lambda: pages_around(raw_record(7, answer(deflated(300, 31), CODED.format("gzip")))),
        "too_large",
    ),
    "bomb in a bomb": (
        lambda: pages_around(
            raw_record(7, answer(gzip.compress(deflated(300, 31)), CODED.format("gzip, gzip")))
        ),
        "too_large",
    ),
    "page at the limit": (
        lambda: pages_around(
            raw_record(7, answer(gzip.compress(b"<b>x</b>" * (MOST_PAGE_BYTES // 8)), CODED.format("gzip")))
        ),
        "x" * 40,
    ),
    "length that lies": (lambda: pages_around(raw_record(7, answer(b"<p>text"), 10**15)), "truncated"),
    "plain length that lies": (
        lambda: pages_around(raw_record(7, answer(b"<p>text"), 10**15), packed=False),
        "truncated",
    ),
    "chunk that lies": (
        lambda: pages_around(
            raw_record(
                7, answer(b"fffffffff\r\ntext", "Content-Type: text/html\r\nTransfer-Encoding: chunked\r\n")
            )
        ),
        "corrupt",
    ),
    "a million chunks": (
        lambda: pages_around(
            raw_record(
                7,
                answer(chunked(*[b"a"] * MB), "Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n"),
            )
        ),
        "a" * 40,
    ),
    "a header without end": (
        lambda: pages_around(raw_record(7, answer(b"<p>", "X: y\r\n" * MB))),
        "content_type",
    ),
    "a record header without end": (
        lambda: pages_around(raw_record(7, answer(b"<p>text"), more="X: y\r\n" * MB)),
        "corrupt",
    ),
}


def test_hostile_archives_end_as_rows_in_bounded_time_and_memory(tmp_path: Path) -> None:
    files = {f"{make.__name__}.books": make() for make in BOOKS}
    files |= {f"{name}.warc": make() for name, (make, _) in RECORDS.items()}
    wanted = {make.__name__: rows for make, rows in BOOKS.items()}
    wanted |= {name: ["page 0", row, "page 1"] for name, (_, row) in RECORDS.items()}
    assert outcomes(tmp_path / "all", files) == (0, wanted)
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.parent.glob("*evil*"))


def test_a_pdf_bomb_ends_its_process_and_no_other(tmp_path: Path) -> None:
    bomb = pdf_of_stream(deflated(1000, 15))
    assert len(bomb) < 2 * MB
    how, _ = outcomes(tmp_path / "one", {"a.books": bomb})
    assert how in (-signal.SIGABRT, -signal.SIGTRAP, -signal.SIGSEGV)


if __name__ == "__main__":
    reader(Path(sys.argv[1]))
