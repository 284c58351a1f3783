"""`bessemer data build RECIPE`, `data inspect|report|search PATH`: prepared data, made and looked at."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.errors import RecipeError

HELP = "prepare data, show its exact tokens, tell what each source gave, find a passage in it"
_ACTIONS = ("build", "inspect", "report", "search")
# Which options belong to which action; elsewhere they would do nothing.
_OPTIONS = {
    "build": ("engine", "workers", "timeout", "strict", "allow_code", "refresh"),
    "inspect": ("row", "split", "context"),
    "report": ("out",),
    "search": (),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=_ACTIONS)
    parser.add_argument("target", metavar="RECIPE|PATH", help="build: a recipe; else prepared data, or a run")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="search: the passage to look for")
    build = parser.add_argument_group("build")
    build.add_argument(
        "--engine", choices=["local", "ray"], default=None, help="on this machine (default), or RAY_ADDRESS"
    )
    build.add_argument("--workers", type=int, default=None, metavar="N", help="processes (one a core)")
    build.add_argument(
        "--timeout", type=float, default=None, metavar="S", help="seconds a document may take (60)"
    )
    build.add_argument(
        "--strict", action="store_true", default=None, help="exit 65 when a row cannot be read"
    )
    build.add_argument(
        "--allow-code", action="store_true", default=None, help="run data.clean.code of the recipe"
    )
    build.add_argument("--refresh", action="store_true", default=None, help="read databases anew")
    inspect = parser.add_argument_group("inspect")
    inspect.add_argument("--row", type=int, default=None, metavar="N", help="which row (0)")
    inspect.add_argument(
        "--split", choices=["train", "validation"], default=None, help="of which split (train)"
    )
    inspect.add_argument("--context", type=int, default=None, metavar="N", help="tokens in a row")
    report = parser.add_argument_group("report")
    report.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help="where the page goes (beside the data)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    _refuse_what_has_no_effect(args)
    if args.action == "build":
        return _build(args)
    folder = _prepared_folder(Path(args.target))
    if args.action == "inspect":
        from bessemer.data.inspect import inspect_row

        context = args.context or _context_of_run(Path(args.target))
        row = inspect_row(folder, args.split or "train", args.row or 0, context)
        return {"action": "inspect", **row}
    if args.action == "search":
        return {"action": "search", **_search(args, folder)}
    return {"action": "report", **_report(args, folder)}


def show(document: dict[str, Any]) -> str:
    if document["action"] == "inspect":
        from bessemer.cli.data_row import shown_row

        return shown_row(document)
    if document["action"] == "search":
        return _shown_finds(document)
    from bessemer.data.ledger import funnel_lines

    parts = [document, *([document["finetune"]] if document.get("finetune") else [])]
    return "\n\n".join("\n".join([*funnel_lines(part["sources"]), *_splits(part)]) for part in parts)


def _build(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.data.factory.how import How
    from bessemer.data.preparing import check_no_errors
    from bessemer.data.store import prepare, prepare_task
    from bessemer.energy.metering.beside import around_data
    from bessemer.recipe.load import load

    given = {name: getattr(args, name) for name in _OPTIONS["build"] if getattr(args, name) is not None}
    if "timeout" in given:
        given["timeout_s"] = given.pop("timeout")
    loaded = load(args.target, args.set)
    if not loaded.recipe.data.source and loaded.recipe.finetune is not None and loaded.recipe.finetune.data:
        from bessemer.cli.data_task import build_task

        return {"action": "build", **_told(build_task(args, loaded, given)), "finetune": None}
    around = around_data(args.console, elsewhere=args.engine == "ray")
    prepared = prepare(loaded.recipe, loaded.base, args.store, args.console, How(**given), around=around)
    document = {"action": "build", **_told(prepared), "finetune": None}
    if loaded.recipe.finetune is not None and loaded.recipe.finetune.data is not None:
        task = prepare_task(
            loaded.recipe,
            loaded.base,
            args.store,
            prepared.tokenizer_path,
            args.console,
            refresh=bool(args.refresh),
            around=around_data(args.console),
        )
        if args.strict:
            check_no_errors(task)
        document["finetune"] = _told(task)
    return document


def _context_of_run(path: Path) -> int | None:
    """Tokens in a row that a run trains on; None: it is no run."""
    from bessemer.rundir import find_stage, read_object

    if (path / "manifest.json").is_file():
        return None
    return (read_object(find_stage(path) / "stage.json") or {}).get("context")


def _report(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures, and a page of them beside the data or where --out says."""
    from bessemer.data.prepared import open_prepared
    from bessemer.durable import write_text
    from bessemer.recipe.load import load
    from bessemer.report.data_figures import data_document
    from bessemer.report.data_page import data_page
    from bessemer.rundir import find_stage

    prepared = open_prepared(folder)
    recipe = None
    if not (Path(args.target) / "manifest.json").is_file():
        recipe = load(str(find_stage(Path(args.target)).parent / "recipe.toml"), []).recipe
    data = None if recipe is None else recipe.data
    page = args.out or folder / "report.html"
    document = data_document(prepared, data)
    write_text(page, data_page(prepared, document))
    return {**_told(prepared), **document, "page": str(page)}


def _search(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from bessemer.data.prepared import Prepared, open_prepared
    from bessemer.data.search import search, training_of
    from bessemer.rundir import find_stage, read_object

    prepared = open_prepared(folder)
    if not isinstance(prepared, Prepared):
        raise RecipeError(
            "only pre-training data can be searched",
            found=f"{folder}: examples of a task",
            wanted="prepared data of a recipe, or a run whose newest stage is pre-training",
            fix="name the stage: RUN/pretrain",
        )
    is_run = not (Path(args.target) / "manifest.json").is_file()
    stage = read_object(find_stage(Path(args.target)) / "stage.json") if is_run else None
    return {"folder": str(folder), **search(prepared, args.text, training_of(stage) if stage else None)}


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
    if tokens and document["kind"] == "pretrain":  # examples have tokens of templates and tools too
        lines.append(
            f"tokenizer: {document['tokenizer']['vocab']:,} tokens, {size / tokens:.2f} bytes a token"
        )
    return [*lines, document["manifest"], *([document["page"]] if "page" in document else [])]


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


def _shown_finds(document: dict[str, Any]) -> str:
    found = document["found"]
    if not found:
        return f"{document['text']!r} is nowhere in {document['folder']}"
    lines = []
    for row in found:
        read = row["steps"]
        steps = "" if read is None else f", steps {', '.join(map(str, read))}" if read else ", in no step"
        place = f"({row['shard']}, document {row['document']})"
        lines.append(f"{row['split']}  {row['source']}: {row['id']}  {place}{steps}")
    more = [] if document["complete"] else [f"… and more: the first {len(found)} are shown"]
    return "\n".join([*lines, *more])


def _refuse_what_has_no_effect(args: argparse.Namespace) -> None:
    for action, names in _OPTIONS.items():
        for name in names:
            if getattr(args, name) is not None and action != args.action:
                option = "--" + name.replace("_", "-")
                raise RecipeError(
                    f"{option} has no effect on `data {args.action}`",
                    found=option,
                    wanted=f"it with `data {action}` only",
                    fix=f"remove {option}",
                )
    if (args.text is None) == (args.action == "search"):
        raise RecipeError(
            "`data search` needs a passage" if args.text is None else f"`data {args.action}` takes no TEXT",
            found="none" if args.text is None else repr(args.text),
            wanted="`bessemer data search PATH TEXT`",
            fix="put the passage in quotes behind the path" if args.text is None else "remove it",
        )
    for name, least, unit in (("context", 2, "tokens"), ("workers", 1, "process"), ("timeout", 0.1, "s")):
        value = getattr(args, name)
        if value is not None and value < least:
            raise RecipeError(
                f"--{name} is too small",
                found=str(value),
                wanted=f"{least} {unit} or more",
                fix=f"leave --{name} out for the usual one",
            )
