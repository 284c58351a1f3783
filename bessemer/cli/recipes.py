"""`bessemer recipes`: the shipped recipes; show one, or copy one to begin from."""

import argparse
from pathlib import Path
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.errors import RecipeError
from bessemer.units import format_count

HELP = "list the shipped recipes, show one, or copy one to edit"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["list", "show", "copy"], default="list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a shipped recipe")
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="where copy writes NAME.toml")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.recipe.load import shipped_text

    wanted = {"list": 0, "show": 1, "copy": 2}[args.action]
    given = [word for word in (args.name, args.folder) if word is not None]
    if len(given) != wanted:
        raise RecipeError(
            f"recipes {args.action}: wrong number of arguments",
            found=" ".join(map(str, given)) or "none",
            wanted=["none", "NAME", "NAME and DIR"][wanted],
            fix=f"write `bessemer recipes {args.action}{['', ' NAME', ' NAME .'][wanted]}`",
        )
    if args.action == "list":
        return {"recipes": _all()}
    text = shipped_text(args.name)
    if args.action == "show":
        return {"name": args.name, "text": text}
    return {"name": args.name, "copied": str(_copy(args.name, text, args.folder))}


def show(document: dict[str, Any]) -> str:
    if "text" in document:
        return str(document["text"]).rstrip()
    if "copied" in document and Path(document["copied"]).with_suffix(".jsonl").is_file():
        rows = Path(document["copied"]).with_suffix(".jsonl").name
        return f"{document['copied']}, and {rows}: put rows of your own there, then `bessemer finetune`"
    if "copied" in document:
        return f"{document['copied']}: edit [[data.source]], then `bessemer plan {document['copied']}`"
    rows = document["recipes"]
    figures = [[row["name"], format_count(row["params"]), format_count(row["params_active"])] for row in rows]
    table = text_table(["recipe", "parameters", "active"], figures)
    texts = ["", *(row["about"] for row in rows)]
    return "\n".join(f"{line}  {about}".rstrip() for line, about in zip(table, texts, strict=True))


def _all() -> list[dict[str, Any]]:
    from bessemer.formulas.parameters import active_params, total_params
    from bessemer.planner.machine.facts import Facts
    from bessemer.planner.shape import resolve_shape
    from bessemer.recipe.load import parse, shipped_names, shipped_text

    rows = []
    for name in shipped_names():
        text = shipped_text(name)
        shape, _ = resolve_shape(parse(text, f"shipped recipe {name}", []), Facts(device="any", kind="cpu"))
        rows.append(
            {
                "name": name,
                "params": total_params(shape),
                "params_active": active_params(shape),
                "layers": shape.layers,
                "hidden": shape.hidden,
                "context": shape.context,
                "about": _about(text),
            }
        )
    return rows


def _about(text: str) -> str:
    """The first sentence of the comment that the recipe begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).split(". ")[0].rstrip(".").split(": ")[0]


def _copy(name: str, text: str, folder: Path) -> Path:
    """The recipe, and the rows of its example where it has any."""
    from bessemer.durable import write_text
    from bessemer.recipe.load import shipped_rows

    files = {folder / f"{name}.toml": text}
    rows = shipped_rows(name)
    if rows is not None:
        files[folder / f"{name}.jsonl"] = rows
    for path in files:
        if path.exists():
            raise RecipeError(
                f"{path} is there already",
                found=f"a file of {path.stat().st_size} bytes",
                wanted="a name that is free, so that no edit is lost",
                fix="copy into another folder, or move that file away",
            )
    for path, content in files.items():
        write_text(path, content)
    return folder / f"{name}.toml"
