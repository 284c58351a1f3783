"""`bessemer demo`: the whole path on data that every machine has, without a network."""

import argparse
from typing import Any

HELP = "the whole path on this machine's own Python library: about seven minutes, no network"
COMPUTES = True


def arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own: --set changes the shipped recipe `demo`."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.cli.run import run_all

    return run_all("demo", args)


def show(document: dict[str, Any]) -> str:
    from bessemer.cli.run import show as show_run
    from bessemer.units import format_seconds

    run = document["run"]
    return "\n".join(
        [
            show_run(document),
            f"That took {format_seconds(document['seconds'])}.",
            "",
            "Next: open the report in a browser; talk to the model with "
            f"`bessemer chat {run} --prompt 'def parse(text):'`; "
            "train on your own text with `bessemer recipes copy gpt1-117m .`.",
        ]
    )
