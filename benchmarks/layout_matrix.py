"""Write the matrix of docs/parallel.md: many layouts of tiny models against one process.

    python benchmarks/layout_matrix.py           runs `bessemer check layouts` on benchmarks/layouts/*.toml
    python benchmarks/layout_matrix.py --kept    writes the page from the results of the last run

About 15 minutes on two cores. What the command answered is kept in benchmarks/results/layouts.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs/parallel.md", ROOT / "benchmarks/results/layouts.json"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
STEPS, TIMEOUT_S = 10, 400

# By recipe; none: what the command chooses.
LAYOUTS: dict[str, Sequence[str]] = {
    "dense": (),
    "tied": (
        "shard=2",
        "tensor=2",
        "pipeline=2",
        "pipeline=4",
        "pipeline=2,schedule=interleaved",
        "pipeline=2,schedule=zbv",
        "replicate=2,pipeline=2",
        "shard=2,pipeline=2",
        "shard=2,pipeline=2,schedule=zbv",
        "context=2,pipeline=2",
        "shard=2,tensor=2,pipeline=2",
    ),
    "heads6": (
        "tensor=3",
        "shard=2,tensor=3",
        "tensor=3,pipeline=2",
        "tensor=3,context=2",
        "replicate=2,tensor=3",
        "shard=3",
        "shard=5",
        "shard=3,pipeline=2",
        "replicate=3,shard=2",
    ),
    "qwen3-moe": (
        "shard=2",
        "shard=3",
        "tensor=2",
        "pipeline=2",
        "context=2",
        "pipeline=2,schedule=interleaved",
        "pipeline=2,schedule=zbv",
        "replicate=2,expert=2",
        "shard=2,expert=2",
        "context=2,expert=2",
        "shard=4,expert=2",
        "shard=4,expert=4",
        "replicate=2,shard=2,expert=4",
        "shard=2,tensor=2,expert=2",
        "expert=2,shard=2,pipeline=2",
        "expert=2,shard=2,pipeline=2,schedule=zbv",
        "expert=2,shard=2,pipeline=2,schedule=interleaved",
        "shard=2,tensor=2,context=2,expert=2",
        "shard=2,context=2,context_kind=ulysses,expert=2",
    ),
    "glm4-moe": (
        "shard=2",
        "tensor=2",
        "pipeline=2",
        "context=2",
        "pipeline=2,schedule=zbv",
        "pipeline=2,split=3+1",
        "replicate=2,expert=2",
        "shard=2,expert=2",
        "shard=2,tensor=2,expert=2",
        "expert=2,shard=2,pipeline=2",
        "expert=2,shard=2,pipeline=2,schedule=zbv",
        "shard=2,tensor=2,pipeline=2",
        "shard=2,tensor=2,context=2,expert=2",
    ),
}
HEADINGS = (
    "model",
    "layout",
    "ranks",
    "loss differs",
    "gradient norm differs",
    "memory of a rank",
    "sent in a step",
    "",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kept", action="store_true", help="write the page again from the last results")
    if not parser.parse_args().kept:
        with tempfile.TemporaryDirectory() as store:
            documents = {name: checked(name, layouts, store) for name, layouts in LAYOUTS.items()}
        kept = {"date": time.strftime("%F", time.gmtime()), "models": documents}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{matrix(kept)}\n{END}{after}", encoding="utf-8")
    return int(any(document["failed"] for document in kept["models"].values()))


def checked(name: str, layouts: Sequence[str], store: str) -> dict[str, Any]:
    """What the command answers. It ends with 1 when a layout fails, and its answer is the same."""
    command = [sys.executable, "-m", "bessemer", "check", "layouts", f"benchmarks/layouts/{name}.toml"]
    command += ["--json", "--store", store, "--steps", str(STEPS), "--timeout", str(TIMEOUT_S)]
    command += ["--layouts", ";".join(layouts)] if layouts else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    document: dict[str, Any] = json.loads(done.stdout or "{}")
    if "rows" not in document:
        raise SystemExit(f"{name} was not checked: exit code {done.returncode}, {done.stdout}")
    return document


def matrix(kept: dict[str, Any]) -> str:
    """The part of the page between the marks."""
    models = kept["models"]
    one = next(iter(models.values()))
    limit = one["tolerance"]
    passed, failed = (sum(each[word] for each in models.values()) for word in ("passed", "failed"))
    lines = [
        f"{passed} layouts pass, {failed} fail: {one['steps']} steps of {one['batch_rows']} rows of "
        f"{one['context']} tokens in {one['dtype']}, torch {one['torch']} with gloo, {kept['date']}.",
        "Differences are relative to one process on the same rows, which are packed documents; the largest",
        f"over the steps. They pass up to {limit['first_loss']:.0e} for the loss of the first step, "
        f"{limit['loss']:.0e} for later ones and held-out rows,",
        f"{limit['grad_norm']:.0e} for the gradient norm. Written by `benchmarks/layout_matrix.py` from what "
        "the command answered.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    lines += [table_line(name, row) for name, each in models.items() for row in each["rows"]]
    return "\n".join(lines)


def table_line(name: str, row: dict[str, Any]) -> str:
    cells = [name, f"`{row['layout']}`", str(row["ranks"])]
    if row["max_relative_loss_difference"] is None:
        return f"| {' | '.join([*cells, '', '', '', '', row['refused'] or row['error']])} |"
    cells += [f"{row[f'max_relative_{what}_difference']:.1e}" for what in ("loss", "grad_norm")]
    cells += [f"{row[what] / 2**10:,.0f} KiB" for what in ("peak_memory_bytes", "bytes_sent")]
    return f"| {' | '.join([*cells, 'passed' if row['passed'] else 'FAILED'])} |"


if __name__ == "__main__":
    sys.exit(main())
