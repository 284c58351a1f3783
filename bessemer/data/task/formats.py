"""What a row of a task is, and which of its columns are read."""

from collections.abc import Mapping, Sequence

from bessemer.errors import RecipeError
from bessemer.recipe.schema import FinetuneData

PREFERENCES = ("dpo", "ipo", "orpo", "simpo", "reward")
_MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
_SAID = ("system", "system_column")
# Which keys do something, by format; all have id and group.
_KEYS = {
    "prompt": {"prompt", "answer", *_SAID, "template", "learn"},
    "messages": {"messages", "tools", *_SAID, "template", "learn"},
    "instruction": {"instruction", "input", "output", *_SAID, "template", "learn"},
    "preference": {"prompt", "chosen", "rejected", "tools", *_SAID, "template"},
    "classification": {"text", "label", "labels"},
    "text": {"text"},
}
_ANYWHERE = {"kind", "path", "url_env", "table", "query", "format", "id", "group", "packing", "allow_masked"}

# Columns that rows may lack.
_OPTIONAL = {"instruction": {"input"}, "preference": {"prompt", "tools"}, "messages": {"tools"}}


def wanted_format(method: str) -> str | None:
    """What a method learns from; None: answers or texts."""
    if method in PREFERENCES:
        return "preference"
    return "classification" if method == "classify" else None


def named_format(data: FinetuneData, method: str) -> str | None:
    """As far as recipe and method say it; None: the columns that are there will."""
    if data.format != "auto":
        return data.format
    given = data.model_fields_set
    if wanted := wanted_format(method):
        return wanted
    if given & {"messages", "tools"}:
        return "messages"
    if given & {"instruction", "input", "output"}:
        return "instruction"
    if "text" in given:
        return "text"
    return "prompt" if given & {"prompt", "answer"} else None


def format_of(data: FinetuneData, method: str, columns: Sequence[str] | None) -> str:
    """columns: what the first file has; None: it could not be told."""
    named = named_format(data, method)
    if named is not None:
        return named
    there = set(columns or ())
    if {data.prompt, data.answer} <= there:
        return "prompt"
    if there & set(_MESSAGE_COLUMNS):
        return "messages"
    if {data.instruction, data.output} <= there:
        return "instruction"
    if data.text in there and data.prompt not in there:
        return "text"
    return "prompt"


def check_keys(data: FinetuneData, method: str, found: str | None = None) -> None:
    """RecipeError where the format is of no use to the method, or a key does nothing beside it.

    found: the format that the columns say, once they are known.
    """
    wanted, named = wanted_format(method), named_format(data, method) or found
    special = ("preference", "classification")
    if named is not None and named != wanted and (wanted or named in special):
        means = f'format = "{wanted}", or auto' if wanted else "prompts and answers, messages or texts"
        raise RecipeError(
            f'finetune.data.format = "{named}" is of no use to method = "{method}"',
            found=f'format = "{named}"',
            wanted=means,
            fix=f'set finetune.data.format = "{wanted or "auto"}"'
            + (
                "" if wanted else ', or another finetune.method: dpo … for preferences, "classify" for labels'
            ),
        )
    if named is None:
        return
    for key in sorted(data.model_fields_set - _KEYS[named] - _ANYWHERE):
        raise RecipeError(
            f'finetune.data.{key} has no effect beside format = "{named}"',
            found=f"finetune.data.{key}",
            wanted=f"of such keys: {', '.join(sorted(_KEYS[named]))}",
            fix=f"remove finetune.data.{key}, or set finetune.data.format",
        )
    if named == "prompt" and data.template == "auto":
        check_untemplated(data, "prompt and answer")


def check_untemplated(data: FinetuneData, beside: str) -> None:
    """RecipeError for what only a template could write."""
    for key in (*_SAID, "tools"):
        if getattr(data, key) is not None:
            raise RecipeError(
                f"finetune.data.{key} has no effect on prompts that no template is around",
                found=f"{key} beside {beside}",
                wanted="a template that says how it is written",
                fix='set finetune.data.template = "chatml", or write it into the prompts',
            )


def columns_of(data: FinetuneData, task_format: str, there: Sequence[str] | None) -> dict[str, str]:
    """The columns to read, by what they are for. What may be missing is read where it is there."""
    tools = {} if data.tools is None else {"tools": data.tools}
    if task_format == "messages":
        named = data.messages or next((n for n in _MESSAGE_COLUMNS if n in (there or ())), "messages")
        needed, optional = {"messages": named}, tools
    elif task_format == "instruction":
        needed = {"instruction": data.instruction, "output": data.output}
        optional = {"input": data.input}
    elif task_format == "preference":
        needed = {"chosen": data.chosen, "rejected": data.rejected}
        optional = {"prompt": data.prompt, **tools}
    elif task_format == "classification":
        needed, optional = {"text": data.text, "label": data.label}, {}
    elif task_format == "text":
        needed, optional = {"text": data.text}, {}
    else:
        needed, optional = {"prompt": data.prompt, "answer": _answer_column(data, there)}, {}
    for key in ("id", "group", "system_column"):
        if (name := getattr(data, key)) is not None:
            needed[key] = name
    for key, name in optional.items():
        # A row of JSON may have a field that the first one lacks; a table has the same in all rows.
        if data.kind in ("json", "jsonl") or key in data.model_fields_set or name in (there or ()):
            needed[key] = name
    return needed


def needed_columns(data: FinetuneData, task_format: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Those that must be there: all but what rows may lack, and that too where the recipe names it."""
    optional = _OPTIONAL.get(task_format, set())
    return {key: name for key, name in columns.items() if key not in optional or key in data.model_fields_set}


def _answer_column(data: FinetuneData, there: Sequence[str] | None) -> str:
    """Data sets for trl call it completion."""
    names = there or ()
    if "answer" in data.model_fields_set or data.answer in names:
        return data.answer
    return "completion" if "completion" in names else data.answer
