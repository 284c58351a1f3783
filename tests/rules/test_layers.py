"""Imports point down only; torch, printing and dangerous calls stay where they belong.

Read with ast, without importing anything. A late import counts like one at the top, but in cli, where
imports inside the verb keep `--help` fast.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "bessemer"

# Floors from the ground up. Rooms of one floor do not import each other, but for the ground floor, whose
# small modules may, and `formulas`, on which its neighbours stand.
FLOORS = [
    ["errors", "units", "log", "durable", "hardware", "processes", "rundir"],
    ["recipe"],
    ["formulas"],
    ["energy", "data", "model"],
    ["planner", "parallel"],
    ["checkpoint", "launch"],
    ["evaluate", "export", "measure"],
    ["train"],
    ["finetune", "check", "dashboard", "report"],
    ["cli"],
    ["__main__"],
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
TORCH_ROOMS = {"model", "parallel", "checkpoint", "evaluate", "export", "measure", "train", "finetune",
               "check"}  # fmt: skip
TORCH_FILES = {"data/loader.py"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "os.system", "os.popen"}
FORBIDDEN_WORDS = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")


def complaints(file: str, source: str) -> list[str]:
    """Everything in a file (its path inside the package) that breaks a rule."""
    tree = ast.parse(source)
    room = file.split("/")[0].removesuffix(".py")
    found = []
    for line, module, late in imports_of(tree):
        if room != "cli" or not late:
            found += [f"{file}:{line}: {text}" for text in import_complaints(file, room, module)]
        if module.split(".")[0] in FORBIDDEN_MODULES:
            found.append(f"{file}:{line}: imports {module}")
    for node in ast.walk(tree):
        found += [f"{file}:{node.lineno}: {text}" for text in call_complaints(room, node)]
    found += [f"{file}: contains {word}" for word in FORBIDDEN_WORDS if word in source]
    return found


def import_complaints(file: str, room: str, module: str) -> Iterator[str]:
    parts = module.split(".")
    if parts[0] == "torch" and room != "cli" and room not in TORCH_ROOMS and file not in TORCH_FILES:
        yield "imports torch"
    if parts[0] == "torch" and room == "cli":
        yield "imports torch before its verb runs"
    if parts[0] != "bessemer" or len(parts) < 2 or room == "__init__":
        return
    other = parts[1]
    if other == "__version__":
        return
    if room not in FLOOR_OF or other not in FLOOR_OF:
        yield f"{room} imports {other}: one of them is on no floor"
    elif other != room and (FLOOR_OF[other] > FLOOR_OF[room] or 0 < FLOOR_OF[other] == FLOOR_OF[room]):
        yield f"{room} imports {other}, which is not below it"


def imports_of(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """(line, module, inside a function) of every import; `from bessemer import x` is bessemer.x."""
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, node in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written in full"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "bessemer" else [module]
            for name in names:
                yield node.lineno, name, node in inside


def call_complaints(room: str, node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    name = ast.unparse(node.func)
    if name == "print" and room != "cli":
        yield "prints: that is the command line's work"
    if name in FORBIDDEN_CALLS:
        yield f"calls {name}"
    for keyword in node.keywords:
        is_off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in ("shell", "allow_pickle") and not is_off:
            yield f"passes {keyword.arg}"


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_file_keeps_to_its_floor_and_calls_nothing_dangerous(file: str) -> None:
    assert complaints(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("recipe/load.py", "from bessemer.planner.plan import Plan"),
        ("planner/resolve.py", "from bessemer.parallel import mesh"),
        ("planner/resolve.py", "def late():\n    from bessemer.train import loop"),
        ("planner/resolve.py", "import torch"),
        ("data/store.py", "from torch import nn"),
        ("cli/plan.py", "import torch"),
        ("formulas/new.py", "from bessemer.model.decoder import Decoder"),
        ("train/loop.py", "print(1)"),
        ("train/loop.py", "import pickle"),
        ("train/loop.py", "import torch\ntorch.load('x')"),
        ("train/loop.py", "eval('1')"),
        ("train/loop.py", "import subprocess\nsubprocess.run('ls', shell=True)"),
        ("data/store.py", "import numpy\nnumpy.load('x', allow_pickle=True)"),
        ("newroom/new.py", "from bessemer.errors import DataError"),
    ],
)
def test_breach_is_noticed(file: str, source: str) -> None:
    assert complaints(file, source)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("model/decoder.py", "from bessemer.formulas.shape import ModelShape\nmodel.eval()"),
        ("rundir.py", "from bessemer.durable import write_json"),
        ("data/loader.py", "import torch"),
        ("cli/plan.py", "def run(args):\n    import torch\n    print(1)"),
        ("data/store.py", "import numpy\nnumpy.load('x', allow_pickle=False)"),
    ],
)
def test_what_is_allowed_is_not_reported(file: str, source: str) -> None:
    assert complaints(file, source) == []
