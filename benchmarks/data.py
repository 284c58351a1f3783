"""The data factory against datatrove, and its own bounds: time, memory, duplicates, tokens, loader.

    python benchmarks/data.py [--json FILE] [--keep FOLDER] [--scale 1.0]

One run on real text of this machine (data_corpus.py). All rates are per CPU-second, of all processes, start
included for ours, imports left out for the peer; MB are those that a stage or a path was given to read.
The peer gets every EACH-th document of the same corpus: all would take ten minutes.
The whole path is run in three rounds, ours and the peer's in turns; the middle ratio counts.
Cost: about 7 minutes; the first time one more to install the peer.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from data_corpus import gather, multiply, sample
from data_outcome import table
from data_watch import Watched, watch
from environments import HERE, python_of

from bessemer.hardware import machine

EACH, TIMES, ROWS, SAMPLES = 25, 4, 24_000_000, 1_000_000_000
ROUNDS = 3
_SOURCES = """
[[data.source]]
name = "man"
kind = "jsonl"
path = "{corpus}/man.jsonl"
id = "id"

[[data.source]]
name = "html"
kind = "html"
path = "{corpus}/html/*.html"

[[data.source]]
name = "code"
kind = "code"
path = "{corpus}/code/*.py"
"""
_COPIES = """
[[data.source]]
name = "copies"
kind = "jsonl"
path = "{corpus}/copies.jsonl"
id = "id"
"""
_CLEAN = """
[data.clean]
dedup = "minhash"
text = "normal"
pii = "redact"
decontaminate = ["{corpus}/evaluation.jsonl"]
"""
_RULES = """language = ["en"]
rules = ["gopher", "c4", "fineweb"]
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    folder = args.keep or Path(tempfile.mkdtemp(prefix="data-"))
    try:
        found = _measure(folder, args.scale)
    finally:
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    found = {
        "benchmark": "data",
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": asdict(machine()),
        "versions": {
            name: metadata.version(name) for name in ("pyarrow", "duckdb", "fastokens", "tokenizers")
        },
        **found,
    }
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave it")
    parser.add_argument("--scale", type=float, default=1.0, help="of the corpus; below 1 figures say little")
    return parser.parse_args(argv)


def _measure(folder: Path, scale: float) -> dict[str, Any]:
    _say("gathering text")
    corpus = gather(folder / "corpus", scale)
    found: dict[str, Any] = {"corpus": corpus}
    # Everything is kept: gives the tokenizer for all others, and near-duplicates that no rule hides.
    found["kept"], kept = _build(folder, "kept", "corpus", "vocab = 32768", "")
    tokenizer = f'path = "{kept.relative_to(folder)}/tokenizer.json"'
    found["whole"], _ = _build(folder, "whole", "corpus", tokenizer, _RULES)
    found["rounds"] = _rounds(folder, tokenizer, kept)
    found["duplicates"] = _part(folder, "data_duplicates.py", "kept.toml", "store-kept")[0]
    for name, given in {
        "tokenize": ["corpus", str(kept / "tokenizer.json")],
        "minhash": ["corpus", "."],
        "loader": [str(kept)],
        "order": [str(SAMPLES)],
        "exact": [".", str(int(ROWS * scale))],
    }.items():
        found[name], watched = _part(folder, "data_parts.py", name, *given)
        found[name]["peak_bytes"] = watched.peak_bytes
    _say(f"{TIMES} times the text")
    multiply(folder / "corpus", folder / "corpus4", TIMES)
    found["large"], _ = _build(folder, "large", "corpus4", tokenizer, "")
    return found


def _rounds(folder: Path, tokenizer: str, kept: Path) -> list[dict[str, Any]]:
    """The whole path, ours and the peer's in turns: a machine is not as fast at one time as at another.

    Ours with one process, as the peer: two on two halves of one core would each look slower.
    """
    sizes = sample(folder / "corpus", folder / "sample", EACH)
    rounds = []
    for number in range(ROUNDS):
        ours, _ = _build(folder, f"alone{number}", "corpus", tokenizer, _RULES, "--workers", "1")
        peer = _peer(folder, kept / "tokenizer.json", f"peer{number}")
        rounds.append({"alone": ours, "peer": {**peer, "bytes": sizes}})
    return rounds


def _build(
    folder: Path, name: str, corpus: str, tokenizer: str, rules: str, *more: str
) -> tuple[dict[str, Any], Path]:
    """`bessemer data build` into a store of its own. Gives what it took, and the folder of the data."""
    recipe = folder / f"{name}.toml"
    held = "[data]\nvalidation = 0.0\n" if not rules else "[data]\nvalidation = 0.01\n"
    # Copies are there to be found, which the peer is not asked for.
    text = (_SOURCES + ("" if rules else _COPIES) + _CLEAN).format(corpus=corpus) + rules
    head = f'name = "{name}"\n[tokenizer]\n{tokenizer}\n{held}'
    recipe.write_text(head + text, encoding="utf-8")
    _say(f"building {name}")
    command = [sys.executable, "-m", "bessemer", "data", "build", recipe.name, "--store", f"store-{name}"]
    command += more
    watched = watch(command, folder, folder / f"{name}.log")
    path = next((folder / f"store-{name}").glob("*/manifest.json"))
    manifest = json.loads(path.read_text(encoding="utf-8"))
    sources = manifest["sources"]
    told = {
        "mb_read": sum(source["bytes_in"] for source in sources) / 1e6,
        "mb_kept": sum(source["kept_bytes"] for source in sources) / 1e6,
        "rows": sum(source["rows_in"] for source in sources),
        "tokens": sum(split["tokens"] for split in manifest["splits"].values()),
        "sources": {source["name"]: {"kept": source["kept"], **source["refused"]} for source in sources},
        "timings_s": manifest["timings_s"],
    }
    return {**_taken(watched), **told}, path.parent


def _taken(watched: Watched) -> dict[str, Any]:
    return {"cpu_s": watched.cpu_s, "wall_s": watched.wall_s, "peak_bytes": watched.peak_bytes}


def _part(folder: Path, script: str, *given: str) -> tuple[dict[str, Any], Watched]:
    _say(f"{script} {given[0]}")
    watched = watch([sys.executable, str(HERE / script), *given], folder, folder / f"{given[0]}.part.log")
    return json.loads(watched.output), watched


def _peer(folder: Path, tokenizer: Path, name: str) -> dict[str, Any]:
    python = python_of("data")
    _say(f"datatrove, on a sample, {name}")
    command = [str(python), str(HERE / "data_peer.py"), "sample", str(tokenizer), name]
    watched = watch(command, folder, folder / f"{name}.log")
    return {**json.loads(watched.output), **_taken(watched)}


def _say(text: str) -> None:
    print(f"data: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
