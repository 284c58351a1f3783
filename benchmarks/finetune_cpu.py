"""Bessemer's fine-tuning on this CPU against TRL and PEFT: one model, one command, one run, ratios.

    python benchmarks/finetune_cpu.py [--steps N] [--rounds N] [--json FILE] [--only name,…] [--tiny] …

Every round trains each contestant once, in a process of its own, forwards and then backwards through the
list, so that a machine that gets slower or busier does so for all. Medians are compared. Then the loss of
DPO and its gradients are compared with TRL's, on one batch. Read README.md beside this for what is alike
and what is not.
Cost: about a minute a training, twelve trainings a round; the first run also installs the peers.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from children import ChildFailure
from environments import EnvironmentFailure, python_of
from finetune_outcome import Results, document, table
from finetune_preference import PREFERENCE, compare
from finetune_sides import SIDES, Sample, Side, train
from finetune_work import PEER, TINY, Workload, write_inputs
from rounds import add_options, in_rounds, positive, write_answer


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    workload = replace(Workload(), timed_steps=args.steps, context=args.context)
    workload = replace(workload, **(TINY if args.tiny else {}))
    results = Results(workload, args.rounds, args.tiny)
    with tempfile.TemporaryDirectory(prefix="finetune-cpu-") as folder:
        try:
            python_of(PEER)  # before anything is timed
            write_inputs(workload, Path(folder))
            in_rounds(_chosen(args.only), results, partial(_trained, workload, Path(folder)), lambda: None)
            if args.only is None or PREFERENCE in args.only:
                results.preference = compare(Path(folder))
        except (EnvironmentFailure, ChildFailure) as failure:
            results.failures["all"] = str(failure)
        except KeyboardInterrupt:
            results.failures["interrupted"] = "by the user: the table has what was measured until then"
    print(table(results))
    if args.json:
        write_answer(args.json, document(results))
    return 1 if results.failures else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = ", ".join(f'"{side.name}"' for side in SIDES)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser, Workload().timed_steps)
    parser.add_argument("--context", type=positive, default=Workload().context, help="tokens in a row")
    parser.add_argument(
        "--only", metavar="NAME,…", help=f"only those whose names begin so: {names}, {PREFERENCE}"
    )
    return parser.parse_args(argv)


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


def _trained(workload: Workload, folder: Path, side: Side, number: int) -> Sample:
    return train(side, workload, folder, number)


if __name__ == "__main__":
    raise SystemExit(main())
