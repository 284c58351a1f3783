"""Bessemer's fine-tuning on this CPU against TRL and PEFT: one model, one command, one run, ratios.

    python benchmarks/finetune_cpu.py [--steps N] [--rounds N] [--json FILE] [--only name,…] [--tiny] …

Every round trains each contestant once, in a process of its own, forwards and then backwards through the
list, so that a machine that gets slower or busier does so for all. Medians are compared. Then the loss of
DPO and its gradients are compared with TRL's, on one batch. Read README.md beside this for what is alike
and what is not.
Cost: about a minute a training, twelve trainings a round; the first run also installs the peers.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from children import ChildFailure
from environments import EnvironmentFailure, python_of
from finetune_outcome import Results, document, table
from finetune_preference import PREFERENCE, compare
from finetune_sides import SIDES, Sample, Side, train
from finetune_work import PEER, TINY, Workload, write_inputs


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    workload = replace(Workload(), timed_steps=args.steps, context=args.context)
    workload = replace(workload, **(TINY if args.tiny else {}))
    results = Results(workload, args.rounds, args.tiny)
    with tempfile.TemporaryDirectory(prefix="finetune-cpu-") as folder:
        try:
            python_of(PEER)  # before anything is timed
            write_inputs(workload, Path(folder))
            _measure(_chosen(args.only), workload, Path(folder), results)
            if args.only is None or PREFERENCE in args.only:
                results.preference = compare(Path(folder))
        except (EnvironmentFailure, ChildFailure) as failure:
            results.failures["all"] = str(failure)
        except KeyboardInterrupt:
            results.failures["interrupted"] = "by the user: the table has what was measured until then"
    print(table(results))
    if args.json:
        command = shlex.join(["python", *sys.argv])
        answer = {"command": command, "date": _now(), **document(results)}
        args.json.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    return 1 if results.failures else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = ", ".join(f'"{side.name}"' for side in SIDES)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=_positive, default=Workload().timed_steps, help="timed ones")
    parser.add_argument("--context", type=_positive, default=Workload().context, help="tokens in a row")
    parser.add_argument("--rounds", type=_positive, default=2, help="trainings of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    parser.add_argument(
        "--only", metavar="NAME,…", help=f"only those whose names begin so: {names}, {PREFERENCE}"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model: tries the path, its timings say nothing"
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _chosen(only: str | None) -> list[Side]:
    if only is None:
        return list(SIDES)
    # Names have a comma before "compiled" or "eager".
    wanted = [name.strip() for name in only.replace(", compiled", "").replace(", eager", "").split(",")]
    for name in wanted:
        if name != PREFERENCE and not any(side.name.startswith(name) for side in SIDES):
            known = ", ".join(side.name for side in SIDES)
            raise SystemExit(f"--only {name}: no such contestant\n  known: {known}, {PREFERENCE}")
    return [side for side in SIDES if any(side.name.startswith(name) for name in wanted)]


def _measure(chosen: list[Side], workload: Workload, folder: Path, results: Results) -> None:
    number = 0
    for turn in range(results.rounds):
        for side in chosen if turn % 2 == 0 else reversed(chosen):
            if side.name in results.failures:
                continue  # it failed before, and would again
            number += 1
            _tell(f"round {turn + 1} of {results.rounds}: {side.name}")
            try:
                sample = train(side, workload, folder, number)
            except ChildFailure as failure:
                results.failures[side.name] = str(failure)
                _tell(f"  {failure}")
                continue
            results.samples.setdefault(side.name, []).append(sample)
            _tell(_line(sample))


def _line(sample: Sample) -> str:
    memory = sample.peak_rss_bytes / 2**30
    first, last = sample.losses[0], sample.losses[-1]
    return f"  {sample.tokens_per_s:,.0f} tokens/s, {memory:.2f} GiB, loss {first:.3f} to {last:.3f}"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
