"""Bessemer's pre-training on this CPU against its peers: one model, one command, one run, ratios.

    python benchmarks/cpu_pretrain.py [--steps N] [--rounds N] [--json FILE] [--only name,...] [--tiny]

Every round trains each contestant once, in a process of its own, forwards and then backwards through
the list, so that a machine that gets slower or busier does so for all; the ceiling is measured in every
round too. Medians are compared. Read README.md beside this for what is alike and what is not.
Cost: about a minute a training, nine trainings a round; the first run also installs the peers.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from children import plain_environment, run_child
from contestants import CONTESTANTS, Contestant, Course, train
from environments import HERE, EnvironmentFailure, python_of
from outcome import Results, document, table
from rounds import add_options, in_rounds, tell, write_answer
from workload import TINY, Workload, write_inputs

_CEILING_SIZE = 4096


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    workload = replace(Workload(), timed_steps=args.steps, **(TINY if args.tiny else {}))
    chosen = _chosen(args.only)
    results = Results(workload, args.rounds, args.tiny)
    with tempfile.TemporaryDirectory(prefix="cpu-pretrain-") as folder:
        try:
            _measure(chosen, workload, Path(folder), results, 512 if args.tiny else _CEILING_SIZE)
        except KeyboardInterrupt:
            results.failures["interrupted"] = "by the user: the table has what was measured until then"
    print(table(results))
    if args.json:
        write_answer(args.json, document(results))
    return 1 if results.failures else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = ", ".join(contestant.name for contestant in CONTESTANTS)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser, Workload().timed_steps)
    parser.add_argument("--only", metavar="NAME,…", help=f"only these (or all of a prefix): {names}")
    return parser.parse_args(argv)


def _chosen(only: str | None) -> list[Contestant]:
    if only is None:
        return list(CONTESTANTS)
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    named = {name: _named(name) for name in wanted}
    for name, found in named.items():
        if not found:
            known = ", ".join(contestant.name for contestant in CONTESTANTS)
            raise SystemExit(f"--only {name}: no such contestant\n  known: {known}")
    return [c for c in CONTESTANTS if any(c in found for found in named.values())]


def _named(name: str) -> list[Contestant]:
    """The one of that name, or else all whose names begin so."""
    exact = [contestant for contestant in CONTESTANTS if contestant.name == name]
    return exact or [contestant for contestant in CONTESTANTS if contestant.name.startswith(name)]


def _measure(
    chosen: list[Contestant], workload: Workload, folder: Path, results: Results, ceiling_size: int
) -> None:
    _make_environments(chosen, results)
    course = Course(workload, folder, write_inputs(workload, folder))

    def ceiling() -> None:
        results.ceilings_tflops.append(_ceiling(folder, ceiling_size))

    in_rounds(chosen, results, lambda contestant, number: train(contestant, course, number), ceiling)
    ceiling()


def _make_environments(chosen: list[Contestant], results: Results) -> None:
    """All of them before anything is timed."""
    for peer in sorted({contestant.peer for contestant in chosen if contestant.peer}):
        try:
            python_of(peer)
        except EnvironmentFailure as failure:
            tell(str(failure))
            results.failures |= {c.name: str(failure) for c in chosen if c.peer == peer}


def _ceiling(folder: Path, size: int) -> float:
    log = folder / "ceiling.log"
    run_child([sys.executable, str(HERE / "ceiling.py"), str(size)], folder, plain_environment(), log)
    return float(log.read_text(encoding="utf-8").split()[-1])


if __name__ == "__main__":
    raise SystemExit(main())
