"""`bessemer evaluate RUN`: measure what was held out."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.cli.columns import figure, text_table

HELP = "measure the pretrain and finetune stages of a run on held-out data"
COMPUTES = True

_MEASURES = (
    *("validation_loss", "replayed_loss", "perplexity", "bits_per_byte"),
    *("task_loss", "exact_match", "rouge_l", "reward"),
    *("pair_loss", "pair_accuracy", "mean_margin"),
    *("text_loss", "accuracy", "macro_f1", "calibration_error"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="RUN", help="a run directory, or one of its stages: the run is measured"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.energy.metering.beside import EVALUATE
    from bessemer.evaluate.run import evaluate
    from bessemer.recipe.load import load
    from bessemer.rundir import find_stage
    from bessemer.train.beside import metered

    folder = find_stage(args.target).parent
    recipe = load(str(folder / "recipe.toml"), args.set).recipe
    return metered(EVALUATE, folder, lambda: evaluate(folder, recipe, args.console), args.console)


def show(document: dict[str, Any]) -> str:
    stages = document["stages"].values()
    measures = [key for key in _MEASURES if any(key in result for result in stages)]
    rows = [
        [name, str(result["step"]), *(figure(result[key]) if key in result else "–" for key in measures)]
        for name, result in document["stages"].items()
    ]
    done = " (done already)" if document["already_done"] else ""
    lines = text_table(["stage", "step", *(key.replace("_", " ") for key in measures)], rows)
    found = [*lines, *_labels(document), *_samples(document), f"{document['results']}{done}"]
    return "\n".join(found)


def _labels(document: dict[str, Any]) -> list[str]:
    """Of classifiers, label by label."""
    keys = ("precision", "recall", "f1")
    rows = [
        [name, label, *(figure(scores[key]) for key in keys), str(scores["examples"])]
        for name, result in document["stages"].items()
        for label, scores in result.get("by_label", {}).items()
    ]
    return ["", *text_table(["stage", "label", *keys, "examples"], rows)] if rows else []


def _samples(document: dict[str, Any]) -> list[str]:
    lines = [""]
    for name, result in document["stages"].items():
        for sample in result.get("samples", []):
            lines.append(f"{name}, prompt:  {_short(sample['prompt'])}")
            lines.append(f"{' ' * len(name)}  answer:  {_short(sample['answer'])}")
            lines.append(f"{' ' * len(name)}  wanted:  {_short(sample['expected'])}")
            lines.append("")
    return lines


def _short(text: str, most: int = 150) -> str:
    """One line of it: a terminal is no place for a whole document."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
