"""The command itself: what it reads and prints, and its exit codes. Verbs are tested with their parts."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bessemer import __version__, errors
from bessemer.cli import recipes
from bessemer.cli.main import VERBS, main
from bessemer.cli.unbuilt import UNBUILT
from bessemer.log import Console

ALL = [*VERBS, *UNBUILT]
ROOT = Path(__file__).parents[2]
ERROR = errors.DataError("no text", found="an empty file", wanted="some text", fix="write some")


def process(code: str, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """`code` in a process of its own, called like `bessemer words`, with `main` and a verb at hand."""
    head = "import os, sys\nfrom bessemer.cli.main import main\nfrom bessemer.cli import recipes\n"
    unset = ("BESSEMER_ENVIRONMENT", "GLIBC_TUNABLES", "PYTHONUNBUFFERED")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= options.pop("environment", {})
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-c", head + code, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, timeout=50, check=False, **pipes)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """What `recipes` is called with; it answers {"value": 1}."""
    calls: list[argparse.Namespace] = []
    monkeypatch.setattr(recipes, "run", lambda args: calls.append(args) or {"value": 1})
    monkeypatch.setattr(recipes, "show", lambda document: f"value {document['value']}")
    return calls


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(_: argparse.Namespace) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(recipes, "run", run)


# Help.


def test_help_lists_every_verb_in_order_and_says_which_are_not_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    listed = [line.split()[0] for line in out.splitlines() if line[:2] == "  " and line[2:3].isalpha()]
    assert listed == ALL and err == ""
    marked = [line.split()[0] for line in out.splitlines() if "(not built yet)" in line]
    assert marked == ["dashboard", "launch"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_its_own_and_the_global_options(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == main(["-h", verb]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: bessemer {verb}") and err == ""
    for option in ("--json", "--set a.b=v", "--run DIR", "--store DIR", "--debug"):
        assert option in out
    assert importlib.import_module(f"bessemer.cli.{verb}").HELP[1:20] in out


@pytest.mark.parametrize(
    "words", [["--help"], ["pretrain", "--help"], ["demo", "-h"], ["pretain"], ["energy"]]
)
def test_help_and_usage_errors_do_not_wait_for_torch(words: list[str]) -> None:
    code = "code = main(sys.argv[1:])\nprint(code, sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert process(code, *words).stdout.splitlines()[-1] in ("0 []", "2 []")


def test_only_the_verb_asked_for_is_imported() -> None:
    code = "main(sys.argv[1:])\nprint(*(name for name in sys.modules if name.startswith('bessemer.cli.')))"
    loaded = set(process(code, "plan", "-h").stdout.splitlines()[-1].split())
    others = {f"bessemer.cli.{verb}" for verb in VERBS if verb not in ("plan", "recipes")}
    assert "bessemer.cli.plan" in loaded and not others & loaded  # recipes: imported by `process`


def test_no_command_at_all_is_answered_with_help_and_is_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "commands:" in err


@pytest.mark.parametrize("words", [["--version"], ["plan", "--version"]])
def test_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == f"bessemer {__version__}\n"


def test_python_m_bessemer_is_the_command() -> None:
    command = [sys.executable, "-m", "bessemer", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"bessemer {__version__}\n", "")


# What a verb is given.

GLOBALS = ["--set", "a.b=1", "--json", "--run", "there", "--store=store", "--debug", "--set", "c=x=y"]


@pytest.mark.parametrize(
    "words",
    [
        [*GLOBALS, "recipes", "show", "demo"],
        ["recipes", *GLOBALS, "show", "demo"],
        ["recipes", "show", *GLOBALS, "demo"],
        ["recipes", "show", "demo", *GLOBALS],
        [*GLOBALS[:2], "recipes", *GLOBALS[2:5], "show", *GLOBALS[5:], "demo"],
    ],
)
def test_global_options_mean_the_same_wherever_they_stand(
    words: list[str], seen: list[argparse.Namespace]
) -> None:
    assert main(words) == 0
    args = seen[0]
    assert args.set == ["a.b=1", "c=x=y"] and args.run == Path("there") and args.store == Path("store")
    assert args.json is True and args.debug is True
    assert (args.action, args.name) == ("show", "demo")


def test_defaults_of_the_global_options(seen: list[argparse.Namespace]) -> None:
    assert main(["recipes"]) == 0
    args = seen[0]
    assert (args.set, args.run, args.store, args.json, args.debug) == ([], None, Path("data"), False, False)
    assert isinstance(args.console, Console)


def test_the_value_of_a_global_option_is_not_taken_for_the_verb(seen: list[argparse.Namespace]) -> None:
    assert main(["--run", "plan", "recipes"]) == 0
    assert seen[0].run == Path("plan")


# What it prints.


def test_a_person_gets_text_and_a_program_one_json_document(
    seen: list[argparse.Namespace], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes"]) == 0
    assert capsys.readouterr() == ("value 1\n", "")
    assert main(["recipes", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema": "bessemer.recipes/1", "value": 1} and err == ""


def test_schema_as_json_is_the_schema_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--json"]) == 0
    named = json.loads(capsys.readouterr().out)
    assert main(["schema"]) == 0
    assert named.pop("schema") == "bessemer.schema/1"
    assert named == json.loads(capsys.readouterr().out) and "pretrain" in named["properties"]


def test_a_number_that_json_does_not_know_is_our_mistake_not_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "run", lambda _: {"loss": float("nan")})
    assert main(["recipes", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "internal error: ValueError" in err


# Exit codes and messages.


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["pretain", "x"], ["unknown command 'pretain'", "did you mean `bessemer pretrain`?"]),
        (["energi"], ["did you mean `bessemer energy`?"]),
        (["zzzzzz"], ["unknown command 'zzzzzz'", "see `bessemer --help`"]),
        (["--json"], ["no command given", "found:  bessemer --json"]),
        (["plan"], ["bessemer plan: the following arguments are required: RECIPE"]),
        (["plan", "x", "--tpo", "3"], ["unrecognized arguments: --tpo 3", "see `bessemer plan --help`"]),
        (
            ["plan", "x", "--top", "many"],
            ["--top: invalid int value: 'many'", "found:  bessemer plan x --top"],
        ),
        (["recipes", "--js"], ["unrecognized arguments: --js"]),  # abbreviations would freeze our names
        (["recipes", "--set"], ["--set: expected one argument"]),
        (["recipes", "erase"], ["invalid choice: 'erase'"]),
    ],
)
def test_a_usage_error_says_what_was_found_and_wanted(
    words: list[str], texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
    for text in [*texts, "  wanted: ", "  fix:    "]:
        assert text in err


@pytest.mark.parametrize("verb", UNBUILT)
@pytest.mark.parametrize("rest", [[], ["x", "--on", "slurm", "--dry-run"], ["--help"]])
def test_what_is_not_built_is_refused_with_any_arguments(
    verb: str, rest: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, *rest]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"`bessemer {verb}` is not built yet" in err


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [("RecipeError", 2), ("RefusedError", 3), ("DataError", 65), ("CheckpointError", 65), ("WriteError", 73),
     ("StoppedError", 75), ("NumericsError", 77)],
)  # fmt: skip
def test_each_mistake_has_its_exit_code(
    kind: str, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = getattr(errors, kind)("no text", found="an empty file", wanted="some text", fix="write some")
    fail_with(monkeypatch, error)
    assert main(["recipes"]) == exit_code
    word = "stopped" if kind == "StoppedError" else "error"
    assert capsys.readouterr() == ("", f"{word}: {error}\n")


def test_an_error_is_a_json_document_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, ERROR)
    assert main(["--json", "recipes"]) == 65
    out, err = capsys.readouterr()
    texts = {"problem": "no text", "found": "an empty file", "wanted": "some text", "fix": "write some"}
    assert json.loads(out) == {"schema": "bessemer.error/1", "exit_code": 65, **texts}
    assert err == f"error: {ERROR}\n"
    assert main(["plan", "--tpo", "--json"]) == 2  # also where parsing fails
    assert json.loads(capsys.readouterr().out)["problem"].startswith("bessemer plan: ")


def test_debug_adds_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, ERROR)
    assert main(["recipes", "--debug"]) == 65
    err = capsys.readouterr().err
    assert "Traceback" in err and "raise error" in err and err.endswith(f"\nerror: {ERROR}\n")


def test_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["recipes"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize(
    "error", [KeyError("loss"), AssertionError("3 != 4"), BrokenPipeError("of a worker")]
)
def test_our_own_mistake_is_shown_whole(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, error)
    assert main(["recipes"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" in err and "please report" in err
    assert f"\ninternal error: {type(error).__name__}: {error}\n" in err


# Streams that end early.


def without_reader() -> int:
    """The writing end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("word", ["schema", "--help", "--version"])  # more and less than a buffer
def test_a_reader_that_has_seen_enough_is_no_error(word: str) -> None:
    write = without_reader()
    done = process("raise SystemExit(main())", word, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_work_that_ends_because_nobody_reads_is_not_called_done() -> None:
    write = without_reader()
    code = "recipes.run = lambda args: print('answer', flush=True)\nraise SystemExit(main())"
    done = process(code, "recipes", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("words", "exit_code"), [(["schema"], 73), (["recipes", "show", "x", "--json"], 2)])
def test_an_answer_that_cannot_be_written_is_an_error(words: list[str], exit_code: int) -> None:
    with open("/dev/full", "w") as full:
        done = process("raise SystemExit(main())", *words, stdout=full)
    assert done.returncode == exit_code and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_messages_never_go_to_stdout_even_if_stderr_is_closed() -> None:
    code = "os.close(2)\nsys.stderr = None\nraise SystemExit(main())"
    done = process(code, "zzzzzz")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_terminal_that_cannot_show_a_character_gets_it_escaped() -> None:
    code = "recipes.show = lambda document: '3 – 4'\nraise SystemExit(main())"
    done = process(code, "recipes", environment={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 \\u2013 4\n", "")


# Verbs that compute run in the arranged environment.

TELL = """
recipes.COMPUTES = {computes}
recipes.show = lambda document: os.environ.get("BESSEMER_ENVIRONMENT", "as it was")
raise SystemExit(main({argv}))
"""


@pytest.mark.parametrize(
    ("computes", "argv", "expected"),
    [(True, "", "arranged"), (False, "", "as it was"), (True, '["recipes"]', "as it was")],
)
def test_a_process_that_computes_arranges_its_environment(computes: bool, argv: str, expected: str) -> None:
    """With argv given main was called by a program, whose process is not ours to replace."""
    done = process(TELL.format(computes=computes, argv=argv), "recipes")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")


# Many processes, as torchrun or Slurm start them.


def be_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    for name, value in {**given, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}.items():
        monkeypatch.setenv(name, str(value))


def test_only_training_can_be_the_work_of_many_processes() -> None:
    modules = {verb: importlib.import_module(f"bessemer.cli.{verb}") for verb in VERBS}
    assert [verb for verb in VERBS if getattr(modules[verb], "JOINS", False)] == ["pretrain", "finetune"]


def test_another_verb_is_refused_among_many_processes_and_told_once(
    seen: list[argparse.Namespace], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_rank(monkeypatch, 0, 2)
    assert main(["recipes", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["problem"] == "`bessemer recipes` is the work of one process"
    assert "2 processes that torchrun or Slurm started" in err
    be_rank(monkeypatch, 1, 2)
    with pytest.raises(SystemExit) as ended:
        main(["recipes", "--json"])
    assert ended.value.code == 2 and capsys.readouterr() == ("", "") and not seen
    be_rank(monkeypatch, 0, 1)
    assert main(["recipes"]) == 0 and len(seen) == 1


@pytest.mark.parametrize(
    ("variables", "answers"),
    [
        ({"RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"RANK": "0"}, True),
        ({"RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun under srun: its ranks are what counts
        ({"RANK": "8", "SLURM_PROCID": "0"}, False),
    ],
)
def test_of_many_processes_only_the_first_puts_its_error_on_stdout(
    variables: dict[str, str],
    answers: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["plan", "--tpo", "--json"]) == 2
    out, err = capsys.readouterr()
    assert bool(out) == answers and err.startswith("error: bessemer plan: ")
