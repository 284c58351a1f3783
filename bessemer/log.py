"""What a person sees while a job runs: lines on stderr, and one live line on a terminal.

Data goes to stdout (the CLI prints it); everything here goes to stderr. A terminal gets a line that
is rewritten in place; a pipe gets whole lines only, at most one per interval.
"""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from bessemer.durable import cannot_write

_INTERVAL_S = 10.0


class Console:
    """Writes log lines and a live progress line to stderr without the two overwriting each other."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = ""
        self._last_kept_s = float("-inf")
        self._file: TextIO | None = None

    def also_to(self, path: Path | None) -> None:
        """Append every line, with its time, to a file too; None: no longer."""
        if self._file is not None:
            with suppress(OSError):  # what a full disk did not take was told when it was written
                self._file.close()
            self._file = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (held until the next call)
            except OSError as error:
                raise cannot_write(path, error) from error

    def line(self, text: str) -> None:
        """One whole line; the live line, if any, moves below it."""
        self._keep(text)
        if self._quiet:
            return
        if self._live:
            sys.stderr.write("\r\x1b[2K")
        sys.stderr.write(text + "\n" + self._live)
        sys.stderr.flush()

    def progress(self, text: str, *, last: bool = False) -> None:
        """Rewrite the live line; a pipe and the file get at most one line per interval, and the last."""
        now_s = time.monotonic()
        is_due = last or now_s - self._last_kept_s >= _INTERVAL_S
        if is_due:
            self._last_kept_s = now_s
            self._keep(text)
        if self._quiet:
            return
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[2K" + text + ("\n" if last else ""))
            self._live = "" if last else text
        elif is_due:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def _keep(self, text: str) -> None:
        if self._file is not None:
            try:
                self._file.write(f"{time.strftime('%F %T')} {text}\n")
                self._file.flush()
            except OSError as error:
                raise cannot_write(Path(self._file.name), error) from error


def bar(fraction: float, width: int = 20) -> str:
    """A plain progress bar: `####----`."""
    full = round(max(0.0, min(1.0, fraction)) * width)
    return "#" * full + "-" * (width - full)
