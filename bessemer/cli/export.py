"""`bessemer export RUN`: the model as others load it."""

import argparse
from pathlib import Path
from typing import Any

HELP = "write the model as a Hugging Face folder, with the proof that it computes the same"
COMPUTES = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="RUN", help="a run (its newest stage) or one of its stages"
    )
    parser.add_argument("--format", choices=("hf", "peft", "gguf"), default="hf", help="default: hf")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: export/hf inside the run")
    parser.add_argument(
        "--dtype", metavar="TYPE", help="round to bf16 or fp16; left out: bit for bit as stored"
    )
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of step N; left out: the newest")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.errors import RecipeError
    from bessemer.export.huggingface import export_huggingface
    from bessemer.rundir import find_stage

    if args.format != "hf":
        raise RecipeError(
            f"export to {args.format} is not built yet",
            found=f"--format {args.format}",
            wanted="--format hf",
            fix="export to hf: llama.cpp's convert_hf_to_gguf.py and peft read that folder",
        )
    stage = find_stage(args.target)
    out = args.out or stage.parent / "export" / "hf"
    return {"run": str(stage.parent), "format": args.format, **export_huggingface(
        stage, out, step=args.step, dtype=args.dtype, console=args.console
    )}  # fmt: skip


def show(document: dict[str, Any]) -> str:
    difference = document["max_absolute_logit_difference"]
    proof = (
        f"largest |Δ logit| against transformers {document['transformers']}: {difference:.2e}"
        if difference is not None
        else f"not compared with transformers: {document['reason']}"
    )
    done = " (done already, nothing written)" if document["already_done"] else ""
    size = sum(document["files"].values())
    return (
        f"{document['out']}{done}\n{document['stage']} step {document['step']}, {document['dtype']}, weights "
        f"{document['weights']}, {size / 1e6:,.1f} MB\n{proof}"
    )
