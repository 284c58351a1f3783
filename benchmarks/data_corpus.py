"""Gather the real text of this machine that the data factory is measured on: always the same for one machine.

    man        every manual page, its roff without macros: a JSONL file with ids
    html       pages of documentation, as they are: a folder of files
    code       Python sources: a folder of files
    copies     1,000 of these documents with 2 % of their words edited: a JSONL file, id "kind:number"
    evaluation.jsonl   beginnings of 200 documents among 20,000 made-up questions, to decontaminate against

Files are taken in the order of a hash of their path until a kind has its share of bytes, so that none comes
from one package only. Who has less text gets less, and `about.json` says how much there was.
"""

import gzip
import itertools
import json
import random
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from bessemer.data.sources.pages import page_text

MAN_BYTES, HTML_BYTES, CODE_BYTES = 95_000_000, 60_000_000, 70_000_000
NUM_COPIES, EDITED = 1_000, 0.02
_COPIED_BYTES = (2_000, 50_000)  # shorter ones have too few words for 2 %, longer ones tell nothing more
_FONTS = re.compile(r"\\f[A-Z]|\\f\(..|\\&|\\m\[.*?\]|\\s[-+]?\d")
_LONG_WORD = re.compile(r"\b[A-Za-z]{5,}")
_MACRO = re.compile(r"^[.'][A-Za-z]+ ?")


def gather(folder: Path, scale: float = 1.0) -> dict[str, Any]:
    """Write the corpus and say what it is. `scale`: of the bytes of each kind."""
    folder.mkdir(parents=True)
    texts: dict[str, list[str]] = {"man": [], "html": [], "code": []}
    about: dict[str, Any] = {}
    with open(folder / "man.jsonl", "w", encoding="utf-8") as file:
        for number, text in enumerate(_limited(_manuals(), MAN_BYTES * scale)):
            file.write(json.dumps({"id": f"man:{number}", "text": text}) + "\n")
            texts["man"].append(text)
    about["man"] = {"files": len(texts["man"]), "bytes": sum(len(text.encode()) for text in texts["man"])}
    for kind, ending, limit in (("html", ".html", HTML_BYTES), ("code", ".py", CODE_BYTES)):
        (folder / kind).mkdir()
        about[kind] = {"files": 0, "bytes": 0}
        for number, content in enumerate(_limited(_contents(_roots(kind), ending), limit * scale)):
            (folder / kind / f"{number:06d}{ending}").write_bytes(content)
            about[kind]["files"] += 1
            about[kind]["bytes"] += len(content)
            if number < 3_000:  # enough to copy some
                text = page_text(content)[0] if kind == "html" else content.decode("utf-8", "replace")
                texts[kind].append(text or "")
    _write_copies(folder, texts)
    _write_evaluation(folder, texts)
    (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    return about


def edited(text: str, words: list[str], generator: random.Random) -> str:
    """EDITED of the words replaced, removed, or followed by another one; the rest stays, white space too."""
    parts = re.split(r"(\s+)", text)
    places = [place for place in range(0, len(parts), 2) if parts[place]]
    for place in generator.sample(places, max(1, round(len(places) * EDITED))):
        how = generator.randrange(3)
        new = generator.choice(words)
        parts[place] = new if how == 0 else "" if how == 1 else f"{parts[place]} {new}"
    return "".join(parts)


def multiply(corpus: Path, folder: Path, times: int) -> None:
    """The corpus so many times, each of its copies in other words: none is a duplicate."""
    folder.mkdir(parents=True)
    with open(folder / "man.jsonl", "w", encoding="utf-8") as file:
        for copy in range(times):
            for line in (corpus / "man.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
                row = json.loads(line)
                row = {"id": f"{copy}:{row['id']}", "text": _other_words(row["text"], copy)}
                file.write(json.dumps(row) + "\n")
    for kind in ("html", "code"):
        (folder / kind).mkdir()
        for copy in range(times):
            for path in sorted((corpus / kind).iterdir()):
                text = path.read_text(encoding="utf-8", errors="surrogateescape")
                if kind == "html":  # tags stay
                    text = re.sub(r">[^<]+<", lambda found, copy=copy: _other_words(found[0], copy), text)
                else:
                    text = _other_words(text, copy)
                (folder / kind / f"{copy}-{path.name}").write_text(
                    text, encoding="utf-8", errors="surrogateescape"
                )
    for name in ("copies.jsonl", "evaluation.jsonl"):
        shutil.copyfile(corpus / name, folder / name)


def sample(corpus: Path, folder: Path, each: int) -> dict[str, int]:
    """Every `each`-th document as JSON lines for the peer, by kind. Gives bytes by kind.

    `texts`: once more those of man and code, which are texts already.
    """
    sizes = {}
    for kind in ("man", "html", "code", "texts"):
        (folder / kind).mkdir(parents=True)
    texts: list[str] = []
    for kind in ("man", "html", "code"):
        rows = _man_texts(corpus) if kind == "man" else _file_texts(corpus / kind)
        sizes[kind] = 0
        with open(folder / kind / "sample.jsonl", "w", encoding="utf-8") as file:
            # Along the sizes: a few large pages would decide how much there is of HTML.
            by_size = sorted(rows, key=lambda row: (len(row[1]), row[0]))
            for name, text in itertools.islice(by_size, each // 2, None, each):
                line = json.dumps({"id": name, "text": text}) + "\n"
                file.write(line)
                if kind != "html":
                    texts.append(line)
                sizes[kind] += len(text.encode())
    (folder / "texts" / "sample.jsonl").write_text("".join(texts), encoding="utf-8")
    return {**sizes, "texts": sizes["man"] + sizes["code"]}


def _man_texts(corpus: Path) -> Iterator[tuple[str, str]]:
    with open(corpus / "man.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["id"], row["text"]


def _file_texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        yield path.name, path.read_text(encoding="utf-8", errors="replace")


def _other_words(text: str, copy: int) -> str:
    """Long words begin with another letter: languages and short words, which rules look at, stay."""
    return text if copy == 0 else _LONG_WORD.sub("bqz"[copy % 3] * (1 + copy // 4) + r"\g<0>", text)


def _manuals() -> Iterator[str]:
    for path in _files([Path("/usr/share/man")], ".gz"):
        with gzip.open(path) as file:
            yield _without_macros(file.read().decode("utf-8", "replace").replace("\0", ""))


def _without_macros(page: str) -> str:
    lines = [line for line in page.split("\n") if not line.startswith(('.\\"', "'\\\""))]
    return _FONTS.sub("", "\n".join(_MACRO.sub("", line) for line in lines)).replace("\\-", "-")


def _contents(roots: Iterable[Path], ending: str) -> Iterator[bytes]:
    for path in _files(roots, ending):
        yield path.read_bytes()


def _roots(kind: str) -> list[Path]:
    if kind == "html":
        return [Path("/usr/share"), Path("/usr/lib"), *sorted(Path.home().glob(".rustup/toolchains/stable*"))]
    return [Path("/usr/lib/python3"), Path(sysconfig.get_path("stdlib")), Path(sys.prefix) / "lib"]


def _files(roots: Iterable[Path], ending: str) -> list[Path]:
    found = {path for root in roots for path in root.rglob(f"*{ending}")}
    plain = [path for path in found if path.is_file() and not path.is_symlink()]
    return sorted(plain, key=lambda path: (xxhash.xxh3_64_intdigest(str(path).encode()), path))


def _limited(items: Iterable[Any], most_bytes: float) -> Iterator[Any]:
    size = 0
    for item in items:
        yield item
        size += len(item)
        if size > most_bytes:
            return


def _write_copies(folder: Path, texts: dict[str, list[str]]) -> None:
    generator = random.Random(7)
    fit = [
        (f"{kind}:{number}", text)
        for kind, documents in texts.items()
        for number, text in enumerate(documents)
        if _COPIED_BYTES[0] < len(text) < _COPIED_BYTES[1]
    ]
    words = [word for _, text in generator.sample(fit, min(500, len(fit))) for word in text.split()]
    with open(folder / "copies.jsonl", "w", encoding="utf-8") as file:
        for name, text in generator.sample(fit, min(NUM_COPIES, len(fit) // 4)):
            file.write(json.dumps({"id": name, "text": edited(text, words, generator)}) + "\n")


def _write_evaluation(folder: Path, texts: dict[str, list[str]]) -> None:
    generator = random.Random(11)
    every = [text for documents in texts.values() for text in documents if len(text) > 2_000]
    with open(folder / "evaluation.jsonl", "w", encoding="utf-8") as file:
        for text in generator.sample(every, min(200, len(every))):
            file.write(json.dumps({"question": text[1_000:1_600]}) + "\n")
        for _ in range(20_000):
            made_up = " ".join(f"q{generator.randrange(10_000)}" for _ in range(60))
            file.write(json.dumps({"question": made_up}) + "\n")
