"""`bessemer pretrain RECIPE`: stage one."""

import argparse
from pathlib import Path
from typing import Any

HELP = "train a model from a recipe; the same command again goes on where it stopped"
COMPUTES = True
JOINS = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a file or the name of a shipped recipe")
    parser.add_argument(
        "--from",
        dest="from_",
        metavar="RUN[@STEP]",
        help="begin from a run (on the same data its optimizer and step too) or a Hugging Face folder",
    )
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run the recipe's own energy.command, energy.intensity_command",
    )


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    from bessemer.launch.world import world_of_environment
    from bessemer.planner.source import with_cluster_file
    from bessemer.recipe.load import load
    from bessemer.rundir import lock
    from bessemer.train.pretrain import Place, begin_pretrain, pretrain
    from bessemer.train.run import run_among

    def asked() -> tuple[Any, Path]:
        loaded = with_cluster_file(load(args.recipe, args.set))
        return loaded, args.run or Path("runs") / loaded.recipe.name

    def place(run: Path) -> Place:
        return Place(run, args.store, args.console, args.allow_code)

    def begin(loaded: Any, run: Path) -> Any:
        return begin_pretrain(loaded, place(run), args.from_, size)

    world = world_of_environment()
    size = None if world is None else world.size
    if world is not None and world.size > 1:
        return run_among(world, asked, alike(args), args.console, begin)
    loaded, run = asked()
    with lock(run):
        return pretrain(loaded, place(run), args.from_, size)


def alike(args: argparse.Namespace) -> dict[str, str]:
    """Options that all ranks must give alike, though only the first one follows them."""
    return {"--store": str(args.store.resolve()), "--from": args.from_ or "(not given)"}


def show(document: dict[str, Any]) -> str:
    from bessemer.cli.columns import figure

    done = " (done already)" if document.get("already_done") else ""
    return (
        f"{document['run']}/{document['stage']}: step {document['step']}, loss {figure(document['loss'])}, "
        f"validation {figure(document['validation_loss'])}{done}\n{document['checkpoint']}"
    )
