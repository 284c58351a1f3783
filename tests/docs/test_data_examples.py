"""What docs/data.md, cleaning.md and mixing.md show of a build is what the commands say.

A block of a page is read as a session: a line after `$` is a command, the lines behind it are its output;
`…` stands for any lines, or for none. `<hash>` is the folder that the build printed.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from making_processes import ran_here

from bessemer.recipe.schema import SourceKind

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
HASH = re.compile(r"\b[0-9a-f]{32}\b")
TRAINED = ("bessemer pretrain", "runs/every-kind")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [body for name, body in FENCED.findall(text) if name == language]


def sessions(page: str, *, trained: bool = False) -> list[tuple[str, list[str]]]:
    """(command, lines shown) in the order of the page. Those of a database server are not run here."""
    found: list[tuple[str, list[str]]] = []
    for block in (block for block in blocks(page, "") if block.startswith("$ ")):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    needs_run = [any(name in command for name in TRAINED) for command, _ in found]
    chosen = [one for one, needs in zip(found, needs_run, strict=True) if needs is trained]
    return [one for one in chosen if "posts.toml" not in one[0]]


SHOWN = [
    (page, command, lines)
    for page in ("data.md", "cleaning.md", "mixing.md")
    for command, lines in sessions(page)
    if lines
]


def run(command: str, folder: Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `bessemer` or `python` in that folder."""
    program, *words = shlex.split(command)
    if program == "python":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr
    return ran_here(folder, *words)


def is_said(shown: list[str], said: list[str]) -> bool:
    pattern = "".join(r"(?:.*\n)*?" if line == "…" else re.escape(line) + r"\n" for line in shown)
    return re.fullmatch(pattern, "".join(line + "\n" for line in said)) is not None


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(a folder with the examples and their data, the hash of that data)."""
    folder = tmp_path_factory.mktemp("every_kind")
    for name in ("every_kind.py", "every_kind.toml", "own_cleaning.py", "order.py"):
        shutil.copy(EXAMPLES / name, folder)
    assert run("python every_kind.py .", folder)[0] == 0
    code, out, err = run("bessemer data build every_kind.toml", folder)
    found = HASH.search(out)
    assert code == 0 and found is not None, err
    return folder, found[0]


@pytest.mark.parametrize(
    ("page", "command", "shown"),
    SHOWN,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_output_that_is_shown_is_what_is_said(
    built: tuple[Path, str], page: str, command: str, shown: list[str]
) -> None:
    folder, known = built
    code, out, err = run(command.replace("<hash>", known), folder)
    said = HASH.sub("<hash>", err if code else out).splitlines()
    assert is_said(shown, said), "\n".join(said)
    assert (code != 0) == shown[0].startswith("error")


def test_recipe_that_is_shown_is_the_one_that_is_run() -> None:
    shown = [tomllib.loads(block) for block in blocks("data.md", "toml")]
    assert (EXAMPLES / "every_kind.toml").read_text(encoding="utf-8") in blocks("data.md", "toml")
    assert [recipe["name"] for recipe in shown if "name" in recipe] == ["every-kind", "series"]


def test_function_that_is_shown_is_the_one_that_is_run() -> None:
    (shown,) = blocks("cleaning.md", "python")
    assert shown in (EXAMPLES / "own_cleaning.py").read_text(encoding="utf-8")


def test_every_kind_is_in_the_example_or_the_one_of_ready_tokens() -> None:
    shown = {
        source["kind"]
        for block in blocks("data.md", "toml")
        for source in tomllib.loads(block).get("data", {}).get("source", [])
    }
    assert shown == set(get_args(SourceKind))


def test_series_of_numbers_that_are_no_text_become_shards(tmp_path: Path) -> None:
    (recipe,) = [block for block in blocks("data.md", "toml") if 'name = "series"' in block]
    (tmp_path / "series.toml").write_text(recipe, encoding="utf-8")
    values = {f"sensor-{n}": [n * k % 1000 for k in range(200)] for n in range(1, 120)} | {"beyond": [1000]}
    rows = [json.dumps({"id": name, "tokens": tokens}) for name, tokens in values.items()]
    (tmp_path / "series.jsonl").write_text("\n".join(rows), encoding="utf-8")
    code, out, err = run("bessemer data build series.toml", tmp_path)
    assert code == 0, err
    assert out.splitlines()[1].split() == [
        "sensors",
        "tokens",
        "120",
        "119",
        "0.1",
        "119",
        "24.0K",
        "1",
        "not_tokens",
    ]


def test_order_of_samples_is_asked_without_those_before(built: tuple[Path, str]) -> None:
    folder, known = built
    first = run(f"python order.py every_kind.toml data/{known} 0 40", folder)[1].splitlines()
    for place in (7, 40):
        alone = run(f"python order.py every_kind.toml data/{known} {place}", folder)[1].splitlines()
        assert alone == [first[place]]


@pytest.mark.slow
def test_run_whose_mixture_changes_goes_on_and_knows_where_a_passage_was_read(
    built: tuple[Path, str],
) -> None:
    """The sessions that need a run, as a reader goes: trained, asked, trained on with other weights."""
    folder, known = built
    (asked,) = [one for one in sessions("data.md", trained=True) if "search" in one[0]]
    first, second = [one for one in sessions("mixing.md", trained=True) if "pretrain" in one[0]]
    assert run(first[0], folder)[0] == 0
    out = run(asked[0], folder)[1]
    assert is_said(asked[1], out.replace(str(folder / "data" / known), "…").splitlines())
    code, _, err = run(second[0], folder)
    lines = [line for line in second[1] if line != "…"]
    assert code == 0 and all(line in err.splitlines() for line in lines), err


# The check itself: it must be able to fail.


@pytest.mark.parametrize("shown", ["a b c", "a … c", "a b c …", "… c", "a … b c"])
def test_lines_that_are_said_are_found(shown: str) -> None:
    assert is_said(shown.split(), ["a", "b", "c"])


@pytest.mark.parametrize("shown", ["a b", "b c", "a c", "c … a", "a … x …"])
def test_lines_that_are_not_said_are_missed(shown: str) -> None:
    assert not is_said(shown.split(), ["a", "b", "c"])
