"""Bessemer's training step on one GPU against transformers: speed, MFU, memory, energy; table and JSON.

Called by run.sh beside this. Each training has a process of its own, so that memory is counted and
freed for each alone. A batch that does not fit is halved, and the table says so. What the time limit
leaves no room for is named, not left out in silence.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from children import ChildFailure, plain_environment, run_child
from columns import brief, columns, shown

from bessemer.launch.environment import wanted_environment

HERE = Path(__file__).resolve().parent
CONTESTANTS = ("bessemer", "transformers-compiled", "transformers-eager")
SHAPES = {"124m": 32, "1b": 4, "tiny": 8}  # rows of a micro-batch, as in the recipes
_MIN_LEFT_S = 30.0  # no training is begun with less
_OUT_OF_MEMORY = 3  # exit code of train_one.py


@dataclass
class Run:
    folder: Path
    until_s: float
    timed_s: float  # of each training
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        return self.until_s - time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    shapes = ["tiny"] if args.tiny else args.shapes.split(",")
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as folder:
        run = Run(Path(folder), time.monotonic() + args.limit_s, 1.0 if args.tiny else args.seconds)
        run.facts = _child(run, ["ceiling"], "ceiling")
        for shape in shapes:
            for contestant in CONTESTANTS:
                row = _train(run, shape, contestant)
                run.rows.append({"shape": shape, "contestant": contestant, **row})
                _tell(f"{shape} {contestant}: {_summary(row)}")
    print(table(run))
    target = _target(args.out)
    target.write_text(json.dumps(document(run), indent=1) + "\n", encoding="utf-8")
    _tell(f"written: {target}")
    return 1 if any(row.get("failed") for row in run.rows) else 0


def document(run: Run) -> dict[str, Any]:
    return {
        "benchmark": "gpu",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["benchmarks/gpu/run.sh", *sys.argv[1:]]),
        "python": platform.python_version(),
        **run.facts,
        "rows": [{**row, **_shares(run, row)} for row in run.rows],
    }


def table(run: Run) -> str:
    facts = run.facts
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in facts["versions"].items())
    peak = shown(facts["peak_bf16_tflops"], ".0f")
    head = (
        f"{facts['device']}: bf16 matmul {facts['ceiling_bf16_tflops']:.4g} TFLOP/s measured, {peak} in the "
        f"catalogue\n{versions}"
    )
    headings = ["", "rows", "tokens/s", "× compiled", "MFU measured", "MFU catalogue", "GiB", "J/token"]
    body = [_cells(run, row) for row in run.rows]
    failed = [row for row in run.rows if row.get("failed")]
    notes = [f"{row['shape']} {row['contestant']}: {brief(row['failed'])}" for row in failed]
    return "\n".join([head, "", *columns(headings, body), *notes])


def _train(run: Run, shape: str, contestant: str) -> dict[str, Any]:
    """What train_one.py found, or why there is nothing."""
    rows = SHAPES[shape]
    while rows:
        if run.left_s < _MIN_LEFT_S:
            return {"failed": "not begun: no time is left of the limit"}
        words = [contestant, str(HERE / f"{shape}.toml"), str(rows), str(run.timed_s)]
        try:
            return {"rows": rows, **_child(run, words, f"{shape}-{contestant}-{rows}")}
        except ChildFailure as failure:
            if failure.exit_code != _OUT_OF_MEMORY:
                return {"failed": str(failure)}
        rows //= 2
    return {"failed": "out of memory with a single row"}


def _child(run: Run, words: list[str], stem: str) -> dict[str, Any]:
    result = run.folder / f"{stem}.json"
    command = [sys.executable, str(HERE / "train_one.py"), *words, str(result)]
    # Bessemer's own commands arrange this for themselves; a peer runs as it comes.
    plain = plain_environment()
    environment = wanted_environment(plain) if words[0] == "bessemer" else plain
    run_child(command, run.folder, environment, run.folder / f"{stem}.log", max(1.0, run.left_s))
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _shares(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """Utilisation and ratio to compiled transformers; None where either side is unknown."""
    rate = row.get("tokens_per_s")
    if rate is None:
        return {}
    tflops = rate * row["flops_per_token"] / 1e12
    peak, ceiling = run.facts["peak_bf16_tflops"], run.facts["ceiling_bf16_tflops"]
    of_shape = [other for other in run.rows if other["shape"] == row["shape"]]
    peers = [r["tokens_per_s"] for r in of_shape if r["contestant"] == CONTESTANTS[1] and "tokens_per_s" in r]
    return {
        "tflops": tflops,
        "mfu_of_ceiling": tflops / ceiling,
        "mfu_of_catalogue": tflops / peak if peak else None,
        "ratio_to_compiled": rate / peers[0] if peers else None,
    }


def _cells(run: Run, row: dict[str, Any]) -> list[str]:
    name, shares = f"{row['shape']} {row['contestant']}", _shares(run, row)
    if not shares:
        return [name, *["–"] * 7]
    energy = row["joules_per_token"]
    return [
        name,
        str(row["rows"]),
        f"{row['tokens_per_s']:,.0f}",
        shown(shares["ratio_to_compiled"], ".2f"),
        f"{shares['mfu_of_ceiling']:.1%}",
        shown(shares["mfu_of_catalogue"], ".1%"),
        f"{row['peak_memory_bytes'] / 2**30:.2f}",
        f"{energy['value']:.2e} ({energy['basis']})" if energy else "–",
    ]


def _summary(row: dict[str, Any]) -> str:
    if row.get("failed"):
        return str(row["failed"])
    losses = f"loss {row['loss_first']:.3f} to {row['loss_last']:.3f}"
    return f"{row['tokens_per_s']:,.0f} tokens/s over {row['steps']} steps, {losses}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, also on a CPU: tries the path")
    parser.add_argument("--shapes", default="124m,1b", help="of 124m, 1b, tiny; default: 124m,1b")
    parser.add_argument("--seconds", type=float, default=12.0, help="timed seconds of each training")
    parser.add_argument("--limit-s", type=float, default=540.0, help="for all of it")
    parser.add_argument(
        "--out", type=Path, default=os.environ.get("OUT"), help="file or folder; default: $OUT"
    )
    return parser.parse_args(argv)


def _target(out: Path | None) -> Path:
    name = f"results-{date.today().isoformat()}.json"
    if out is None:
        return HERE / name
    return out / name if out.is_dir() else out


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
