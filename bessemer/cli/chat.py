"""`bessemer chat RUN`: the model goes on with a text; with --prompt once, else line by line.

Only generated text goes to stdout, so that a pipe gets the answer and nothing else. A call of a tool is
printed as the model writes it: whoever gave the tools reads it and runs them.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELP = "let the model of a run go on with a text"
COMPUTES = True

_QUIT = "/quit"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="RUN", help="a run (its newest stage) or one of its stages"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help="answer this and end; left out: read lines from stdin"
    )
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="default: 0, the likeliest"
    )
    parser.add_argument(
        "--tools", type=Path, metavar="FILE", help="a JSON list of functions that the model may call"
    )
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of step N; left out: the newest")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.evaluate.answers import Completer
    from bessemer.rundir import find_stage

    _check(args)
    tools = () if args.tools is None else _tools(args.tools)
    stage = find_stage(args.target)
    completer = Completer.load(stage, args.step, args.console)
    if tools and completer.chat is None:
        raise _no_template(stage)
    described = {"run": str(stage.parent), "stage": stage.name, "step": completer.step}

    said: list[dict[str, Any]] = []

    def answer(prompt: str, turn: int = 0) -> str:
        told = completer.complete(
            prompt,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            seed=turn,
            said=said,
            tools=tools,
        )
        if completer.chat is not None and told.strip():
            said.extend([{"role": "user", "content": prompt}, {"role": "assistant", "content": told}])
        return told

    if args.prompt is not None:
        return {**described, "prompt": args.prompt, "text": answer(args.prompt), "turns": 1}
    return {**described, "prompt": None, "text": None, "turns": _loop(answer, str(stage), args.json)}


def show(document: dict[str, Any]) -> str:
    """The loop has printed its answers already."""
    return document["text"] or ""


def _loop(answer: Callable[[str, int], str], stage: str, answers_to_stderr: bool) -> int:
    """Lines from stdin until its end or /quit; returns how many were answered."""
    terminal = sys.stdin.isatty()
    if terminal:
        sys.stderr.write(f"{stage}: write a line and press enter; {_QUIT} or Ctrl-D ends\n")
    turns = 0
    while True:
        if terminal:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip() == _QUIT:
            return turns
        if line.strip():
            # With --json stdout is one document, so the conversation goes to stderr.
            print(
                answer(line.rstrip("\n"), turns),
                file=sys.stderr if answers_to_stderr else sys.stdout,
                flush=True,
            )
            turns += 1


def _tools(path: Path) -> tuple[dict[str, Any], ...]:
    from bessemer.data.task.messages import tools_of
    from bessemer.data.task.unusable import Unusable
    from bessemer.errors import DataError

    try:
        tools = tools_of(path.read_text(encoding="utf-8"))
        why = "none in it"
    except (OSError, UnicodeDecodeError) as error:
        tools, why = (), str(error)
    except Unusable as error:
        tools, why = (), error.told
    if not tools:
        raise DataError(
            f"--tools {path} gives no tools",
            found=why,
            wanted="a JSON list of functions, as `transformers` takes them",
            fix='write [{"type": "function", "function": {"name": …, "parameters": …}}, …]',
        )
    return tools


def _no_template(stage: Path) -> Exception:
    from bessemer.errors import RecipeError

    return RecipeError(
        f"{stage} has no chat template, which could write tools",
        found="--tools beside a model that goes on with plain text",
        wanted="a model that was tuned on chats",
        fix="remove --tools, or write them into the prompt as the model has learnt them",
    )


def _check(args: argparse.Namespace) -> None:
    from bessemer.errors import RecipeError

    checks = [
        (
            args.prompt is None or args.prompt.strip(),
            "--prompt",
            repr(args.prompt),
            "some text to go on with",
        ),
        (args.max_tokens > 0, "--max-tokens", args.max_tokens, "a positive number"),
        (args.temperature >= 0, "--temperature", args.temperature, "0 (the likeliest token) or more"),
    ]
    for fine, name, found, wanted in checks:
        if not fine:
            raise RecipeError(
                f"{name} cannot be used", found=f"{name} {found}", wanted=wanted, fix=f"change {name}"
            )
