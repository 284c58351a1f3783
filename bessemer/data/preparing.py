"""Prepared data: a folder per content hash, built once, shared by all runs (prepared.py says what is in it).

    data/<hash>/        as prepared.py opens it         data/stages/     what a build goes on from
    data/gathered/      what `data.gather` rendered     data/snapshots/  of databases (snapshots.py)

The hash covers every recipe key that decides tokens, the content of every input and the version of the
format; neither the context nor the mixture is part of it, as rows are cut and mixed when they are read.
A folder appears whole or not at all: a build that was killed goes on from data/stages with the same
command, and two processes never build the same one. data/stages may be removed at any time: only the next
build of the same sources takes longer.
A database server is read once: what it held then is what its name in the recipe means, until `refresh`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xxhash

from bessemer.data import supported
from bessemer.data.build import Work, build
from bessemer.data.factory.how import How
from bessemer.data.folders import Around, building_folder, locked
from bessemer.data.format import FORMAT
from bessemer.data.gathered.stdlib import gather
from bessemer.data.ledger import funnel_lines
from bessemer.data.listing import Place, listing_key, remember
from bessemer.data.prepared import Prepared, PreparedTask, open_prepared
from bessemer.data.snapshots import meant_inputs
from bessemer.data.sources.documents import source_inputs
from bessemer.data.sources.inputs import find_inputs
from bessemer.data.task.build import TaskWork, build_task
from bessemer.data.task.inputs import task_inputs
from bessemer.data.task.reading import Reading
from bessemer.data.task.templates import Template, find_template, own_template, shipped
from bessemer.data.tokens import tokenizer
from bessemer.data.tokens.added import with_tokens
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.durable import cannot_write, publish_folder, write_json
from bessemer.errors import DataError
from bessemer.log import Console
from bessemer.recipe.keys import leaves
from bessemer.recipe.schema import FinetuneData, Recipe

_FIRST_KEYS = ("kind", "path", "url_env", "table", "query", "prompt", "answer", "messages", "id", "group")
_TASK_RULES = 3  # raise it whenever the same chats, pairs or texts learnt whole would give other examples


def prepare(recipe: Recipe, base: Path, store: Path, console: Console, how: How, around: Around) -> Prepared:
    """The recipe's pre-training data: found in the store, or built there now."""
    supported.check_recipe(recipe)
    path = recipe.tokenizer.path
    ready = None if path is None else tokenizer.load(base / path)
    start = _start(recipe, base, store, console)
    seen = listing_key(recipe, Place(base, start))  # before anything is read: what changes later is another
    listed = [source_inputs(source, start) for source in recipe.data.source]
    inputs = meant_inputs(recipe.data.source, listed, store, refresh=how.refresh)
    more = [find_inputs(key, name, base) for key, name in supported.other_files(recipe, base)]
    keys = [key for key in leaves(recipe) if key.path.split(".")[0] in ("tokenizer", "data")]
    about = {key.path: key.value for key in keys if key.affects == "data"}
    content = [[(entry.name, entry.xxh3_128) for entry in files] for files in [*inputs, *more]]
    final = store / _hash("pretrain", about, content, ready)

    def fill(folder: Path) -> dict[str, Any]:
        supported.check_code(recipe, allowed=how.allow_code)
        return build(Work(recipe, base, inputs, ready, store, folder, how, console))

    _publish(final, "pretrain", fill, console, around)
    remember(store, seen, final)
    prepared = open_prepared(final)
    assert isinstance(prepared, Prepared), f"{final} is of another kind"
    if how.strict:
        check_no_errors(prepared)
    return prepared


def check_no_errors(prepared: Prepared | PreparedTask) -> None:
    """Raises DataError, with the first few rows, where a row could not be read."""
    reasons = {reason for source in prepared.manifest["sources"] for reason in source["errors"]}
    num_errors = sum(sum(source["errors"].values()) for source in prepared.manifest["sources"])
    if num_errors:
        if isinstance(prepared, PreparedTask):
            lost = [row for row in prepared.manifest["lost"] if row["reason"] in reasons]
            lines = [f"{row['place']}: {row['reason']} {row['told']}".rstrip() for row in lost]
        else:
            rows = [row for row in prepared.samples() if row["is_error"]]
            lines = [f"{row['source']}: {row['id']}: {row['fate']}" for row in rows]
        told = "".join(f"\n          {line}" for line in lines[:5])
        raise DataError(
            f"{num_errors:,} rows could not be read, and --strict allows none",
            found=f"for example{told}",
            wanted="rows that are all readable",
            fix=f"mend them, or leave --strict out: they are left out and counted ({prepared.folder})",
        )


def prepare_task(
    recipe: Recipe,
    base: Path,
    store: Path,
    tokenizer_path: Path,
    console: Console,
    context: int | None,
    *,
    refresh: bool = False,
    around: Around,
) -> PreparedTask:
    """The recipe's fine-tuning examples for this tokenizer: found in the store, or built there now.

    context: tokens in a row of the model that they are for; None: as the recipe says.
    """
    assert recipe.finetune is not None and recipe.finetune.data is not None, "the caller checks finetune.data"
    section, data = recipe.finetune, recipe.finetune.data
    learnt = with_tokens(tokenizer.load(tokenizer_path), section.add_tokens, console.line)
    supported.check_task(data, section.method)
    if context is None:
        context = section.context if isinstance(section.context, int) else recipe.model.context
    listed = task_inputs(data, _start(recipe, base, store, console))
    (inputs,) = meant_inputs([data], [listed], store, refresh=refresh)
    reading = Reading.of(data, section.method, inputs)
    template = _template(data, reading, tokenizer_path, base)
    about = _about_task(recipe, reading, template) | {"context": context}
    own = None if reading.is_templated else own_template(tokenizer_path)
    if own is not None:  # it is written beside the tokenizer, whatever the examples are
        about["own_template"] = Template("of the tokenizer", own).xxh3_128
    content = [[(entry.name, entry.xxh3_128) for entry in inputs]]
    final = store / _hash("finetune", about, content, learnt)

    def fill(folder: Path) -> dict[str, Any]:
        return build_task(
            TaskWork(
                recipe, data, inputs, reading, template, learnt, tokenizer_path, context, folder, console
            )
        )

    _publish(final, "finetune", fill, console, around)
    prepared = open_prepared(final)
    assert isinstance(prepared, PreparedTask), f"{final} is of another kind"
    return prepared


def _template(data: FinetuneData, reading: Reading, tokenizer_path: Path, base: Path) -> Template:
    if not reading.is_templated:
        return shipped("plain")  # of no use: there are no chats
    return find_template(data.template, tokenizer_path, base, tools=data.tools is not None)


def _about_task(recipe: Recipe, reading: Reading, template: Template) -> dict[str, Any]:
    """The keys that decide the examples. Later ones count only where they are not as they were before
    they came, so that data prepared then is found again."""
    leaf = {key.path: key.value for key in leaves(recipe) if key.path.startswith("finetune.data.")}
    defaults = FinetuneData().model_dump(mode="json")
    about = {
        path: value
        for path, value in leaf.items()
        if (name := path.removeprefix("finetune.data.")) in _FIRST_KEYS or value != defaults.get(name)
    }
    about |= {"validation": recipe.data.validation, "dedup": recipe.data.clean.dedup}
    if reading.task_format != "prompt" or reading.columns["answer"] != reading.data.answer:
        about |= {"format": reading.task_format, "columns": reading.columns}
    if reading.is_templated:
        about["template"] = template.xxh3_128
    if reading.is_templated or reading.task_format == "preference" or reading.data.learn == "all":
        about["rules"] = _TASK_RULES
    return about


def _start(recipe: Recipe, base: Path, store: Path, console: Console) -> Path:
    """The folder that source paths start from."""
    return base if recipe.data.gather is None else gather(store / "gathered", console)


def _hash(
    kind: str,
    about: dict[str, Any],
    inputs: Sequence[Sequence[tuple[str, str]]],
    learnt: TextTokenizer | None,
) -> str:
    """Of a ready tokenizer also which tokens begin and end documents: a file beside it may say so."""
    rows = [FORMAT, kind, about, inputs, learnt.description() if learnt else None]
    return xxhash.xxh3_128_hexdigest(json.dumps(rows, sort_keys=True, allow_nan=False).encode())


def _publish(
    final: Path, kind: str, fill: Callable[[Path], dict[str, Any]], console: Console, around: Around
) -> None:
    """Build `final` with `fill`, unless it is there."""
    if (final / "manifest.json").is_file():
        return
    with locked(final, console):
        if (final / "manifest.json").is_file():  # another process has just built it
            return
        manifest = _built(final, kind, fill, around)
    for line in funnel_lines(manifest["sources"]):
        console.line(line)


def _built(final: Path, kind: str, fill: Callable[[Path], dict[str, Any]], around: Around) -> dict[str, Any]:
    with around(final):
        folder = building_folder(final)
        try:
            manifest = {"format": FORMAT, "kind": kind, "hash": final.name, **fill(folder)}
            manifest["files"] = _files(folder)
            write_json(folder / "manifest.json", manifest)
        except OSError as error:
            raise cannot_write(final, error) from error
        publish_folder(folder, final)
    return manifest


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest = xxhash.xxh3_128()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "xxh3_128": digest.hexdigest(),
        }
    return files
