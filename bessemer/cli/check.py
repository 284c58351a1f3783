"""`bessemer check layouts RECIPE`: proofs on the user's own machine."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.errors import RecipeError
from bessemer.units import format_bytes

HELP = "proofs on your own machine: that every layout gives the training of one process"
COMPUTES = True

_FAILED = 1  # exit code: layouts that differ are a mistake in Bessemer, not in the recipe
_NOT_BUILT = {
    "resume": "a run that is killed goes on bit for bit",
    "chaos": "the same at many moments, and with files torn",
    "data": "the tokens of prepared data are those of its sources",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=["layouts", *_NOT_BUILT], help="only `layouts` is built yet")
    parser.add_argument("recipe", metavar="RECIPE", help="a file or the name of a shipped recipe")
    parser.add_argument(
        "--from",
        dest="from_",
        metavar="RUN[@STEP]",
        help="check the fine-tuning, from these weights; left out: pre-training, if the recipe has sources",
    )
    parser.add_argument(
        "--layouts", metavar='"A;B"', help='e.g. "shard=2;tensor=2,pipeline=2"; default: all that make sense'
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="most ranks of a default layout (8)")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="optimizer steps compared (5)")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="seconds for a layout (120)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    _refuse(args)
    from bessemer.check.layouts import Wish, check_subject
    from bessemer.recipe.load import load

    wish = Wish(layouts=args.layouts, ranks=args.ranks, steps=args.steps, timeout_s=args.timeout)
    document = check_subject(_subject(args, load(args.recipe, args.set)), wish, args.console)
    return {"kind": "layouts", **document}


def _subject(args: argparse.Namespace, loaded: Any) -> Any:
    """The recipe's pre-training; its fine-tuning where it has no other, or weights are named for it."""
    from bessemer.check.layouts import pretraining
    from bessemer.check.plans import WHERE, Subject
    from bessemer.finetune.checked import checked_stage
    from bessemer.planner.task import only_finetunes
    from bessemer.train.pretrain import Place

    if args.from_ is None and not only_finetunes(loaded.recipe):
        return pretraining(loaded, args.store, args.console)
    place = Place(args.run or Path("runs") / loaded.recipe.name, args.store, args.console)
    return Subject(loaded.recipe, *checked_stage(loaded, place, args.from_, WHERE))


def exit_code(document: dict[str, Any]) -> int:
    return _FAILED if document["failed"] else 0


def show(document: dict[str, Any]) -> str:
    ran = [row for row in document["rows"] if row["passed"] is not None]
    parts = [text_table(_HEADINGS, [_cells(row) for row in ran])]
    parts += [
        [f"{row['layout']}: {word}: {row[word]}" for row in document["rows"] if row[word]]
        for word in ("refused", "error")
    ]
    return "\n\n".join("\n".join(lines) for lines in [*parts, _verdict(document)] if lines)


_HEADINGS = ["Layout", "ranks", "loss differs", "grad norm differs", "memory of a rank", "sent in a step", ""]


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["layout"], str(row["ranks"])]
    if row["max_relative_loss_difference"] is None:
        return [*cells, "", "", "", "", "FAILED"]
    differences = ("max_relative_loss_difference", "max_relative_grad_norm_difference")
    amounts = ("peak_memory_bytes", "bytes_sent")
    cells += [f"{row[key]:.1e}" for key in differences] + [format_bytes(row[key]) for key in amounts]
    return [*cells, "passed" if row["passed"] else "FAILED"]


def _verdict(document: dict[str, Any]) -> list[str]:
    limit = document["tolerance"]
    counts = f"{document['passed']} passed, {document['failed']} failed, {document['refused']} refused"
    return [
        f"{counts}: {document['stage']} against one process, {document['steps']} steps of "
        f"{document['batch_rows']} rows of {document['context']} tokens, {document['dtype']}.",
        f"Largest relative differences that pass: loss {limit['first_loss']:.0e} at the first step and "
        f"{limit['loss']:.0e} later, gradient norm {limit['first_grad_norm']:.0e} at the first step and "
        f"{limit['grad_norm']:.0e} later.",
    ]


def _refuse(args: argparse.Namespace) -> None:
    """What is not built, cannot be, or would have no effect."""
    if args.kind in _NOT_BUILT:
        raise RecipeError(
            f"`bessemer check {args.kind}` is not built yet in this version",
            found=f"check {args.kind}: {_NOT_BUILT[args.kind]}",
            wanted="`bessemer check layouts RECIPE`",
            fix="`bessemer doctor` looks at the machine, `bessemer data report PATH` at prepared data",
        )
    checks = [
        (args.layouts is not None and args.ranks is not None, "--layouts and --ranks", "one of them",
         "remove --ranks: it limits the layouts that are chosen for you"),
        (args.ranks is not None and args.ranks < 2, f"--ranks {args.ranks}", "2 or more", "--ranks 8"),
        (args.steps < 1, f"--steps {args.steps}", "1 or more", "--steps 5"),
        (not 0 < args.timeout < 1e6, f"--timeout {args.timeout:g}", "seconds, above 0", "--timeout 120"),
    ]  # fmt: skip
    for wrong, found, wanted, fix in checks:
        if wrong:
            raise RecipeError("this cannot be checked so", found=found, wanted=wanted, fix=fix)
