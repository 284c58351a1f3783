"""Stopping by a signal: at the step border, saved, exit code 75, and the same command goes on."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from making_processes import finish, ran_here, start, wait_for
from making_runs import SMALL, assert_same_training, curve, events, pretrained, write_recipe

from bessemer.checkpoint.folder import listed, step_of
from bessemer.train.stop import Stop

STEPS = 120


def test_first_signal_asks_and_a_later_one_does_as_it_always_did() -> None:
    """One that comes at once is the same wish: `timeout` signals a process and then its group."""
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked and stop.reason == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.6)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_a_run_is_asked_by_its_caller() -> None:
    reasons = []

    def work() -> None:
        with Stop() as stop:
            stop.ask("closing time")
            reasons.append(stop.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reasons == ["closing time"]


def test_signals_save_at_the_step_border_exit_with_75_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=SMALL)
    words = ("pretrain", "tiny.toml", "--set", f"pretrain.steps={STEPS}", "--set", "pretrain.save_every=50")
    pretrained(tmp_path, f"pretrain.steps={STEPS}", "pretrain.save_every=50", run="never")
    stage = tmp_path / "run/pretrain"
    for attempt, number in enumerate((signal.SIGTERM, signal.SIGINT), start=1):
        process = start(tmp_path, *words, "--run", "run")
        begun = len(curve(stage))
        wait_for(process, lambda begun=begun: len(curve(stage)) > begun + 3)  # type: ignore[misc]
        process.send_signal(number)
        code, out, error = finish(process)
        last = curve(stage)[-1][0]
        assert code == 75 and out == ""
        assert f"at step {last} of {STEPS}, and saved" in error and number.name in error
        assert begun < last < STEPS and step_of(listed(stage)[0]) == last
        assert [row["step"] for row in events(stage, "stop")][-1] == last
        assert len(events(stage, "stop")) == attempt
    code, _, error = ran_here(tmp_path, *words, "--run", "run")
    assert code == 0, error
    assert_same_training(stage, tmp_path / "never/pretrain", STEPS)
