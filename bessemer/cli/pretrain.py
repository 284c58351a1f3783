"""`bessemer pretrain RECIPE`: stage one."""

import argparse
from pathlib import Path
from typing import Any

HELP = "train a model from a recipe; the same command again goes on where it stopped"
COMPUTES = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a file or the name of a shipped recipe")
    parser.add_argument(
        "--from",
        dest="from_",
        metavar="RUN[@STEP]",
        help="begin from a run (on the same data its optimizer and step too) or a Hugging Face folder",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.launch.world import world_of_environment
    from bessemer.recipe.load import load
    from bessemer.rundir import lock
    from bessemer.train.pretrain import Place, begin_pretrain, pretrain
    from bessemer.train.run import run_among

    loaded = load(args.recipe, args.set)
    place = Place(args.run or Path("runs") / loaded.recipe.name, args.store, args.console)
    world = world_of_environment()
    if world is None or world.size == 1:
        with lock(place.run):
            return pretrain(loaded, place, args.from_)

    def begin() -> Any:
        return begin_pretrain(loaded, place, args.from_, world.size)

    return run_among(world, loaded, place.run, place.console, begin)


def show(document: dict[str, Any]) -> str:
    from bessemer.cli.columns import figure

    done = " (done already)" if document.get("already_done") else ""
    return (
        f"{document['run']}/{document['stage']}: step {document['step']}, loss {figure(document['loss'])}, "
        f"validation {figure(document['validation_loss'])}{done}\n{document['checkpoint']}"
    )
