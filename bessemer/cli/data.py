"""`bessemer data build RECIPE`, `data inspect PATH`, `data report PATH`: prepared data, made and shown."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.errors import RecipeError

HELP = "prepare data, show its exact tokens, tell what each source gave"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["build", "inspect", "report"])
    parser.add_argument("target", metavar="RECIPE|PATH", help="build: a recipe; else prepared data, or a run")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="build: where")
    parser.add_argument("--row", type=int, default=None, metavar="N", help="inspect: which row (0)")
    parser.add_argument("--split", choices=["train", "validation"], default=None, help="inspect (train)")
    parser.add_argument("--context", type=int, default=None, metavar="N", help="inspect: tokens in a row")


def run(args: argparse.Namespace) -> dict[str, Any]:
    _refuse_what_has_no_effect(args)
    if args.action == "build":
        return _build(args)
    folder = _prepared_folder(Path(args.target))
    if args.action == "inspect":
        from bessemer.data.inspect import inspect_row

        return {
            "action": "inspect",
            **inspect_row(folder, args.split or "train", args.row or 0, args.context),
        }
    from bessemer.data.store import open_prepared

    return {"action": "report", **_told(open_prepared(folder))}


def show(document: dict[str, Any]) -> str:
    if document["action"] == "inspect":
        return _shown_row(document)
    from bessemer.data.ledger import funnel_lines

    parts = [document, *([document["finetune"]] if document.get("finetune") else [])]
    return "\n\n".join("\n".join([*funnel_lines(part["sources"]), *_splits(part)]) for part in parts)


def _build(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.data.store import prepare, prepare_task
    from bessemer.recipe.load import load

    loaded = load(args.target, args.set)
    prepared = prepare(loaded.recipe, loaded.base, args.store, args.console)
    document = {"action": "build", **_told(prepared), "finetune": None}
    if loaded.recipe.finetune is not None and loaded.recipe.finetune.data is not None:
        task = prepare_task(loaded.recipe, loaded.base, args.store, prepared.tokenizer_path, args.console)
        document["finetune"] = _told(task)
    return document


def _told(prepared: Any) -> dict[str, Any]:
    manifest = prepared.manifest
    return {
        "manifest": str(prepared.folder / "manifest.json"),
        "kind": manifest["kind"],
        "hash": manifest["hash"],
        "tokenizer": manifest["tokenizer"],
        "splits": manifest["splits"],
        "sources": manifest["sources"],
    }


def _splits(document: dict[str, Any]) -> list[str]:
    lines = []
    for name, split in document["splits"].items():
        things = [f"{count:,} {key.replace('_', ' ')}" for key, count in split.items()]
        lines.append(f"{name}: {', '.join(things)}")
    tokens = sum(split["tokens"] for split in document["splits"].values())
    size = sum(split["bytes"] for split in document["splits"].values())
    if tokens:
        lines.append(
            f"tokenizer: {document['tokenizer']['vocab']:,} tokens, {size / tokens:.2f} bytes a token"
        )
    return [*lines, document["manifest"]]


def _shown_row(document: dict[str, Any]) -> str:
    """Tokens one after another, those that no loss is on in ‹brackets›; a line before each document."""
    tokens = document["tokens"]
    lines = [
        f"{document['split']} row {document['row']} of {document['num_rows']:,}: "
        f"{document['context']} tokens, {document['targets']} targets, {document['padding']} padding. "
        "[learnt], ‹not learnt›"
    ]
    for part in document["documents"]:
        group = f", group {part['group']}" if part["group"] is not None else ""
        lines.append(
            f"--- {part['source']}: {part['id']}{group} (tokens {part['begin']} to {part['end'] - 1})"
        )
        lines.append("".join(_bracketed(token) for token in tokens[part["begin"] : part["end"]]))
    return "\n".join(lines)


def _bracketed(token: dict[str, Any]) -> str:
    text = repr(token["text"])[1:-1]
    return f"[{text}]" if token["loss"] else f"‹{text}›"


def _prepared_folder(path: Path) -> Path:
    """PATH: prepared data itself, or a run or stage, which names it."""
    from bessemer.rundir import find_stage, read_object

    if (path / "manifest.json").is_file() or not path.is_dir():
        return path
    inside = sorted(entry.parent for entry in path.glob("*/manifest.json"))
    if inside:
        raise RecipeError(
            f"{path} holds several sets of prepared data",
            found=", ".join(entry.name for entry in inside),
            wanted="one of them",
            fix=f"name it, e.g. {inside[0]}",
        )
    stage = find_stage(path)
    data = (read_object(stage / "stage.json") or {}).get("data") or {}
    return Path(data.get("folder", stage))


def _refuse_what_has_no_effect(args: argparse.Namespace) -> None:
    if args.engine != "local":
        raise RecipeError(
            "--engine ray is not built yet in this version",
            found="--engine ray",
            wanted="--engine local",
            fix="leave --engine out: data is prepared on this machine",
        )
    given = [name for name in ("row", "split", "context") if getattr(args, name) is not None]
    if given and args.action != "inspect":
        raise RecipeError(
            f"--{given[0]} has no effect on `data {args.action}`",
            found=f"--{given[0]}",
            wanted="it with `data inspect` only",
            fix=f"remove --{given[0]}",
        )
    if args.context is not None and args.context < 2:
        raise RecipeError(
            "--context is too short", found=str(args.context), wanted="2 or more", fix="--context 512"
        )
