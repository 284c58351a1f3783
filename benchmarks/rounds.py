"""What the commands that train contestants in rounds have alike: options, the rounds, what is told."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from children import ChildFailure


def add_options(parser: argparse.ArgumentParser, timed_steps: int) -> None:
    """timed_steps: of a training, unless --steps says otherwise."""
    parser.add_argument("--steps", type=positive, default=timed_steps, help="timed steps of a training")
    parser.add_argument("--rounds", type=positive, default=2, help="trainings of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model: tries the path, its timings say nothing"
    )


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def in_rounds(
    chosen: Sequence[Any], results: Any, train: Callable[[Any, int], Any], every_round: Callable[[], None]
) -> None:
    """Each contestant once a round, every second round backwards. One that fails is not tried again.

    train: a contestant and the number of the training, to its sample. every_round: called before each.
    """
    for number, (turn, contestant) in enumerate(_turns(chosen, results, every_round), start=1):
        tell(f"round {turn + 1} of {results.rounds}: {contestant.name}")
        try:
            sample = train(contestant, number)
        except ChildFailure as failure:
            results.failures[contestant.name] = str(failure)
            tell(f"  {failure}")
            continue
        results.samples.setdefault(contestant.name, []).append(sample)
        memory, first, last = sample.peak_rss_bytes / 2**30, sample.losses[0], sample.losses[-1]
        tell(f"  {sample.tokens_per_s:,.0f} tokens/s, {memory:.2f} GiB, loss {first:.3f} to {last:.3f}")


def _turns(chosen: Sequence[Any], results: Any, every_round: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    for turn in range(results.rounds):
        every_round()
        for contestant in chosen if turn % 2 == 0 else reversed(chosen):
            if contestant.name not in results.failures:
                yield turn, contestant


def write_answer(path: Path, document: dict[str, Any]) -> None:
    """With the command as it was given, and when."""
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    answer = {"command": shlex.join(["python", *sys.argv]), "date": date, **document}
    path.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
