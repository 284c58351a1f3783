"""stdout and stderr, whatever the caller has made of them: closed, a full disk, a pipe whose reader left."""

import io
import os
import select
import sys

from bessemer.errors import WriteError

_STDOUT = 1  # file descriptor


def make_usable() -> None:
    """A stream that the caller has closed takes all; a character that it cannot show is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # then print(file=sys.stderr) would print to stdout
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open until the process ends)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def answer(text: str) -> None:
    """Print to stdout at once, so that a failure to do so is met here."""
    if not text:
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard_stdout()  # the reader, such as `head`, has seen enough
    except OSError as error:
        discard_stdout()
        raise WriteError(
            "cannot write the answer to stdout",
            found=error.strerror or str(error),
            wanted="a terminal, a pipe, or a file on a disk with free space",
            fix="free some space, or send it elsewhere; what the command wrote to files is whole",
        ) from error


def complain(text: str) -> None:
    """A message on stderr, in place of the progress line if there is one."""
    start = "\r\x1b[2K" if sys.stderr.isatty() else ""
    print(f"{start}{text}", file=sys.stderr, flush=True)


def discard_stdout() -> None:
    """Give stdout an end that takes all: Python writes again what is left when it exits, and would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


def reader_has_left() -> bool:
    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
