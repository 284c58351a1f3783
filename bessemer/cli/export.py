"""`bessemer export RUN`: the model as others load it."""

import argparse
from pathlib import Path
from typing import Any

HELP = "write the model as a Hugging Face folder, or its adapters as a PEFT folder, with proof of equality"
COMPUTES = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="RUN", help="a run (its newest stage) or one of its stages"
    )
    parser.add_argument("--format", choices=("hf", "peft", "gguf"), default="hf", help="default: hf")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: export/hf or export/peft inside the run"
    )
    parser.add_argument(
        "--dtype", metavar="TYPE", help="round to bf16 or fp16; left out: bit for bit as stored"
    )
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of step N; left out: the newest")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.energy.metering.beside import EXPORT
    from bessemer.errors import RecipeError
    from bessemer.export.huggingface import export_huggingface
    from bessemer.export.peft import export_peft
    from bessemer.rundir import find_stage
    from bessemer.train.beside import metered

    if args.format == "gguf":
        raise RecipeError(
            "export to gguf is not built yet",
            found="--format gguf",
            wanted="--format hf or peft",
            fix="export to hf: llama.cpp's convert_hf_to_gguf.py reads that folder",
        )
    stage = find_stage(args.target)
    out = args.out or stage.parent / "export" / args.format
    export = export_huggingface if args.format == "hf" else export_peft
    receipt = metered(
        EXPORT,
        stage.parent,
        lambda: export(stage, out, step=args.step, dtype=args.dtype, console=args.console),
        args.console,
    )
    del receipt["schema"]  # that of the file; the document of a command has its own
    return {"run": str(stage.parent), "format": args.format, **receipt}


def show(document: dict[str, Any]) -> str:
    difference = document["max_absolute_logit_difference"]
    other = "transformers" if document["format"] == "hf" else "peft"
    proof = (
        f"largest |Δ logit| against {other} {document[other]}: {difference:.2e}"
        if difference is not None
        else f"not compared with {other}: {document['reason']}"
    )
    done = " (done already, nothing written)" if document["already_done"] else ""
    size = sum(document["files"].values())
    return (
        f"{document['out']}{done}\n{document['stage']} step {document['step']}, {document['dtype']}, weights "
        f"{document['weights']}, {size / 1e6:,.1f} MB\n{proof}{_merged(document.get('merge'))}"
    )


def _merged(merge: dict[str, Any] | None) -> str:
    if merge is None:
        return ""
    if merge["max_absolute_logit_difference"] is None:
        return f"\nnot compared with the adapters apart: {merge['reason']}"
    line = f"\nlargest |Δ logit| against the adapters apart: {merge['max_absolute_logit_difference']:.2e}"
    if made := merge.get("quantisation"):
        line += (
            f"\ntrained beside weights in {made['base']}, merged onto full precision: |Δ logit| "
            f"{made['mean_absolute_logit_difference']:.2e} on average, "
            f"{made['max_absolute_logit_difference']:.2e} at most; same next token for "
            f"{made['same_next_token']:.1%}"
        )
    return line
