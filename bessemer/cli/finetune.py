"""`bessemer finetune RECIPE`: stage two."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.errors import RecipeError

HELP = "teach a trained model a task; measure against training from scratch with --compare-scratch"
COMPUTES = True
JOINS = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a file or the name of a shipped recipe")
    parser.add_argument(
        "--from",
        dest="from_",
        metavar="RUN[@STEP]",
        help="a run, a Hugging Face folder or a folder of PEFT's to begin from; left out: own pre-training",
    )
    parser.add_argument(
        "--compare-scratch",
        action="store_true",
        help="also learn the task from random weights and from fewer examples, and compare",
    )
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run the recipe's own finetune.reward_function, energy.command, energy.intensity_command",
    )


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    from bessemer.cli.pretrain import alike
    from bessemer.finetune.run import begin_finetune
    from bessemer.finetune.worker import finetune_feed
    from bessemer.launch.world import world_of_environment
    from bessemer.planner.source import with_cluster_file
    from bessemer.recipe.load import load
    from bessemer.rundir import lock
    from bessemer.train.pretrain import Place
    from bessemer.train.run import run_among

    world = world_of_environment()
    size = None if world is None else world.size

    def asked() -> tuple[Any, Path]:
        settings = [*args.set, "finetune.compare_scratch=true"] if args.compare_scratch else args.set
        loaded = with_cluster_file(load(args.recipe, settings))
        _check_compares_alone(loaded, size or 1)
        return loaded, args.run or Path("runs") / loaded.recipe.name

    def begin(loaded: Any, run: Path) -> Any:
        place = Place(run, args.store, args.console, args.allow_code)
        return begin_finetune(loaded, place, args.from_, world=size)

    if world is not None and world.size > 1:
        document = run_among(world, asked, alike(args), args.console, begin, finetune_feed)
        return None if document is None else {**document, "comparison": None}
    loaded, run = asked()
    with lock(run):
        place = Place(run, args.store, args.console, args.allow_code)
        return run_finetune(loaded, place, args.from_, size)


def _check_compares_alone(loaded: Any, size: int) -> None:
    section = loaded.recipe.finetune
    if size > 1 and section is not None and section.compare_scratch:
        raise RecipeError(
            "the comparison with training from scratch trains several stages, one after the other",
            found=f"compare_scratch, in {size} processes that were started together",
            wanted="one process, which starts the ranks of its layout",
            fix="call it without torchrun, with parallel.layout in the recipe",
        )


def run_finetune(loaded: Any, place: Any, from_: str | None, world: int | None = None) -> dict[str, Any]:
    """The stage, and the comparison where the recipe asks for it."""
    from bessemer.finetune.compare_scratch import check_comparable, compare_scratch
    from bessemer.finetune.run import finetune
    from bessemer.finetune.task import prepare_finetune

    task = prepare_finetune(loaded, place, from_, world)
    compares = loaded.recipe.finetune.compare_scratch
    if compares:
        check_comparable(task)
    document = finetune(loaded, place, from_, task)
    return {**document, "comparison": compare_scratch(task) if compares else None}


def show(document: dict[str, Any]) -> str:
    from bessemer.cli.pretrain import show as show_stage

    lines = [show_stage(document), *_round_lines(document.get("rounds") or [])]
    comparison = document["comparison"]
    if comparison is not None:
        lines += ["", *comparison_lines(comparison)]
    return "\n".join(lines)


def _round_lines(rounds: list[dict[str, Any]]) -> list[str]:
    """How the model's own answers went, from the first round to the last."""
    if not rounds or "reward" not in rounds[0]:
        return []
    first, last = rounds[0]["reward"], rounds[-1]["reward"]
    return [f"mean reward {first:.3f} in the first round, {last:.3f} in the last of {len(rounds)}"]


def comparison_lines(comparison: dict[str, Any]) -> list[str]:
    from bessemer.cli.columns import text_table

    scratch, several = comparison["scratch"], comparison["seeds"] > 1
    rows = [_point_row("pre-trained", point) for point in comparison["curve"]["pretrained"]]
    if several:
        points = comparison["curve"]["scratch"]
        rows += [_point_row(f"random weights, lr {point['lr']:g}", point) for point in points]
    else:
        rows += [
            [f"random weights, lr {row['lr']:g}", f"{scratch['examples']:,}", f"{row['loss']:.4f}", "", ""]
            for row in scratch["tried"]
        ]
    headings = ["start", "examples", "loss on held-out answers", "lowest", "highest"]
    # Of one seed there is no spread to tell.
    shown = len(headings) if several else 3
    table = text_table(headings[:shown], [row[:shown] for row in rows])
    ratio = comparison["ratio"]
    lead = "" if ratio == "none" else f"{ratio} fewer examples. "
    return [*table, f"{lead}{comparison['sentence']}"]


def _point_row(start: str, point: dict[str, Any]) -> list[str]:
    losses = [f"{point[name]:.4f}" for name in ("mean", "low", "high")]
    return [start, f"{point['examples']:,}", *losses]
