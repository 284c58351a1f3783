"""The documents say only what the code does: recipes load, commands parse, links lead somewhere.

A command is read where it is shown: in an indented or fenced block, after `$` or not, and between
backticks. A synopsis counts too: brackets and dots are taken away, and RECIPE is as good a name as any.
"""

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bessemer.cli.main import VERBS, main
from bessemer.cli.unbuilt import UNBUILT
from bessemer.data.supported import check_recipe
from bessemer.recipe.keys import all_keys
from bessemer.recipe.load import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
TO_FILL = "@@" + "FILL"
PICTURES = (".png", ".svg", ".jpg")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:tmp|home|root|work|mnt|opt|srv|Users|private|var)/")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

Place = tuple[str, str]  # page, what stands there


def toml_blocks() -> Iterator[Place]:
    for page, text in TEXTS.items():
        for language, body in FENCED.findall(text):
            if language == "toml":
                yield page, body


def commands(text: str) -> Iterator[str]:
    """Every command line that a page shows, without `bessemer` itself."""
    prose = FENCED.sub("", text)
    blocks = [body for language, body in FENCED.findall(text) if language != "toml"]
    lines = [line for body in blocks for line in body.splitlines()]
    lines += [line for line in prose.splitlines() if line.startswith("    ")]
    for line in lines:
        if shown := re.match(r"(?:\$ | {4})?bessemer (\S.*)", line):
            yield re.split(r" {2,}| # ", shown[1])[0]  # what follows two blanks explains it
    for shown_inline in re.findall(r"`bessemer\s([^`]+)`", prose):
        yield " ".join(shown_inline.split())


def words_of(command: str) -> list[str]:
    for synopsis, plain in (("[@STEP]", ""), (" or HF_DIR", ""), ("…", " "), ("[", " "), ("]", " ")):
        command = command.replace(synopsis, plain)
    return ["1" if word == "N" else word for word in shlex.split(command)]


def links(text: str) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text)):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path, pictures: bool) -> list[str]:
    broken = []
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if pictures != file.name.endswith(PICTURES):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


TOML_BLOCKS = list(toml_blocks())
COMMANDS = sorted({(page, line) for page, text in TEXTS.items() for line in commands(text)})


@pytest.mark.parametrize(("page", "block"), TOML_BLOCKS)
def test_recipe_that_is_shown_loads(page: str, block: str) -> None:
    """A block without a name is a part of a recipe: it loads once it has one."""
    whole = "name" in tomllib.loads(block)
    recipe = parse(block if whole else f'name = "part"\n{block}', page, [])
    if whole:
        check_recipe(recipe)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command_that_is_shown_parses(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(command)
    verb = next((word for word in words if not word.startswith("-")), None)
    if verb in UNBUILT:
        return  # refused, which is tested with the command line
    if verb in VERBS:
        module: Any = importlib.import_module(f"bessemer.cli.{verb}")
        if len(words) == 1 and page != "README.md":
            return  # the command is spoken of, not shown
        monkeypatch.setattr(module, "run", lambda args: {})
        monkeypatch.setattr(module, "show", lambda document: "")
        if hasattr(module, "exit_code"):
            monkeypatch.setattr(module, "exit_code", lambda document: 0)
    assert main([word.replace("COMMAND", "plan") for word in words]) == 0, f"{page}: bessemer {command}"


@pytest.mark.parametrize(("page", "command"), [row for row in COMMANDS if "--set" in row[1]])
def test_key_that_a_shown_command_sets_exists(page: str, command: str) -> None:
    words = words_of(command)
    for word in (after for before, after in pairwise(words) if before == "--set"):
        key = re.sub(r"\.\d+(?=\.)", "", word.partition("=")[0])
        assert key == "a.b" or key in all_keys(), f"{page}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=list(TEXTS))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, pictures=False) == []


@pytest.mark.parametrize("page", PAGES, ids=list(TEXTS))
def test_pictures_are_there(page: Path) -> None:
    assert broken_links(page, pictures=True) == []


@pytest.mark.parametrize("page", TEXTS)
def test_no_page_names_a_path_of_one_machine(page: str) -> None:
    assert MACHINE_PATH.findall(TEXTS[page]) == []


def test_every_page_is_in_the_index() -> None:
    indexed = set(links(TEXTS["docs/README.md"]))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - indexed == {"README.md"}


def test_every_command_has_its_place_in_the_documents() -> None:
    shown = {words_of(command)[0] for _, command in COMMANDS}
    assert set(VERBS) <= shown


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]
    told = TEXTS["docs/dependencies.md"]
    assert [name for text in wanted if f"| `{(name := re.split('[<>=]', text)[0])}` |" not in told] == []


def test_the_layer_table_is_that_of_the_import_test() -> None:
    rows = re.findall(r"^\| (\d) \| (.+?) \| [^|]+ \|$", TEXTS["docs/design.md"], re.M)
    parts = {path.name.removesuffix(".py") for path in (ROOT / "bessemer").iterdir()}
    told = [(name, int(row)) for row, text in rows for name in re.findall(r"`(\w+)`", text) if name in parts]
    rules = ast.parse((ROOT / "tests" / "rules" / "test_layers.py").read_text(encoding="utf-8"))
    (floors,) = (node.value for node in rules.body if isinstance(node, ast.Assign) and named(node, "FLOORS"))
    kept = [(name, row) for row, names in enumerate(ast.literal_eval(floors)) for name in names]
    assert sorted(told) == sorted((name, row) for name, row in kept if name in parts - {"__main__"})


def named(node: ast.Assign, name: str) -> bool:
    return [ast.unparse(target) for target in node.targets] == [name]


def test_nothing_is_left_to_fill_in() -> None:
    left = [page for page, text in TEXTS.items() if TO_FILL in text]
    assert left == [], f"replace {TO_FILL} in these pages by what was measured"


# The checks themselves: each must be able to fail.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Say `bessemer plan x` or `bessemer\ndoctor`.", ["plan x", "doctor"]),
        ("    bessemer data report PATH     what it gave\n", ["data report PATH"]),
        ("```\n$ bessemer plan x   # now\nbessemer: no\n```\n", ["plan x"]),
        ('```toml\nname = "bessemer plan"\n```\n', []),
        ("`bessemer.train.build` and `bessemer/cli`", []),
    ],
)
def test_commands_are_found(text: str, found: list[str]) -> None:
    assert list(commands(text)) == found


def test_synopsis_becomes_a_command_line() -> None:
    assert words_of("pretrain RECIPE [--run DIR] [--from RUN[@STEP] or HF_DIR]") == (
        ["pretrain", "RECIPE", "--run", "DIR", "--from", "RUN"]
    )


@pytest.mark.parametrize("text", ["in /tmp/x", "`/home/me`", "(/root/.cache/x)"])
def test_machine_paths_are_found(text: str) -> None:
    assert MACHINE_PATH.search(text.replace("/home/me", "/home/me/"))


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# One two\n[a](b.md) [b](#one-two) [c](#three) [d](https://x.y/z) ![e](p.png)\n")
    assert broken_links(page, pictures=False) == ["b.md", "#three"]
    assert broken_links(page, pictures=True) == ["p.png"]
