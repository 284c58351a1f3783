"""A plain table for the terminal: columns as wide as their widest cell."""

import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

_LEAST_WIDTH = 40  # of a terminal; in a narrower one nothing is gained


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table; the first `left` columns are set flush left, the others right."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def skipped_lines(reasons: Iterable[str | None]) -> list[str]:
    """Why rows of a table were skipped, the most frequent reason first. None: that row was not."""
    counts = Counter(reason for reason in reasons if reason)
    return [f"Skipped: {reason} ({count} row{'s' * (count != 1)})" for reason, count in counts.most_common()]


def for_terminal(text: str) -> str:
    """On a terminal, lines that are longer than it is wide are broken between words, under where their last
    column begins. Text for a file or another program stays as it is: a row is a line."""
    if not sys.stdout.isatty():
        return text
    width = max(_LEAST_WIDTH, shutil.get_terminal_size().columns)
    return "\n".join(fitted(line, width) for line in text.splitlines())


def fitted(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    gaps = [match.end() for match in re.finditer(r"\S\s{2,}", line) if match.end() <= width // 2]
    indent = gaps[-1] if gaps else len(line) - len(line.lstrip()) + 2
    return textwrap.fill(
        line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def figure(value: float | None, digits: int = 4) -> str:
    """A number as people read it; None is what nobody measured."""
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"
