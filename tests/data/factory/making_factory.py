"""Sources in several parts, and builds of them, by the command itself or in this process."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from making_processes import ran_here

from bessemer.data.prepared import Prepared, open_prepared

SENTENCES = [
    "The converter was tilted and the blast turned on before the iron ran in.",
    "A charge of ten tons took about twenty minutes from pig iron to steel.",
    "Rails of it outlasted iron ones many times, which paid for the licence.",
    "The lining had to suit the ore, as phosphorus made the metal brittle.",
    "Manganese and carbon were given back at the end in known amounts.",
]
RULES = '[data.clean]\nrules = "gopher"\ndedup = "minhash"\npii = "redact"\n'


def recipe(folder: Path, *sources: str, more: str = RULES) -> Path:
    """recipe.toml over folders of texts: small files, so that each source is one part."""
    blocks = ""
    for number, name in enumerate(sources):
        blocks += f'[[data.source]]\nname = "{name}"\nkind = "jsonl"\npath = "{name}/*.jsonl"\n'
        if not (folder / name).exists():
            _write(folder / name, seed=number)
    path = folder / "recipe.toml"
    path.write_text(f'name = "made"\n[tokenizer]\nvocab = 400\n[data]\nvalidation = 0.1\n{blocks}{more}')
    return path


def _write(folder: Path, seed: int, files: int = 3) -> None:
    """Compressed files of JSON lines, an empty text at the end of each."""
    chance = random.Random(seed)
    folder.mkdir()
    for number in range(files):
        rows = []
        for row in range(60):
            words = " ".join(chance.choice(SENTENCES) for _ in range(8)).split()
            chance.shuffle(words)
            rows.append(
                {"text": f"{folder.name} {number} {row}. " + " ".join(words) + ". " + SENTENCES[row % 5]}
            )
        rows.append({"text": ""})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{number}.jsonl").write_bytes(gzip.compress(text.encode(), mtime=0))


def command(path: Path, store: Path, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "bessemer",
        "data",
        "build",
        str(path),
        "--store",
        str(store),
        "--json",
        *words,
    ]


def build(path: Path, store: Path, *words: str, environment: Mapping[str, str] = {}) -> Prepared:
    """What the command builds, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        code, out, err = ran_here(Path.cwd(), *command(path, store, *words)[3:])
    assert code == 0, err
    return _built(out)


def build_apart(path: Path, store: Path, *words: str, environment: Mapping[str, str] = {}) -> Prepared:
    """By a process of its own, which starts its own workers."""
    done = subprocess.run(
        command(path, store, *words),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return _built(done.stdout)


def _built(answer: str) -> Prepared:
    prepared = open_prepared(Path(json.loads(answer)["manifest"]).parent)
    assert isinstance(prepared, Prepared)
    return prepared


def content(prepared: Prepared) -> dict[str, Any]:
    """All that is promised to be the same: everything but how long it took."""
    return {name: value for name, value in prepared.manifest.items() if name != "timings_s"}
