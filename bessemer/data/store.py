"""Prepared data: a folder per content hash, built once, shared by all runs.

    data/<hash>/   manifest.json   tokenizer.json   tokenizer_config.json
                   tokens/train-00000.{bin,idx,jsonl}   tokens/validation-00000.{bin,idx,jsonl}

The hash covers every recipe key that decides tokens, the content of every input file and the version of
the format; the context is not part of it, as rows are cut when they are read. The .jsonl has a line a
document: where it came from. A folder appears whole or not at all: a build that was killed is begun
again by the same command, and two processes never build the same one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from bessemer.data import supported
from bessemer.data.build import Work, build
from bessemer.data.folders import building_folder, locked
from bessemer.data.gathered.stdlib import gather
from bessemer.data.ledger import funnel_lines
from bessemer.data.rows import PackedRows, Row, Rows, StreamRows, pad_id_of
from bessemer.data.sources.documents import source_inputs
from bessemer.data.sources.inputs import find_inputs
from bessemer.data.task import WHAT, TaskWork, build_task
from bessemer.data.tokens import tokenizer
from bessemer.data.tokens.shards import Shard
from bessemer.durable import cannot_write, publish_folder, write_json
from bessemer.errors import DataError
from bessemer.log import Console
from bessemer.recipe.keys import leaves
from bessemer.recipe.schema import Recipe
from bessemer.rundir import read_object

__all__ = ["Example", "Prepared", "PreparedTask", "Row", "Rows", "open_prepared", "prepare", "prepare_task"]

FORMAT = 1  # raise it whenever the same recipe and inputs would give other tokens
Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Prepared:
    """Pre-training data. Token counts include begin and end of documents."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def hash(self) -> str:
        return str(self.manifest["hash"])

    @property
    def vocab(self) -> int:
        return int(self.manifest["tokenizer"]["vocab"])

    @property
    def bos_id(self) -> int | None:
        bos_id = self.manifest["tokenizer"]["bos_id"]
        return None if bos_id is None else int(bos_id)

    @property
    def eos_id(self) -> int:
        return int(self.manifest["tokenizer"]["eos_id"])

    @property
    def train_tokens(self) -> int:
        return int(self.manifest["splits"]["train"]["tokens"])

    @property
    def validation_tokens(self) -> int:
        return int(self.manifest["splits"]["validation"]["tokens"])

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out text: what bits per byte divides by."""
        return int(self.manifest["splits"]["validation"]["bytes"])

    def rows(self, split: Split, context: int) -> Rows:
        return StreamRows(_shard(self.folder, split), context, pad_id_of(self.manifest["tokenizer"]))

    def labels(self, split: Split) -> list[dict[str, Any]]:
        """Source, id and group of each document, in the order of the tokens."""
        return [dict(zip(("source", "id", "group"), row, strict=True)) for row in _lines(self.folder, split)]


@dataclass(frozen=True)
class Example:
    id: str
    prompt: str
    answer: str
    prompt_ids: list[int]  # with the begin token; the middle is cut where the context is too short
    answer_ids: list[int]  # with the end token


@dataclass(frozen=True)
class PreparedTask:
    """A fine-tuning task."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def hash(self) -> str:
        return str(self.manifest["hash"])

    def num_examples(self, split: Split) -> int:
        return int(self.manifest["splits"][split]["examples"])

    def rows(self, split: Split, context: int, examples: int | None = None) -> Rows:
        """The first `examples` examples, or all, packed whole."""
        prompt_tokens = [row[4] for row in _lines(self.folder, split)]
        pad_id = pad_id_of(self.manifest["tokenizer"])
        return PackedRows(_shard(self.folder, split), prompt_tokens, context, pad_id, examples)

    def examples(self, split: Split) -> list[Example]:
        shard, found = _shard(self.folder, split), []
        for number, (name, _, prompt, answer, prompt_tokens) in enumerate(_lines(self.folder, split)):
            ids = shard.document(number).tolist()
            found.append(Example(name, prompt, answer, ids[:prompt_tokens], ids[prompt_tokens:]))
        return found

    def labels(self, split: Split) -> list[dict[str, Any]]:
        """Id and group of each example, in their order."""
        return [{"source": WHAT, "id": row[0], "group": row[1]} for row in _lines(self.folder, split)]


def prepare(recipe: Recipe, base: Path, store: Path, console: Console) -> Prepared:
    """The recipe's pre-training data: found in the store, or built there now."""
    supported.check_recipe(recipe)
    path = recipe.tokenizer.path
    ready = None if path is None else tokenizer.load(base / path)
    start = _start(recipe, base, store, console)
    inputs = [source_inputs(source, start) for source in recipe.data.source]
    keys = [key for key in leaves(recipe) if key.path.split(".")[0] in ("tokenizer", "data")]
    about = {key.path: key.value for key in keys if key.affects in ("data", "mixture")}
    content = [[(entry.name, entry.xxh3_128) for entry in files] for files in inputs]
    final = store / _hash("pretrain", about, content, ready.xxh3_128 if ready else None)

    def fill(folder: Path) -> dict[str, Any]:
        return build(Work(recipe, inputs, ready, folder, console))

    _publish(final, "pretrain", fill, console)
    prepared = open_prepared(final)
    assert isinstance(prepared, Prepared), f"{final} is of another kind"
    return prepared


def prepare_task(
    recipe: Recipe,
    base: Path,
    store: Path,
    tokenizer_path: Path,
    console: Console,
    context: int | None = None,
) -> PreparedTask:
    """The recipe's fine-tuning examples for this tokenizer: found in the store, or built there now.

    context: tokens in a row of the model that they are for; None: as the recipe says.
    """
    assert recipe.finetune is not None and recipe.finetune.data is not None, "the caller checks finetune.data"
    data, learnt = recipe.finetune.data, tokenizer.load(tokenizer_path)
    supported.check_task(data)
    if context is None:
        asked = recipe.finetune.context
        context = asked if isinstance(asked, int) else recipe.model.context
    inputs = find_inputs(WHAT, data.path or "", _start(recipe, base, store, console))
    about = {key.path: key.value for key in leaves(recipe) if key.path.startswith("finetune.data.")}
    about |= {"validation": recipe.data.validation, "dedup": recipe.data.clean.dedup, "context": context}
    content = [[(entry.name, entry.xxh3_128) for entry in inputs]]
    final = store / _hash("finetune", about, content, learnt.xxh3_128)

    def fill(folder: Path) -> dict[str, Any]:
        return build_task(TaskWork(recipe, data, inputs, learnt, context, folder, console))

    _publish(final, "finetune", fill, console)
    prepared = open_prepared(final)
    assert isinstance(prepared, PreparedTask), f"{final} is of another kind"
    return prepared


def open_prepared(folder: Path) -> Prepared | PreparedTask:
    """Prepared data of either kind. A file that is not as the manifest says is a DataError."""
    manifest = read_object(folder / "manifest.json")
    if manifest is None or manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder} holds no prepared data",
            found="no manifest.json" if manifest is None else f"format {manifest.get('format')}",
            wanted=f"a folder that `bessemer data build` wrote, of format {FORMAT}",
            fix="run `bessemer data build RECIPE`, which prints the folder",
        )
    for name, file in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != file["bytes"]:
            raise DataError(
                f"prepared data is damaged: {path}",
                found="no such file" if size is None else f"{size} bytes",
                wanted=f"{file['bytes']} bytes",
                fix=f"remove the folder {folder} and run the same command again: it is built anew",
            )
    return (Prepared if manifest["kind"] == "pretrain" else PreparedTask)(folder, manifest)


def _start(recipe: Recipe, base: Path, store: Path, console: Console) -> Path:
    """The folder that source paths start from."""
    return base if recipe.data.gather is None else gather(store / "gathered", console)


def _hash(
    kind: str, about: dict[str, Any], inputs: Sequence[Sequence[tuple[str, str]]], tokenizer_hash: str | None
) -> str:
    rows = [FORMAT, kind, about, inputs, tokenizer_hash]
    return xxhash.xxh3_128_hexdigest(json.dumps(rows, sort_keys=True, allow_nan=False).encode())


def _publish(final: Path, kind: str, fill: Any, console: Console) -> None:
    """Build `final` with `fill`, unless it is there."""
    if (final / "manifest.json").is_file():
        return
    with locked(final, console):
        if (final / "manifest.json").is_file():  # another process has just built it
            return
        folder = building_folder(final)
        try:
            manifest = {"format": FORMAT, "kind": kind, "hash": final.name, **fill(folder)}
            manifest["files"] = _files(folder)
            write_json(folder / "manifest.json", manifest)
        except OSError as error:
            raise cannot_write(final, error) from error
        publish_folder(folder, final)
    for line in funnel_lines(manifest["sources"]):
        console.line(line)


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


def _shard(folder: Path, split: Split) -> Shard:
    return Shard(folder / "tokens" / f"{split}-00000")


def _lines(folder: Path, split: Split) -> list[Any]:
    text = (folder / "tokens" / f"{split}-00000.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
