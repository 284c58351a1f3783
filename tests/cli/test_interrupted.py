"""Ctrl-C at any moment of a command's life: no traceback, and the exit code that shells expect."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).parent / "bessemer"
HEAD = "import atexit, os, runpy, signal, sys\nwhen, how = sys.argv.pop(1), sys.argv.pop(1)\n"
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)\n"
# A real signal to the process, when it begins to import a module. What Python has imported of its own accord
# is forgotten, so that it is imported again.
AT_IMPORT = f"""
class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == when:
            sys.meta_path.remove(self)
            {INTERRUPT}
sys.modules.pop(when, None)
sys.meta_path.insert(0, Sender())
"""
AT_EXIT = f"atexit.register(lambda: {INTERRUPT.strip()})\n"
RUN = (
    'runpy.run_path(how, run_name="__main__") if "/" in how else runpy.run_module(how, run_name="__main__")\n'
)


def interrupted(before: str, when: str, how: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """`bessemer words`, as a script or as a module, interrupted as the code says."""
    command = [sys.executable, "-c", HEAD + before + RUN, when, how, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("module", "how"),
    [
        ("argparse", str(SCRIPT)),
        ("bessemer.errors", str(SCRIPT)),
        ("bessemer.log", "bessemer"),
        ("bessemer.cli.main", "bessemer"),
        ("bessemer.cli.plan", "bessemer"),
        ("pydantic", "bessemer"),
        ("bessemer.planner.resolve", str(SCRIPT)),
    ],
)
def test_interrupt_while_modules_are_imported_ends_quietly(module: str, how: str) -> None:
    done = interrupted(AT_IMPORT, module, how, "plan", "llama-1b", "--cluster", "8xH100")
    assert done.returncode == 130, done.stderr
    assert done.stdout == "" and done.stderr in ("", "interrupted\n")


def test_interrupt_that_a_library_takes_for_a_failed_import_is_told_as_one() -> None:
    swallowed = AT_IMPORT.replace(INTERRUPT.strip(), "self.failed()").replace(
        "    def find_spec", "    def failed(self):\n        try:\n            " + INTERRUPT.strip()
        + "\n        except KeyboardInterrupt:\n            raise ImportError('no datetime') from None\n"
        + "    def find_spec",
    )  # fmt: skip
    done = interrupted(swallowed, "bessemer.planner.resolve", "bessemer", "plan", "llama-1b")
    assert done.returncode == 130 and done.stderr == "interrupted\n"


def test_interrupt_while_python_ends_leaves_the_answer_and_no_traceback() -> None:
    done = interrupted(AT_EXIT, "-", str(SCRIPT), "recipes")
    assert done.returncode == -signal.SIGINT and done.stderr == ""
    assert "llama-1b" in done.stdout


def test_interrupt_that_the_caller_has_ignored_is_ignored_to_the_end() -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = interrupted(ignored + AT_EXIT, "-", str(SCRIPT), "recipes")
    assert done.returncode == 0 and done.stderr == ""
    assert "llama-1b" in done.stdout
