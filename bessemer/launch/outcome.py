"""Which of several ranks' failures is the cause, and the one error that is raised for it.

In this order, and the earliest of each kind:
1. a mistake that the user can mend, as a rank reported it; or a rank killed by SIGKILL, which no rank
   does to itself: the system does, when memory runs out;
2. stopped in order, reported by all: the first rank's words;
3. a traceback, any other signal, or an exit code without a word: of these, most ranks only lost their peer.
"""

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bessemer import errors
from bessemer.errors import StoppedError, UserError, WorkerError
from bessemer.launch.world import report_file

_AGAIN = "run the same command again to go on"
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Ended:
    rank: int
    process: int  # id
    code: int  # negative: the signal that killed it
    seen_s: float  # when it was last seen living, on the monotonic clock


@dataclass(frozen=True)
class Report:
    """What a rank said of its failure (launch/world.py), as the error to raise for it."""

    exit_code: int
    time_s: float  # on the monotonic clock, which all processes of a machine share
    error: UserError


def read_reports(exchange: Path) -> dict[int, Report]:
    """By rank. A file is there whole or not at all."""
    reports = {}
    for path in exchange.glob("rank-*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        rank = content["rank"]
        assert path == report_file(exchange, rank), (path, rank)
        reports[rank] = Report(content["exit_code"], content["time_s"], _rebuilt(content))
    return reports


def failure(
    ended: Sequence[Ended], reports: Mapping[int, Report], cut_s: float, logs: Path | None
) -> UserError | None:
    """The error to raise for all; None if no rank failed before `cut_s`, when we began to kill them.

    A death is dated by when the rank was last seen living: its peers notice within milliseconds, sooner
    than we do.
    """
    events: list[tuple[int, float, UserError]] = []
    for rank, report in reports.items():
        if report.time_s < cut_s:
            # Stopped in order: the first rank knows best why.
            first = float(rank) if isinstance(report.error, StoppedError) else report.time_s
            events.append((_order(report.error), first, report.error))
    for one in ended:
        if one.code != 0 and one.rank not in reports and one.seen_s < cut_s:
            is_killed = one.code == -signal.SIGKILL
            events.append((1 if is_killed else 3, one.seen_s, _silent(one, logs)))
    return min(events, key=lambda event: event[:2])[2] if events else None


def log_file(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank:05d}.log"


def _order(error: UserError) -> int:
    if isinstance(error, WorkerError):
        return 3
    return 2 if isinstance(error, StoppedError) else 1


def _rebuilt(content: Mapping[str, Any]) -> UserError:
    if "traceback" in content:
        return WorkerError(
            f"rank {content['rank']} failed: {content['summary']}",
            found=content["traceback"],
            wanted="no exception: this is a mistake in Bessemer, not yours",
            fix=f"please report it with the text above; {_AGAIN}",
        )
    kind = getattr(errors, content["kind"])
    assert issubclass(kind, UserError), kind
    return kind(content["problem"], found=content["found"], wanted=content["wanted"], fix=content["fix"])


def _silent(ended: Ended, logs: Path | None) -> WorkerError:
    said = " ".join(_last_words(ended.rank, logs))
    if ended.code >= 0:
        return WorkerError(
            f"rank {ended.rank} ended with exit code {ended.code} and no report",
            found=said or f"process {ended.process}, without a log",
            wanted="exit code 0, or a report of what went wrong",
            fix=f"read what it wrote before; {_AGAIN}",
        )
    name = signal.Signals(-ended.code).name
    is_killed = ended.code == -signal.SIGKILL
    return WorkerError(
        f"rank {ended.rank} was killed by {name}{': out of memory is the usual cause' if is_killed else ''}",
        found=f"process {ended.process} ended by signal {-ended.code}. {said}".rstrip(". "),
        wanted="each rank to end by itself",
        fix=_AGAIN + ("; if it is killed again, give it less to hold or more memory" if is_killed else ""),
    )


def _last_words(rank: int, logs: Path | None) -> Iterator[str]:
    """The last line of a rank's log, and where it is; rank 0 wrote to the terminal."""
    if rank == 0:
        yield "rank 0 wrote to stderr, above"
        return
    path = log_file(logs, rank) if logs is not None else None
    if path is None or not path.is_file():
        return
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    last = [line.strip() for line in lines if line.strip()][-1:]
    yield f"the end of {path}: {last[0] if last else '(empty)'}"
