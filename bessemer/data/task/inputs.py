"""Where a task's rows are, and whether they have the columns that the recipe names.

A column that no row has is told before anything is counted, with those that there are. Rows of a table have
all columns of the first; a row of JSON may lack some, so that fields which the first one lacks are looked for
until they are found.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from bessemer.data.sources.huggingface import find_dataset
from bessemer.data.sources.inputs import find_inputs, near, place_of
from bessemer.data.sources.json_array import holds_array
from bessemer.data.sources.parts import Input, Wanted
from bessemer.data.sources.records import columns_of, format_of, read_records
from bessemer.data.sources.values import MISSING
from bessemer.data.task import WHAT
from bessemer.errors import DataError
from bessemer.recipe.schema import FinetuneData

_SHOWN = 20


def wanted_of(data: FinetuneData, columns: Sequence[str]) -> Wanted:
    named = (data.prompt, data.answer, data.messages, data.instruction, data.input, data.output)
    others = (data.chosen, data.rejected, data.text, data.label, data.id, data.group, data.format)
    optional = tuple(name for name in (data.tools, data.system_column) if name is not None)
    return Wanted(
        WHAT,
        data.kind,
        columns,
        data.table,
        data.query,
        url_env=data.url_env,
        asked=(*named, *others, *optional),
        any_type=True,
    )


def task_inputs(data: FinetuneData, base: Path) -> list[Input]:
    """The files, or the database, of a task's examples."""
    wanted = wanted_of(data, ())
    if data.kind == "sql":
        from bessemer.data.sources.sql import database_inputs

        return database_inputs(wanted, data.path, base)
    if data.kind == "huggingface":
        return find_dataset(wanted.what, data.path or "", base)
    return find_inputs(wanted.what, data.path or "", base)


def first_columns(data: FinetuneData, inputs: Sequence[Input]) -> list[str] | None:
    """The columns of the first file, or the fields of its first row. None: they cannot be told."""
    if not inputs:
        return None
    wanted = wanted_of(data, ())
    there = columns_of(wanted, inputs[0])
    if there is None and format_of(data.kind, inputs[0]) == "jsonl" and holds_array(wanted, inputs[0]):
        raise DataError(
            f"{WHAT}: {place_of(inputs[0])} holds no JSON lines",
            found="one array, which begins with `[{`",
            wanted="an object in each line",
            fix=f'set {WHAT}.kind = "json", which reads the array',
        )
    return there


def check_columns(
    data: FinetuneData, columns: Mapping[str, str], inputs: Sequence[Input], there: Sequence[str]
) -> None:
    """DataError where a column is not there. columns: that must be, by key; there: those of the first row."""
    known = {name.lower() for name in there} if data.kind == "sql" else {*there}
    missing = {
        key: name
        for key, name in columns.items()
        if (name.lower() if data.kind == "sql" else name) not in known
    }
    is_table = format_of(data.kind, inputs[0]) not in ("json", "jsonl")
    if missing and not is_table:
        missing = _in_no_row(data, missing, inputs)
    for key, name in missing.items():
        shown = ", ".join(there[:_SHOWN]) + (", …" if len(there) > _SHOWN else "")
        usual = FinetuneData.model_fields[key].default
        guess = near(name, list(there)) or (f"did you mean {usual!r}? " if usual in there else "")
        if "answer" in missing and {"chosen", "rejected"} <= {*there}:
            guess = 'for pairs set finetune.method = "dpo". '
        raise DataError(
            f"{WHAT}: {place_of(inputs[0])} has no column {name!r}, which {WHAT}.{key} names",
            found=("its columns: " if is_table else "the fields of its first row: ") + (shown or "none"),
            wanted=f"a column or field named {name!r}",
            fix=f"{guess}Name the column in {WHAT}.{key}",
        )


def _in_no_row(data: FinetuneData, missing: dict[str, str], inputs: Iterable[Input]) -> dict[str, str]:
    wanted = wanted_of(data, tuple(missing.values()))
    found: set[str] = set()
    for entry in inputs:
        with closing(read_records(wanted, entry)) as records:
            for record in records:
                if all(value == "" for value in record.values):  # a blank line has every field
                    continue
                pairs = zip(missing, record.values, strict=True)
                found |= {key for key, value in pairs if value is not MISSING}
                if len(found) == len(missing):
                    return {}
    return {key: name for key, name in missing.items() if key not in found}
