"""`bessemer plan` as the command line runs it, without a process of its own."""

import argparse
import json
from typing import Any

from bessemer.cli import plan as plan_command


def run_plan(*words: str, settings: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    parser = argparse.ArgumentParser()
    plan_command.arguments(parser)
    args = parser.parse_args(list(words))
    args.set = list(settings)
    document = plan_command.run(args)
    json.dumps(document, allow_nan=False)
    return document, plan_command.show(document)
