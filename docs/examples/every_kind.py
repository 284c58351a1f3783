"""Writes a few small files of every kind that a recipe can read, with what goes wrong in real ones.

    python docs/examples/every_kind.py FOLDER

Beside them belongs every_kind.toml. docs/data.md shows what a build makes of them.
"""

import csv
import gzip
import json
import random
import sqlite3
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SENTENCES = """
Air is blown through the molten iron until its carbon is burnt, which takes about twenty minutes.
The heat comes from the impurities themselves, so that no fuel is needed once the blast is on.
A charge of ten tons filled the converter to a third, as the metal boils up while it is blown.
The flame at the mouth tells an experienced eye when the last of the carbon has gone.
Manganese and carbon are given back at the end, in amounts that were weighed beforehand.
The lining has to suit the ore, because phosphorus makes the finished metal brittle.
Rails that were rolled from it lasted many times as long as those of wrought iron.
The price of a ton fell to a fifth within twenty years, and bridges grew longer for it.
Each heat was sampled, and the sample was forged and bent before the ladle was emptied.
Slag floats on the metal and is held back when the vessel is tilted over the ladle.
A row of moulds stood in the pit, each of them lined with clay and dried over a fire.
The blowing engine had two cylinders, and its flywheel weighed more than a locomotive.
Workers wore wet leather, since drops of metal flew as far as the wall of the house.
What was left of the lining after a week was broken out and ground for the next one.
An open hearth is slower, but it melts scrap and lets the chemist take his time.
Later furnaces blow oxygen instead of air, so that no nitrogen is left in the sheet.
""".strip().split("\n")
GERMAN = """
Der Wind wird durch das flüssige Eisen geblasen, bis der Kohlenstoff darin verbrannt ist, und
das dauert ungefähr zwanzig Minuten. Danach wird das Mangan wieder zugegeben, und der Stahl fließt
in die Pfanne, während die Schlacke oben schwimmt und in der Birne zurückgehalten wird.
"""
QUESTION = (
    "Which of the two furnaces melts scrap more slowly but lets the chemist take samples while it works?"
)


def text(chance: random.Random, sentences: int = 6) -> str:
    return " ".join(chance.sample(SENTENCES, sentences)) + f" Heat {chance.randrange(10**6)}."


def write(folder: Path) -> None:
    """The same files whenever and wherever it is called."""
    chance = random.Random(1856)  # noqa: S311 (it mixes sentences)
    texts = [text(chance) for _ in range(80)]
    take = iter(texts)
    _text_and_code(folder, [next(take) for _ in range(10)])
    _pages(folder, [next(take) for _ in range(8)])
    _books(folder, [next(take) for _ in range(6)])
    _crawl(folder, [next(take) for _ in range(8)])
    _rows(folder, [next(take) for _ in range(36)])
    line = json.dumps({"question": QUESTION, "choices": ["the converter", "the open hearth"]})
    (folder / "exam.jsonl").write_text(line + "\n", encoding="utf-8")


def _text_and_code(folder: Path, texts: list[str]) -> None:
    for name in ("notes/old", "tools"):
        (folder / name).mkdir(parents=True)
    for number, one in enumerate(texts):
        (folder / f"notes/{number}.md").write_text(f"# Heat {number}\n\n{one}\n", encoding="utf-8")
    (folder / "notes/old/copy.md").write_text(f"# Heat 3\n\n{texts[3]}\n", encoding="utf-8")
    (folder / "notes/german.md").write_text(GERMAN, encoding="utf-8")
    (folder / "notes/latin1.md").write_bytes("Größe".encode("latin-1"))
    for number in range(6):
        body = f'"""Mass of a charge with {number} % of scrap, and of the slag that floats on it."""\n\n\n'
        body += f"def charge_kg(iron_kg: float) -> float:\n    return iron_kg * 1.{number:02d}\n"
        (folder / f"tools/charge_{number}.py").write_text(body, encoding="utf-8")


def _pages(folder: Path, texts: list[str]) -> None:
    (folder / "site").mkdir()
    for number, one in enumerate(texts):
        menu = '<nav><a href="/">Home</a> <a href="/shop">Shop</a></nav>'
        page = (
            f"<html><head><title>{number}</title></head><body>{menu}<main><p>{one}</p></main></body></html>"
        )
        (folder / f"site/{number}.html").write_text(page, encoding="utf-8")


def _books(folder: Path, texts: list[str]) -> None:
    (folder / "books").mkdir()
    for number in range(3):
        _epub(folder / f"books/steel-{number}.epub", texts[2 * number : 2 * number + 2])
    (folder / "books/tables.pdf").write_bytes(_pdf([f"The charge of heat {n} is weighed." for n in range(9)]))
    (folder / "books/torn.pdf").write_bytes(_pdf(["The second half of this file is lost."])[:300])


def _epub(path: Path, chapters: list[str]) -> None:
    namespace = "urn:oasis:names:tc:opendocument:xmlns:container"
    items = "".join(
        f'<item id="c{n}" href="{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            f'<container version="1.0" xmlns="{namespace}"><rootfiles><rootfile full-path="book.opf" '
            'media-type="application/oebps-package+xml"/></rootfiles></container>',
        )
        archive.writestr(
            "book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata/>'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
        )
        for number, one in enumerate(chapters):
            page = f'<html xmlns="http://www.w3.org/1999/xhtml"><body><p>{one}</p></body></html>'
            archive.writestr(f"{number}.xhtml", page)


def _pdf(lines: list[str]) -> bytes:
    shown = "".join(f"({line}) Tj 0 -20 Td " for line in lines)
    stream = f"BT /F1 12 Tf 50 700 Td {shown}ET"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</Font<</F1 5 0 R>>>>/Contents 4 0 R>>",
        f"<</Length {len(stream)}>>stream\n{stream}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    content, places = "%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(content))
        content += f"{number} 0 obj\n{one}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"trailer<</Size 6/Root 1 0 R>>\nstartxref\n{len(content)}\n%%EOF\n"
    return f"{content}xref\n0 6\n0000000000 65535 f \n{table}{end}".encode()


def _crawl(folder: Path, texts: list[str]) -> None:
    """A gzip member for each record, as crawlers write them. Two answers are no pages."""
    answers = [("200 OK", "text/html", f"<html><body><p>{one}</p></body></html>") for one in texts]
    answers += [("404 Not Found", "text/html", "<p>gone</p>"), ("200 OK", "image/png", "PNG")]
    with open(folder / "crawl.warc.gz", "wb") as file:
        for number, (status, kind, body) in enumerate(answers):
            answer = f"HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\n\r\n{body}".encode()
            head = (
                "WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\n"
                f"WARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{number:012d}>\r\n"
                f"WARC-Target-URI: https://steel{number % 3}.example/{number}\r\n"
                f"WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Length: {len(answer)}\r\n\r\n"
            )
            file.write(gzip.compress(head.encode() + answer + b"\r\n\r\n", mtime=0))


def _rows(folder: Path, texts: list[str]) -> None:
    _json_lines(folder / "posts.jsonl.gz", texts[:12])
    groups = [texts[12:18], texts[18:24], texts[24:30], texts[30:]]
    pq.write_table(pa.table({"text": groups[0], "id": [*range(6)]}), folder / "letters.parquet")
    with open(folder / "log.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [["day", "entry"], *([f"day {n}", one] for n, one in enumerate(groups[1]))]
        )
        file.write('7,"a quote that nobody closes\n')
    with closing(sqlite3.connect(folder / "wiki.sqlite")) as database:
        database.execute("create table articles (id integer primary key, title text, body text)")
        rows = [(n, f"Article {n}", one) for n, one in enumerate(groups[2], 1)]
        database.executemany("insert into articles values (?, ?, ?)", rows)
        database.commit()
    (folder / "answers/train").mkdir(parents=True)
    (folder / "answers/dataset_dict.json").write_text('{"splits": ["train"]}', encoding="utf-8")
    (folder / "answers/train/state.json").write_text('{"_data_files": [{"filename": "0.arrow"}]}')
    table = pa.table({"text": groups[3]})
    with pa.ipc.new_stream(folder / "answers/train/0.arrow", table.schema) as writer:
        writer.write_table(table)


def _json_lines(path: Path, texts: list[str]) -> None:
    """With an address, a copy that was edited, part of an exam, a list, an empty text, a line cut off."""
    texts[0] += " Write to clerk@works-office.com, or call +44 114 496 0123."
    edited = texts[1].replace("ten tons", "twelve tons").replace(". Heat", ". Of heat")
    rows: list[object] = [{"id": f"post-{n}", "body": one} for n, one in enumerate(texts)]
    rows += [{"id": "edited", "body": edited}, {"id": "exam", "body": f"{texts[2][:200]} {QUESTION}"}]
    rows += [
        {"id": "list", "body": "Iron and lime are weighed each morning.\n" * 9},
        {"id": "blank", "body": " "},
        {"id": "none"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows) + '{"id": "cut", "body": "The la'
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
