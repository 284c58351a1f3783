"""`bessemer run RECIPE`: all stages of a recipe, each only where it is not done yet."""

import argparse
import time
from pathlib import Path
from typing import Any

HELP = "all stages of a recipe: data, pretrain, finetune, evaluate, export, report; resumable"
COMPUTES = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a file or the name of a shipped recipe")
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run what the recipe has of its own: energy.command, energy.intensity_command, "
        "finetune.reward_function",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    return run_all(args.recipe, args)


def run_all(reference: str, args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.planner.source import with_cluster_file
    from bessemer.recipe.load import load
    from bessemer.rundir import lock
    from bessemer.train.pretrain import Place

    loaded = with_cluster_file(load(reference, args.set))
    place = Place(
        args.run or Path("runs") / loaded.recipe.name,
        args.store,
        args.console,
        getattr(args, "allow_code", False),
    )
    begin_s = time.monotonic()
    with lock(place.run):
        document = _stages(loaded, place)
    return {"run": str(place.run), **document, "seconds": round(time.monotonic() - begin_s, 1)}


def _stages(loaded: Any, place: Any) -> dict[str, Any]:
    from bessemer.cli.finetune import run_finetune
    from bessemer.energy.metering.beside import EVALUATE, EXPORT
    from bessemer.evaluate.run import evaluate
    from bessemer.export.huggingface import export_huggingface
    from bessemer.finetune.task import check_early
    from bessemer.report.build import write_report
    from bessemer.report.overview import result_sentence
    from bessemer.train.beside import metered
    from bessemer.train.pretrain import power_command, pretrain

    say, has_task = place.console.line, loaded.recipe.finetune is not None
    if has_task:
        check_early(loaded)  # a mistake in [finetune] must not show after hours of pre-training
    say("== data and pretrain")
    document: dict[str, Any] = {"pretrain": pretrain(loaded, place), "finetune": None}
    if has_task:
        say("== finetune")
        document["finetune"] = run_finetune(loaded, place, None)
    say("== evaluate")
    command = power_command(loaded.recipe, place)

    def kept(kind: str, work: Any) -> dict[str, Any]:
        return metered(kind, place.run, work, place.console, command)

    document["evaluate"] = kept(EVALUATE, lambda: evaluate(place.run, loaded.recipe, place.console))
    say("== export")
    stage = place.run / ("finetune" if has_task else "pretrain")
    out = place.run / "export" / "hf"
    receipt = kept(
        EXPORT, lambda: export_huggingface(stage, out, step=None, dtype=None, console=place.console)
    )
    document["export"] = {"format": "hf", **receipt}
    done = " (done already)" if document["export"]["already_done"] else ""
    say(f"export: {document['export']['out']}{done}")
    say("== report")
    path, record = write_report(place.run)
    say(f"report: {path}")
    return {**document, "report": str(path), "result": result_sentence(record)}


def show(document: dict[str, Any]) -> str:
    from bessemer.cli import evaluate as evaluate_verb
    from bessemer.cli import export as export_verb
    from bessemer.cli.finetune import comparison_lines

    parts = [evaluate_verb.show(document["evaluate"]), export_verb.show(document["export"])]
    comparison = (document["finetune"] or {}).get("comparison")
    if comparison is not None:
        parts.insert(0, "\n".join(["What pre-training buys", *comparison_lines(comparison)]))
    return "\n\n".join([*parts, document["result"], f"report: {document['report']}"])
