"""Render Python's own help pages, as plain text and as HTML. Run as a script in a process of its own.

    python -P -s -S render_help.py FOLDER SECONDS_PER_MODULE < modules.json > report.json

Importing a whole standard library runs code: some modules start windows, write or wait. So this is a
child process with an almost empty environment; a module that fails or takes too long is skipped.
Nothing here imports bessemer, and nothing but the standard library.

A page tells only what its module defines. pydoc would also print inherited methods, inherited
docstrings, and whatever `__all__` re-exports: a page of one module would then hold the text of
another, which may be held out. DATA and FILE sections are cut too: they show values of this machine
(os.environ is one of them).
"""

import contextlib
import importlib
import inspect
import json
import os
import pydoc
import re
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CUT_SECTIONS = {"DATA", "FILE", "MODULE REFERENCE", "Data"}


class TextPage(pydoc._PlainTextDoc):  # type: ignore[name-defined, misc]
    def section(self, title: str, contents: str) -> str:
        return "" if title in _CUT_SECTIONS else str(super().section(title, contents))


class HtmlPage(pydoc.HTMLDoc):
    def bigsection(self, title: str, *rest: Any) -> str:
        return "" if title in _CUT_SECTIONS else str(super().bigsection(title, *rest))

    def heading(self, title: str, *rest: Any) -> str:
        return f"<h1>{title}</h1>"  # the rest is a link to the file on this machine


def main(folder: Path, seconds: int, modules: dict[str, str]) -> dict[str, str]:
    """Write the pages of `modules` {module: file stem}. Returns what was skipped, and why."""
    show_own_text_only(set(modules))
    skipped = {}
    for module, stem in modules.items():
        try:
            with time_limit(seconds):
                loaded = importlib.import_module(module)
                text = TextPage().docmodule(loaded)
                page = HtmlPage().page(module, HtmlPage().docmodule(loaded))
        except BaseException as error:  # SystemExit too: a module may leave when it is imported
            skipped[module] = f"{type(error).__name__}: {error}"
            continue
        (folder / "books" / f"{stem}.txt").write_bytes(steady(text))
        (folder / "pages" / f"{stem}.html").write_bytes(steady(page))
    return skipped


def show_own_text_only(names: set[str]) -> None:
    """Make pydoc leave out what a class or module only passes on."""
    classify: Callable[[Any], list[Any]] = pydoc.classify_class_attrs  # type: ignore[attr-defined]
    visible: Callable[..., Any] = pydoc.visiblename  # type: ignore[attr-defined]

    def own_attributes(owner: Any) -> list[Any]:
        return [row for row in classify(owner) if row[2] is owner and row[1] != "data"]

    def own_names(name: str, all: Any = None, obj: Any = None) -> Any:
        if isinstance(obj, types.ModuleType) and not is_own(getattr(obj, name, None), obj):
            return False
        return visible(name, all, obj)

    def is_own(value: Any, owner: types.ModuleType) -> bool:
        home = getattr(value, "__module__", None)
        if not isinstance(home, str) or home not in names:
            return True
        return home.split(".")[0].strip("_") == owner.__name__.split(".")[0].strip("_")

    library: Any = pydoc
    library.classify_class_attrs, library.visiblename = own_attributes, own_names
    library._finddoc = lambda value: None  # an inherited docstring
    # A comment above a function is in its source already.
    inspect.getcomments = lambda value: None  # type: ignore[assignment]


def steady(text: str) -> bytes:
    """Without the memory addresses that default values show: they differ from run to run."""
    return re.sub(r" at 0x[0-9a-fA-F]{6,16}\b", "", text).encode("utf-8", "replace")


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took over {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    report = os.dup(1)
    # Modules print, also from C: only the report may go to standard output.
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(quiet, descriptor)
    wanted = json.load(sys.stdin)
    os.dup2(quiet, 0)
    result = main(Path(sys.argv[1]), int(sys.argv[2]), wanted)
    os.write(report, json.dumps(result).encode())
    os._exit(0)  # threads and exit handlers of what was imported have nothing left to say
