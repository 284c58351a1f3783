"""`bessemer`: find the verb, parse, run it, print. The one place of exit codes and of --json.

A verb is a module of this folder with HELP, arguments, run and show; one that trains or runs a model
says COMPUTES = True; one that can be the work of many processes, which torchrun or Slurm have started, says
JOINS = True; and one whose answer may be bad news has exit_code(document). Only the verb asked for is
imported, and no verb imports torch before it runs, so that help answers at once (100 ms; torch alone takes
seconds). Data goes to stdout, all else to stderr; of many processes only the first one answers.

Global options stand before or after the verb: one parser reads both, with the verb taken out.
"""

try:
    import argparse
    import importlib
    import json
    import shlex
    import shutil
    import signal
    import sys
    import textwrap
    import traceback
    from collections.abc import Sequence
    from contextlib import suppress
    from pathlib import Path
    from types import ModuleType
    from typing import Any, NoReturn

    from bessemer import __version__
    from bessemer.cli.alone import check_alone, is_first
    from bessemer.cli.streams import answer, complain, discard_stdout, make_usable, reader_has_left
    from bessemer.cli.unbuilt import UNBUILT, refusal
    from bessemer.errors import RecipeError, StoppedError, UserError, WriteError
    from bessemer.log import Console
except KeyboardInterrupt:  # before `main` can meet it
    raise SystemExit(130) from None

VERBS = ("demo", "run", "doctor", "recipes", "schema", "plan", "data", "pretrain", "finetune", "evaluate",
         "compare", "export", "chat", "report", "check", "energy")  # fmt: skip

_WITH_VALUE = ("--set", "--run", "--store")  # global options whose next word is not the verb
_ABOUT = "Bessemer trains large AI models end to end, and says beforehand what that will take."
_EXAMPLE = """example: bessemer plan llama-1b --cluster 8xH100 --set pretrain.tokens=20B
`bessemer COMMAND --help` explains a command."""
_INTERNAL, _INTERRUPTED, _READER_LEFT = 1, 130, 141  # the latter two: 128 + signal


def main(argv: list[str] | None = None) -> int:
    """The exit code. argv None: called as a process, which may arrange its environment."""
    words = sys.argv[1:] if argv is None else argv
    interrupts: list[int] = []
    try:
        if argv is None:
            _note_interrupts(interrupts)
            make_usable()
        return _command(words, as_process=argv is None)
    except UserError as error:
        return _user_error(error, words)
    except KeyboardInterrupt:
        complain("interrupted")
        return _INTERRUPTED
    except BrokenPipeError as error:  # of a verb that prints as it goes, or of a worker's pipe
        return _cut_short() if reader_has_left() else _internal_error(error)
    except Exception as error:
        # What numpy makes of an interrupt that comes while it begins is a failed import.
        if interrupts and isinstance(error, ImportError):
            complain("interrupted")
            return _INTERRUPTED
        return _internal_error(error)
    finally:
        # The work is done: Python's own end would show an interrupt as a traceback.
        if argv is None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _note_interrupts(seen: list[int]) -> None:
    """Python's own answer to Ctrl-C, and a note that it came."""

    def noted(number: int, frame: Any) -> NoReturn:
        seen.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored, as after `&`
        signal.signal(signal.SIGINT, noted)


class _Parser(argparse.ArgumentParser):
    """Raises on usage errors; overriding `error` is how argparse wants that said."""

    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        raise RecipeError(
            f"{self.prog}: {message}",
            found=shlex.join([*self.prog.split(), *self.given]),
            wanted=" ".join(self.format_usage().removeprefix("usage:").split()),
            fix=f"see `{self.prog} --help`",
        )


def _command(words: Sequence[str], *, as_process: bool) -> int:
    verb, others = _split(words)
    if verb in UNBUILT:
        raise refusal(verb)
    if _asks(words, "--version"):
        answer(f"bessemer {__version__}")
        return 0
    if verb is None:
        return _without_verb(words)
    return _verb(verb, others, as_process=as_process)


def _verb(verb: str, words: Sequence[str], *, as_process: bool) -> int:
    if verb not in VERBS:
        raise _unknown(verb)
    module = importlib.import_module(f"bessemer.cli.{verb}")
    parser = _parser(verb, module)
    if _asks(words, "-h", "--help"):
        answer(parser.format_help().rstrip())
        return 0
    parser.given = words
    # Intermixed: else `recipes show --json NAME` ends the positional arguments at the option.
    args = parser.parse_intermixed_args(words)
    if not getattr(module, "JOINS", False):
        check_alone(verb)
    if as_process and getattr(module, "COMPUTES", False):
        from bessemer.launch.environment import arrange

        arrange()
    args.console = Console()
    document = module.run(args)
    if document is None:  # one of many processes, of which the first answers
        return 0
    answer(_printed(verb, module, document, as_json=args.json))
    return module.exit_code(document) if hasattr(module, "exit_code") else 0


def _printed(verb: str, module: ModuleType, document: dict[str, Any], *, as_json: bool) -> str:
    if not as_json:
        return str(module.show(document))
    assert "schema" not in document, f"{verb}: the document has a key `schema`, which is ours"
    return json.dumps({"schema": f"bessemer.{verb}/1", **document}, allow_nan=False)


def _split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The verb, the first word that is neither an option nor a global option's value; and all others."""
    is_value = False
    for place, word in enumerate(words):
        if not is_value and not word.startswith("-"):
            return word, [*words[:place], *words[place + 1 :]]
        is_value = not is_value and word in _WITH_VALUE
    return None, list(words)


def _without_verb(words: Sequence[str]) -> int:
    if not words:
        complain(_top_help())
        return RecipeError.exit_code
    if not _asks(words, "-h", "--help"):
        raise RecipeError(
            "no command given",
            found=shlex.join(["bessemer", *words]),
            wanted=f"a command: {', '.join(VERBS)}",
            fix="see `bessemer --help`",
        )
    answer(_top_help())
    return 0


def _top_help() -> str:
    helps = {verb: importlib.import_module(f"bessemer.cli.{verb}").HELP for verb in VERBS}
    helps |= {verb: f"(not built yet) {purpose}" for verb, (purpose, _) in UNBUILT.items()}
    width = min(100, shutil.get_terminal_size().columns)
    table = [
        textwrap.fill(text, width, initial_indent=f"  {verb:<10} ", subsequent_indent=" " * 13)
        for verb, text in helps.items()
    ]
    parser = _Parser(
        prog="bessemer",
        usage="bessemer COMMAND [arguments] [global options]",
        description="\n".join([_ABOUT, "", "commands:", *table]),
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    _global_options(parser)
    return parser.format_help().rstrip()


def _parser(verb: str, module: ModuleType) -> _Parser:
    about = f"{module.HELP[0].upper()}{module.HELP[1:]}."
    parser = _Parser(prog=f"bessemer {verb}", description=about, add_help=False, allow_abbrev=False)
    module.arguments(parser)
    own_usage = parser.format_usage().removeprefix("usage:").strip().replace("%", "%%")
    parser.usage = f"{own_usage} [global options]"
    _global_options(parser)
    return parser


def _global_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("global options, before or after the command")
    group.add_argument("--json", action="store_true", help="one JSON document on stdout, of an error too")
    group.add_argument(
        "--set", action="append", default=[], metavar="a.b=v", help="set a key of the recipe; repeatable"
    )
    group.add_argument("--run", type=Path, metavar="DIR", help="run directory; default: runs/<recipe name>")
    group.add_argument(
        "--store", type=Path, default=Path("data"), metavar="DIR", help="prepared data; default: data"
    )
    group.add_argument("--debug", action="store_true", help="show the traceback of an error, too")
    # Listed here, answered before argparse reads a word: they must not depend on the rest being right.
    group.add_argument("-h", "--help", action="store_true", help="show this text")
    group.add_argument("--version", action="store_true", help="show the version")


def _asks(words: Sequence[str], *options: str) -> bool:
    """Whether an option stands there; known even where parsing fails."""
    before_end = words[: words.index("--")] if "--" in words else words
    return any(option in before_end for option in options)


def _unknown(verb: str) -> RecipeError:
    import difflib

    near = difflib.get_close_matches(verb, [*VERBS, *UNBUILT], n=1, cutoff=0.5)
    return RecipeError(
        f"unknown command {verb!r}",
        found=verb,
        wanted=", ".join(VERBS),
        fix=f"did you mean `bessemer {near[0]}`?" if near else "see `bessemer --help`",
    )


def _cut_short() -> int:
    """What a shell reports of a tool that its reader leaves; not 0, as the verb has not done its work."""
    discard_stdout()
    return _READER_LEFT


def _user_error(error: UserError, words: Sequence[str]) -> int:
    if _asks(words, "--debug"):
        complain("".join(traceback.format_exception(error)).rstrip())
    complain(f"{'stopped' if isinstance(error, StoppedError) else 'error'}: {error}")
    if _asks(words, "--json") and is_first():
        texts = {key: getattr(error, key) for key in ("problem", "found", "wanted", "fix")}
        with suppress(WriteError):  # it is told already, on stderr
            answer(json.dumps({"schema": "bessemer.error/1", "exit_code": error.exit_code, **texts}))
    return error.exit_code


def _internal_error(error: Exception) -> int:
    complain("".join(traceback.format_exception(error)).rstrip())
    complain(
        f"internal error: {type(error).__name__}: {error}\n"
        f"This is a mistake in Bessemer {__version__}, not yours: please report it with the text above."
    )
    return _INTERNAL
