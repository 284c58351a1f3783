"""Which of several ranks' words are told for all."""

from pathlib import Path

from bessemer.errors import StoppedError
from bessemer.launch.outcome import Ended, Report, failure


def stopped(found: str) -> StoppedError:
    return StoppedError("stopped", found=found, wanted="more", fix="run it again")


def test_of_ranks_that_stop_in_order_the_first_one_says_why_whenever_it_ends(tmp_path: Path) -> None:
    """It alone knows of a budget; the others hear only that somebody was asked to stop."""
    others = {rank: Report(75, 10.0 - rank, stopped("another rank")) for rank in (1, 2, 3)}
    reports = {**others, 0: Report(75, 11.0, stopped("budget.kwh is used up"))}
    ended = [Ended(rank, 100 + rank, 75, 12.0) for rank in range(4)]
    error = failure(ended, reports, 1e9, tmp_path)
    assert isinstance(error, StoppedError) and error.found == "budget.kwh is used up"
