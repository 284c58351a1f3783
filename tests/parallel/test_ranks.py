"""The pool of ranks tells how a rank ended that gives no answer, and goes on with new ones."""

import os
import signal
import time

import pytest
from making_ranks import Pool, Result


def end_by(rank: int, number: int) -> Result:
    os.kill(os.getpid(), number)
    return {}


def answer(rank: int, after_s: float) -> Result:
    time.sleep(after_s)
    return {"rank": rank}


def test_rank_without_an_answer_is_told_by_its_signal_and_the_next_call_starts_anew(
    capfd: pytest.CaptureFixture[str],
) -> None:
    pool = Pool()
    try:
        with pytest.raises(AssertionError, match=r"^rank 0: ended without an answer: SIGSEGV$"):
            pool.run(end_by, 1, number=signal.SIGSEGV)
        assert "in end_by" in capfd.readouterr().err  # where Python stood
        assert pool.run(answer, 1, after_s=0.0) == [{"rank": 0}]
        with pytest.raises(AssertionError, match=r"^rank 0: took too long: SIGKILL$"):
            pool.run(answer, 1, timeout_s=0.5, after_s=60.0)
    finally:
        pool.close()
