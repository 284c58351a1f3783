"""`bessemer finetune RECIPE`: stage two."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.errors import RecipeError

HELP = "teach a trained model a task; measure against training from scratch with --compare-scratch"
COMPUTES = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a file or the name of a shipped recipe")
    parser.add_argument(
        "--from",
        dest="from_",
        metavar="RUN[@STEP]",
        help="a run or a Hugging Face folder to begin from; left out: this run's own pre-training",
    )
    parser.add_argument(
        "--compare-scratch",
        action="store_true",
        help="also learn the task from random weights and from fewer examples, and compare",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.finetune.run import begin_finetune
    from bessemer.launch.world import world_of_environment
    from bessemer.recipe.load import load
    from bessemer.rundir import lock
    from bessemer.train.pretrain import Place
    from bessemer.train.run import run_among

    settings = [*args.set, "finetune.compare_scratch=true"] if args.compare_scratch else args.set
    loaded = load(args.recipe, settings)
    place = Place(args.run or Path("runs") / loaded.recipe.name, args.store, args.console)
    world = world_of_environment()
    if world is None or world.size == 1:
        with lock(place.run):
            return run_finetune(loaded, place, args.from_)
    if args.compare_scratch:
        raise RecipeError(
            "--compare-scratch trains several stages, one after the other, by itself",
            found=f"one of {world.size} processes that were started together",
            wanted="one process, which starts the ranks of its layout",
            fix="call it without torchrun, with parallel.layout in the recipe",
        )

    def begin() -> Any:
        return begin_finetune(loaded, place, args.from_, world=world.size)

    return {**run_among(world, loaded, place.run, place.console, begin), "comparison": None}


def run_finetune(loaded: Any, place: Any, from_: str | None) -> dict[str, Any]:
    """The stage, and the comparison where the recipe asks for it."""
    from bessemer.finetune.compare_scratch import check_comparable, compare_scratch
    from bessemer.finetune.run import finetune, prepare_finetune

    task = prepare_finetune(loaded, place, from_)
    compares = loaded.recipe.finetune.compare_scratch
    if compares:
        check_comparable(task)
    document = finetune(loaded, place, from_, task)
    return {**document, "comparison": compare_scratch(task) if compares else None}


def show(document: dict[str, Any]) -> str:
    from bessemer.cli.pretrain import show as show_stage

    lines = [show_stage(document)]
    comparison = document["comparison"]
    if comparison is not None:
        lines += ["", *comparison_lines(comparison)]
    return "\n".join(lines)


def comparison_lines(comparison: dict[str, Any]) -> list[str]:
    from bessemer.cli.columns import text_table

    scratch = comparison["scratch"]
    rows = [
        ["pre-trained", f"{count:,}", f"{loss:.4f}"]
        for count, loss in zip(comparison["examples"], comparison["pretrained"], strict=True)
    ]
    rows += [
        [f"random weights, lr {row['lr']:g}", f"{scratch['examples']:,}", f"{row['loss']:.4f}"]
        for row in scratch["tried"]
    ]
    table = text_table(["start", "examples", "loss on held-out answers"], rows)
    ratio = comparison["ratio"]
    lead = "" if ratio == "none" else f"{ratio} fewer examples. "
    return [*table, f"{lead}{comparison['sentence']}"]
