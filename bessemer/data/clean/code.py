"""A cleaning step of the user's own: one function, named in the recipe as "module:function".

It gets a RecordBatch of the columns id, text and source, without nulls, and returns one of the same rows in
the same order and the same columns. It may change `text`, or set it null: that document is refused by the
rule `code`. An exception is an error of the row that caused it (the batch is tried again row by row, to find
it); a result that is not of this shape is a mistake of the function and stops the build.
The module is a file in the recipe's folder, or else an installed one. The hash is that of the module's file
alone, so its neighbours in the folder cannot be imported: a change in them would go unseen.
It runs with the rights of whoever builds: only with --allow-code. Cost: the function's; the checks look at
columns.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bessemer.errors import DataError, RecipeError

ERROR = "code"
_COLUMNS = ["id", "text", "source"]
_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
_LONGEST_PROBLEM = 300


@dataclass(frozen=True)
class Plugin:
    name: str  # module:function
    function: Callable[[Any], Any]
    hash: str  # of the module's file

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """(text, error, problem) of each row of (id, text, source). Rows whose text is null are passed by.

        text null and no error: refused. error: "code" where the function failed, and problem what it said.
        """
        given = batch.select(_COLUMNS)
        usable = pc.is_valid(given["text"])
        rows = given.filter(usable)
        texts, problems = self._apply(rows) if rows.num_rows else (rows["text"], pa.array([], pa.string()))
        absent = pa.nulls(batch.num_rows, pa.string())
        text = pc.replace_with_mask(given["text"], usable, texts)
        problem = pc.replace_with_mask(absent, usable, problems)
        error = pc.if_else(pc.is_valid(problem), ERROR, pa.scalar(None, pa.string()))
        return pa.record_batch([text, error, problem], names=["text", "error", "problem"])

    def _apply(self, rows: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
        """(texts, what went wrong) of rows that all have a text."""
        try:
            result = self.function(rows)
        except (Exception, SystemExit) as error:
            if rows.num_rows == 1:
                problem = f"{type(error).__name__}: {error}"[:_LONGEST_PROBLEM]
                return pa.nulls(1, rows["text"].type), pa.array([_encodable(problem)])
        else:
            return self._texts(result, rows), pa.nulls(rows.num_rows, pa.string())
        singles = [self._apply(rows.slice(row, 1)) for row in range(rows.num_rows)]
        return tuple(pa.concat_arrays(column) for column in zip(*singles, strict=True))  # type: ignore[return-value]

    def _texts(self, result: Any, rows: pa.RecordBatch) -> pa.Array:
        if not isinstance(result, pa.RecordBatch):
            raise self._wrong(type(result).__name__)
        if sorted(result.schema.names) != sorted(_COLUMNS):
            raise self._wrong(f"columns {', '.join(result.schema.names) or 'none'}")
        if result.num_rows != rows.num_rows:
            raise self._wrong(f"{result.num_rows} rows for {rows.num_rows}")
        texts = result["text"]
        if texts.type not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
            raise self._wrong(f"text of type {texts.type}")
        if any(result[name].to_pylist() != rows[name].to_pylist() for name in ("id", "source")):
            raise self._wrong("other ids or sources, or another order")
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raise self._wrong(f"text that is not valid: {error}") from error
        return texts.cast(rows["text"].type)

    def _wrong(self, found: str) -> DataError:
        return DataError(
            f"{self.name} returned what cannot be used",
            found=found,
            wanted="a pyarrow.RecordBatch of the same rows, with the columns id, text and source",
            fix="mend the function; to refuse a document set its text null instead of leaving it out",
        )


def load_plugin(name: str, base: Path, *, allowed: bool) -> Plugin:
    """`base`: the recipe's folder. Runs nothing of it unless `allowed`."""
    function, digest = load_function("data.clean.code", name, base, allowed=allowed)
    return Plugin(name, function, digest)


def load_function(setting: str, name: str, base: Path, *, allowed: bool) -> tuple[Callable[..., Any], str]:
    """The function that a recipe's `setting` names, and the hash of its module's file."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise _unusable(setting, name, "no such form", 'write it as "module:function"')
    if not allowed:
        raise RecipeError(
            f"{setting} would run code of your own: {name}",
            found="no --allow-code",
            wanted="your word that this code may run with your rights",
            fix="read it, then add --allow-code to the command",
        )
    try:
        file, module = _load(match[1], base)
    except (Exception, SystemExit) as error:
        own = _own_file(match[1], base)
        problem = f"{type(error).__name__}: {error}"
        fix = f"put the module into {own}, or mend it"
        raise _unusable(setting, name, f"{problem}, on importing it", fix) from error
    if not file.is_file():
        fix = "put the function into a file beside the recipe"
        raise _unusable(setting, name, "a module that is no file", fix)
    function = getattr(module, match[2], None)
    if not callable(function):
        raise _unusable(setting, name, f"{file} without a function {match[2]}", f"mend {setting} or the file")
    return function, xxhash.xxh3_128_hexdigest(file.read_bytes())


def _own_file(module_name: str, base: Path) -> Path:
    return base.joinpath(*module_name.split(".")).with_suffix(".py")


def _load(module_name: str, base: Path) -> tuple[Path, ModuleType]:
    own = _own_file(module_name, base)
    module = _run_file(own) if own.is_file() else importlib.import_module(module_name)
    return Path(getattr(module, "__file__", None) or ""), module


class _FromSource(SourceFileLoader):
    """Never from bytecode: that of another version counts as this one's where both were written within a
    second and are as long, and then what runs is not what the hash is of."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _run_file(file: Path) -> ModuleType:
    """Under a name of its content: another version is another module, and none hides an installed one."""
    name = f"bessemer_plugin_{xxhash.xxh3_64_hexdigest(file.read_bytes() + str(file).encode())}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file, loader=_FromSource(name, str(file)))
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _encodable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode()


def _unusable(setting: str, name: str, found: str, fix: str) -> RecipeError:
    return RecipeError(
        f"{setting}: cannot use {name!r}",
        found=found,
        wanted="module:function, of a file in the recipe's folder or of an installed package",
        fix=fix,
    )
