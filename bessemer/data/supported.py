"""What can be prepared, checked before anything is read: the rest is refused by name."""

from collections.abc import Sequence
from pathlib import Path

from bessemer.data.mixture import check_schedule
from bessemer.data.task.formats import check_keys
from bessemer.errors import RecipeError
from bessemer.recipe.schema import Clean, FinetuneData, Recipe, Source

_GROUPS = {
    "stem": '"stem", the file name up to its first dot, or none',
    "host": '"host", the address up to its first slash, or none',
}
FILE_KINDS = ("text", "code", "html")
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
    _check_clean(recipe.data.clean, recipe.data.source)
    check_schedule(recipe.data)
    if recipe.tokenizer.path is None and _has_text(recipe) and recipe.tokenizer.vocab < MIN_VOCAB:
        raise RecipeError(
            "tokenizer.vocab is too small",
            found=f"vocab = {recipe.tokenizer.vocab}",
            wanted=f"{MIN_VOCAB} or more: each of 256 bytes, begin, end and padding",
            fix="set tokenizer.vocab = 4096",
        )


def check_task(data: FinetuneData, method: str = "full") -> None:
    _check_origin(data, "finetune.data", is_sql=data.kind == "sql")
    check_keys(data, method)


def check_code(recipe: Recipe, *, allowed: bool) -> None:
    """Before something is built: no recipe runs code unasked."""
    code = recipe.data.clean.code
    if code is not None and not allowed:
        raise RecipeError(
            "data.clean.code runs a function of the recipe's own",
            found=f'code = "{code}"',
            wanted="--allow-code on the command",
            fix="read what the function does, then run `bessemer data build RECIPE --allow-code`",
        )


def other_files(recipe: Recipe, base: Path) -> list[tuple[str, str]]:
    """(key, path) of files on which the data depends beside its sources and the tokenizer.

    base: the recipe's folder. A function of an installed module is none: only its version tells it apart.
    """
    clean = recipe.data.clean
    named = [("data.clean.decontaminate", path) for path in clean.decontaminate]
    if clean.quality is not None:
        named.append(("data.clean.quality", clean.quality))
    if clean.code is not None:
        own = clean.code.partition(":")[0].replace(".", "/") + ".py"
        named += [("data.clean.code", own)] if (base / own).is_file() else []
    return named


def _check_source(source: Source, key: str, recipe: Recipe) -> None:
    _check_origin(source, key, is_sql=source.kind == "sql")
    if source.kind in (*FILE_KINDS, "books", "warc"):
        for name in ("text", "id"):
            if name in source.model_fields_set:
                raise _no_effect(f"{key}.{name}", f'beside kind = "{source.kind}": it has no columns')
        named = "host" if source.kind == "warc" else "stem"
        if source.group not in (None, named):
            raise RecipeError(
                f'{key}.group of kind "{source.kind}" can only be "{named}"',
                found=f'group = "{source.group}"',
                wanted=_GROUPS[named],
                fix=f'set group = "{named}"',
            )
    for name in ("rules", "language"):
        if source.kind == "tokens" and name in source.model_fields_set:
            raise _no_effect(f"{key}.{name}", 'beside kind = "tokens": it has no text')
    if source.kind != "sql" and source.split_by is not None:
        raise _no_effect(f"{key}.split_by", f'beside kind = "{source.kind}"')
    if source.kind == "tokens" and recipe.tokenizer.path is None and _has_text(recipe):
        raise RecipeError(
            f"{key}: ready tokens beside text need the tokenizer that made them",
            found='kind = "tokens" without tokenizer.path',
            wanted="the tokenizer.json that these integers belong to",
            fix='set tokenizer.path = "tokenizer.json"',
        )


def _has_text(recipe: Recipe) -> bool:
    return any(source.kind != "tokens" for source in recipe.data.source)


def _check_origin(data: Source | FinetuneData, key: str, *, is_sql: bool) -> None:
    """Where rows come from: exactly one way to say it, and no setting that would do nothing."""
    if data.url_env is not None and not is_sql:
        raise _no_effect(f"{key}.url_env", f'beside kind = "{data.kind}"')
    if (data.path is None) == (data.url_env is None):
        both = data.path is not None
        raise RecipeError(
            f"{key} has " + ("both path and url_env" if both else "no path"),
            found="both" if both else "no path",
            wanted="a file, folder or glob" + ("; or url_env, for a database server" if is_sql else ""),
            fix=f"set {key}.path" + (" or url_env" if is_sql else ""),
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


def _check_clean(clean: Clean, sources: Sequence[Source]) -> None:
    """Settings that would do nothing without another one."""
    key = "data.clean"
    has_rules = any(rules not in (None, "off", []) for rules in [clean.rules, *(s.rules for s in sources)])
    has_language = any([clean.language, *(source.language for source in sources)])
    for name, needs, is_there in (
        ("thresholds", "rules", has_rules),
        ("language_score", "language", has_language),
        ("quality_score", "quality", clean.quality is not None),
    ):
        if name in clean.model_fields_set and not is_there:
            raise _no_effect(f"{key}.{name}", f"without {key}.{needs}")


def _no_effect(key: str, why: str) -> RecipeError:
    return RecipeError(
        f"{key} has no effect {why}", found=key, wanted="keys that do something", fix=f"remove {key}"
    )
