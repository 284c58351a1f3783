"""What this version prepares, checked before anything is read: the rest is refused by name."""

from bessemer.data.sources.documents import FILE_KINDS
from bessemer.errors import RecipeError
from bessemer.recipe.schema import Clean, FinetuneData, Recipe, Source

# What is planned but not built, and what to do until then.
_LATER_KINDS = {
    "books": 'convert them to text files and use kind = "text"',
    "warc": 'extract the pages and use kind = "html", or kind = "jsonl" with their text',
    "parquet": 'write the rows as JSON lines and use kind = "jsonl", or put them into SQLite',
    "huggingface": 'save the data set as JSON lines and use kind = "jsonl"',
}
MIN_VOCAB = 256 + 3  # every byte, and begin, end, padding


def check_recipe(recipe: Recipe) -> None:
    """Raises RecipeError for the first key that could not be followed to the letter."""
    if not recipe.data.source:
        raise RecipeError(
            "the recipe names no data",
            found="no [[data.source]]",
            wanted="one source or more",
            fix='add [[data.source]] with name, kind = "text" and path = "texts/**/*.txt"',
        )
    names = [source.name for source in recipe.data.source]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(
                f"two sources are named {name!r}",
                found=f"data.source names: {', '.join(names)}",
                wanted="a name of its own for each source",
                fix="rename one: reports tell sources apart by name",
            )
    for index, source in enumerate(recipe.data.source):
        _check_source(source, f"data.source.{index}", recipe)
    _check_clean(recipe.data.clean)
    if recipe.tokenizer.path is None and recipe.tokenizer.vocab < MIN_VOCAB:
        raise RecipeError(
            "tokenizer.vocab is too small",
            found=f"vocab = {recipe.tokenizer.vocab}",
            wanted=f"{MIN_VOCAB} or more: each of 256 bytes, begin, end and padding",
            fix="set tokenizer.vocab = 4096",
        )


def check_task(data: FinetuneData) -> None:
    if data.messages is not None:
        raise later("finetune.data.messages", data.messages, "name `prompt` and `answer` columns")
    if data.kind == "parquet":
        raise later("finetune.data.kind", data.kind, _LATER_KINDS["parquet"])
    _check_origin(data, "finetune.data", is_sql=data.kind == "sql")


def later(key: str, value: object, instead: str) -> RecipeError:
    return RecipeError(
        f"{key} = {_shown(value)} is not built yet in this version",
        found=f"{key} = {_shown(value)}",
        wanted="what this version prepares: text, code, html, jsonl, csv, sql (SQLite) and tokens",
        fix=instead,
    )


def _check_source(source: Source, key: str, recipe: Recipe) -> None:
    if source.kind in _LATER_KINDS:
        raise later(f"{key}.kind", source.kind, _LATER_KINDS[source.kind])
    _check_origin(source, key, is_sql=source.kind == "sql")
    if source.kind in FILE_KINDS:
        for name in ("text", "id"):
            if name in source.model_fields_set:
                raise _no_effect(f"{key}.{name}", f'beside kind = "{source.kind}": each file is one document')
        if source.group not in (None, "stem"):
            raise RecipeError(
                f'{key}.group of kind "{source.kind}" can only be "stem"',
                found=f'group = "{source.group}"',
                wanted='"stem", the file name up to its first dot, or none',
                fix='set group = "stem"',
            )
    if source.kind == "tokens" and recipe.tokenizer.path is None:
        raise RecipeError(
            f"{key}: ready tokens need the tokenizer that made them",
            found='kind = "tokens" without tokenizer.path',
            wanted="the tokenizer.json that these integers belong to",
            fix='set tokenizer.path = "tokenizer.json"',
        )


def _check_origin(data: Source | FinetuneData, key: str, *, is_sql: bool) -> None:
    """Where rows come from: exactly one way to say it, and no setting that would do nothing."""
    if data.url_env is not None:
        raise later(f"{key}.url_env", data.url_env, "copy the rows into a SQLite file and name it as `path`")
    if data.path is None:
        raise RecipeError(
            f"{key} has no path", found="no path", wanted="a file, folder or glob", fix=f"set {key}.path"
        )
    if not is_sql:
        for name in ("table", "query"):
            if getattr(data, name) is not None:
                raise _no_effect(f"{key}.{name}", f'beside kind = "{data.kind}"')
    elif (data.table is None) == (data.query is None):
        raise RecipeError(
            f"{key}: one of table and query",
            found="both" if data.table is not None else "neither",
            wanted="a table to read whole, or a query",
            fix='set table = "name", or query = "select id, body as text from posts"',
        )


def _check_clean(clean: Clean) -> None:
    key = "data.clean"
    if clean.dedup == "minhash":
        raise later(f"{key}.dedup", clean.dedup, 'use dedup = "exact"')
    if clean.rules not in ("off", []):
        raise later(f"{key}.rules", clean.rules, 'use rules = "off", and filter the files beforehand')
    if clean.language is not None:
        raise later(f"{key}.language", clean.language, "filter the files beforehand")
    if clean.pii != "off":
        raise later(f"{key}.pii", clean.pii, 'use pii = "off", and redact the files beforehand')
    if clean.decontaminate:
        raise later(f"{key}.decontaminate", clean.decontaminate, "remove those passages beforehand")


def _no_effect(key: str, why: str) -> RecipeError:
    return RecipeError(
        f"{key} has no effect {why}", found=key, wanted="keys that do something", fix=f"remove {key}"
    )


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
