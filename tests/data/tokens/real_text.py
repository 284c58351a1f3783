"""Real text that is on every machine: the sources of Python's own library."""

import os
from functools import cache
from pathlib import Path


@cache
def real_texts(size: int) -> list[str]:
    """Whole files, so many characters of them or a few more."""
    texts: list[str] = []
    for path in sorted(Path(os.__file__).parent.rglob("*.py")):
        if size <= 0:
            break
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        size -= len(texts[-1])
    return texts
