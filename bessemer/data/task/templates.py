"""Which chat template a task is written with: a shipped one, a file, or the tokenizer's own."""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import xxhash

from bessemer.data.task.samples import Sample
from bessemer.data.task.unusable import Unusable
from bessemer.data.tokens.tokenizer import read_config
from bessemer.errors import DataError, RecipeError

SHIPPED = ("chatml", "llama3", "qwen3", "plain")
_MOST_BYTES = 1 << 20
_KEY = "finetune.data.template"
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


@dataclass(frozen=True)
class Template:
    name: str
    source: str

    @property
    def xxh3_128(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.source.encode())

    def unwritten(self, sample: Sample) -> Unusable | None:
        """Why this template cannot write a sample: without a word it would leave out its tools."""
        calls = any(message.get("tool_calls") for chat in sample.chats for message in chat)
        for is_there, name in ((sample.tools, "tools"), (calls, "tool_calls")):
            if is_there and not re.search(rf"\b{name}\b", _COMMENT.sub("", self.source)):
                return Unusable("template.tools", f"{name}, which the template {self.name} does not write")
        return None


def find_template(named: str, tokenizer: Path, base: Path, *, tools: bool = False) -> Template:
    """named: as the recipe says; tokenizer: a tokenizer.json or its folder; base: the recipe's folder.

    tools: the task has such, for which a tokenizer may have a template of its own.
    """
    if named == "auto":
        own = own_template(tokenizer, tools=tools)
        return shipped("plain") if own is None else _small(Template("of the tokenizer", own))
    if named in SHIPPED:
        return shipped(named)
    path = base / Path(named).expanduser()
    if path.suffix != ".jinja":
        raise RecipeError(
            f"{_KEY} = {named!r} is no template",
            found=named,
            wanted=f"auto, {', '.join(SHIPPED)}, or a file that ends in .jinja",
            fix=f'set {_KEY} = "chatml"',
        )
    try:
        return _small(Template(named, path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{_KEY}: cannot read {path}",
            found=str(error),
            wanted="a Jinja template in UTF-8",
            fix="check the path; relative paths start from the recipe's folder",
        ) from error


def shipped(name: str) -> Template:
    folder = resources.files("bessemer.data.task") / "chat_templates"
    return Template(name, (folder / f"{name}.jinja").read_text(encoding="utf-8"))


def own_template(tokenizer: Path, *, tools: bool = False) -> str | None:
    """What lies beside a tokenizer.json: chat_template.jinja, else `chat_template` of its configuration.

    Of several named ones the default, or for tools `tool_use`, as transformers chooses.
    """
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    given = read_config(folder).get("chat_template")
    if isinstance(given, list):
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = (named.get("tool_use") if tools else None) or named.get("default")
    return given if isinstance(given, str) and given else None


def _small(template: Template) -> Template:
    size = len(template.source.encode())
    if size > _MOST_BYTES:
        raise DataError(
            f"the chat template {template.name} is too large",
            found=f"{size:,} bytes",
            wanted=f"at most {_MOST_BYTES:,} bytes",
            fix=f'set {_KEY} = "chatml", or a smaller file',
        )
    return template
