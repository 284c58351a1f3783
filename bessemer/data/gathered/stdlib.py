"""Gather this machine's Python standard library as four kinds of data that every machine has.

    books/<module>.txt     pydoc's help pages as plain text, and the language reference's topics
    pages/<module>.html    the same library as web pages
    functions.sqlite       table `functions`: what each function is called, does and looks like
    code/<module>.py       the sources

Everything about one library package shares the beginning of its file name up to the first dot, and
the column `package`: held out together, no rendering of it is in training. A function whose summary
also stands in another package's text is left out of the table, so that a held-out answer is nowhere
in training. Tests, and modules that act when imported, are left out.
Cost: about 7 s on one core, once per Python; kept under the hash of the sources it came from.
That is about 9 MB of code, 5 MB of books, 9 MB of HTML, 5,300 functions (Python 3.11).
"""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from bessemer.data.folders import building_folder, locked
from bessemer.data.gathered.functions import FunctionRow, functions_in
from bessemer.data.gathered.passages import Passages, collapse
from bessemer.durable import guard_write, publish_folder, write_json
from bessemer.errors import DataError
from bessemer.log import Console

_FORMAT = 1  # raise it whenever what is rendered changes
_FOLDERS = ("books", "pages", "code")
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "turtledemo", "site-packages", "__pycache__"}
# The first two act when imported; pydoc_data comes as books; character tables teach nobody anything.
_SKIPPED = {"antigravity", "this", "pydoc_data", "idlelib", "turtledemo", "test", "encodings"}
_MODULE_S, _RENDER_S = 20, 300
_SCHEMA = """create table functions (id text primary key, package text, module text, name text,
    signature text, docstring text, summary text, source text)"""


@dataclass(frozen=True)
class Module:
    name: str  # "json.decoder"
    file: Path | None  # None: compiled in, or without a source

    @property
    def package(self) -> str:
        """The library package that its text belongs to: _json and json.decoder are of json."""
        top = self.name.split(".")[0]
        bare = top.strip("_")
        for home in (bare, bare.removeprefix("py").strip("_"), bare.split("_")[0]):
            if top.startswith("_") and home in sys.stdlib_module_names:
                return home
        return top

    @property
    def stem(self) -> str:
        """The name of its files, which begins with its package."""
        own = self.name.split(".")[0] == self.package
        return self.name if own else f"{self.package}.{self.name}"


def gather(folder: Path, console: Console, only: set[str] | None = None) -> Path:
    """The folder inside `folder` that holds this Python's library, rendered now if it is not there.

    only: top-level modules to take instead of all.
    """
    modules = library_modules(only)
    version = ".".join(map(str, sys.version_info[:3]))
    final = folder / f"python-{version}-{_content_hash(modules)}"
    with locked(final, console):
        if not (final / "gathered.json").is_file():
            console.line("data: rendering this machine's Python library")
            building = building_folder(final)
            report = _render(building, modules)
            guard_write(final, lambda: shutil.rmtree(final, ignore_errors=True))
            write_json(building / "gathered.json", report)
            publish_folder(building, final)
    return final


def library_modules(only: set[str] | None = None) -> list[Module]:
    library = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for file in sorted(library.rglob("*.py")):
        parts = file.relative_to(library).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names and not _SKIPPED_FOLDERS & set(parts):
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = Module(name, file)
    for name in sys.stdlib_module_names:
        found.setdefault(name, Module(name, None))
    return [
        module
        for name, module in sorted(found.items())
        if (top := name.split(".")[0]) not in _SKIPPED and (only is None or top in only)
    ]


def _content_hash(modules: list[Module]) -> str:
    digest = xxhash.xxh3_64(f"{_FORMAT} {sys.version} {sys.platform}".encode())
    for module in modules:
        digest.update(f"\0{module.stem}\0".encode())
        digest.update(module.file.read_bytes() if module.file else b"")
    return digest.hexdigest()


def _render(folder: Path, modules: list[Module]) -> dict[str, Any]:
    for name in _FOLDERS:
        guard_write(folder / name, (folder / name).mkdir)
    skipped = _help_pages(folder, modules)
    guard_write(folder, lambda: _topics(folder / "books"))
    rows, unparsed = guard_write(folder, lambda: _code(folder / "code", modules))
    kept = _only_there(rows, folder)
    guard_write(folder, lambda: _database(folder / "functions.sqlite", kept))
    return {
        "python": sys.version,
        "modules": len(modules),
        "skipped": skipped,
        "unparsed": unparsed,
        "functions": len(kept),
        "functions_told_elsewhere": len(rows) - len(kept),
    }


def _help_pages(folder: Path, modules: list[Module]) -> dict[str, str]:
    """Books and pages, by a child process. Returns the modules without a page, and why."""
    script = Path(__file__).with_name("render_help.py")
    wanted = {module.name: module.stem for module in modules if not module.name.endswith("__main__")}
    # A clean environment: a page may show a default value that a module took from there.
    environment = {"PYTHONHASHSEED": "0", "PATH": os.defpath, "HOME": "/", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-s", "-S", "-B", str(script), str(folder.resolve()), str(_MODULE_S)],
            input=json.dumps(wanted).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=_RENDER_S,
            check=True,
            cwd=folder,
        )
        skipped: dict[str, str] = json.loads(child.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        raise DataError(
            "cannot render the help pages of this Python",
            found=str(error),
            wanted=f"the help of {len(wanted)} modules within {_RENDER_S} s",
            fix="run the same command again on a less busy machine, or name your own data.source",
        ) from error
    return skipped


def _topics(books: Path) -> None:
    """The language reference, as Python's own `help()` carries it: one book a topic."""
    from pydoc_data.topics import topics

    for name, text in topics.items():
        (books / f"topic-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.txt").write_text(
            text, encoding="utf-8"
        )


def _code(folder: Path, modules: list[Module]) -> tuple[list[tuple[Module, FunctionRow]], int]:
    rows, unparsed = [], 0
    for module in modules:
        if module.file is None:
            continue
        content = module.file.read_bytes()
        (folder / f"{module.stem}.py").write_bytes(content)
        try:
            rows += [(module, row) for row in functions_in(content.decode("utf-8"))]
        except (SyntaxError, ValueError):  # an old file in another encoding
            unparsed += 1
    return rows, unparsed


def _only_there(rows: list[tuple[Module, FunctionRow]], folder: Path) -> list[tuple[Module, FunctionRow]]:
    """The functions whose summary stands in no other package's books or code."""
    passages = Passages({row.summary for _, row in rows})
    packages: dict[str, set[str]] = {}
    for file in sorted([*(folder / "books").iterdir(), *(folder / "code").iterdir()]):
        text = re.sub(r"(?m)^(?: *\|)+", " ", file.read_text(encoding="utf-8", errors="replace"))
        for summary in passages.found_in(text):
            packages.setdefault(summary, set()).add(file.name.split(".")[0])
    for module, row in rows:
        packages.setdefault(collapse(row.summary), set()).add(module.package)
    return [(module, row) for module, row in rows if len(packages[collapse(row.summary)]) == 1]


def _database(path: Path, rows: list[tuple[Module, FunctionRow]]) -> None:
    names: dict[str, int] = {}
    connection = sqlite3.connect(path)
    try:
        connection.execute(_SCHEMA)
        for module, row in rows:
            name = f"{module.name}.{row.name}"
            names[name] = number = names.get(name, 0) + 1
            values = (
                name if number == 1 else f"{name}#{number}",
                *(module.package, module.name, row.name),
                *(row.signature, row.docstring, row.summary, row.source),
            )
            connection.execute("insert into functions values (?, ?, ?, ?, ?, ?, ?, ?)", values)
        connection.commit()
    finally:
        connection.close()
