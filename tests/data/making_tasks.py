"""A tokenizer with the special tokens of the common chat templates, and tasks prepared with it."""

import json
from pathlib import Path
from typing import Any

from making import QUIET, TEXTS, make, text_source
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bessemer.data.prepared import PreparedTask
from bessemer.data.rows import NO_LOSS
from bessemer.data.store import prepare_task
from bessemer.data.task.encoding import SampleEncoder
from bessemer.data.task.samples import Sample
from bessemer.data.task.templates import Template
from bessemer.data.tokens import tokenizer

WORDS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
Rows = list[dict[str, Any]]


def chat_tokenizer(folder: Path, template: str | None = None) -> Path:
    """tokenizer.json in a folder of its own, with a template of its own beside it."""
    engine = tokenizer.train(TEXTS, 300).engine
    engine.add_special_tokens(WORDS)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(engine.to_str(), encoding="utf-8")
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder / "tokenizer.json"


def written(folder: Path, *, special: list[str], added: list[str] | None = None) -> Path:
    """A tokenizer with words of several letters, blanks before them and line ends."""
    said = [*TEXTS, *(f"Assistant: {word} Hi. No\n\n\n    And Hello" for word in "abc" for _ in range(40))]
    engine = tokenizer.train(said, 600).engine
    engine.add_special_tokens(special)
    engine.add_tokens(added or [])
    engine.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def theirs(path: Path, template: str) -> PreTrainedTokenizerFast:
    special = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(path), chat_template=template, **special)


def encoder_of(path: Path, template: Template, learn: str = "answers") -> SampleEncoder:
    return SampleEncoder(tokenizer.load(path), template, learn)


def sample_of(row: dict[str, Any]) -> Sample:
    return Sample("p", "i", chats=(tuple(row["messages"]),), tools=tuple(row.get("tools", ())))


def task_of(
    base: Path,
    rows: Rows | None,
    data: str = "",
    *,
    more: str = "",
    validation: float = 0.0,
    template: str | None = None,
    clean: str = "",
) -> PreparedTask:
    """rows: of task.jsonl; None: `data` names the file."""
    if rows is not None:
        (base / "task.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        data = f'path = "task.jsonl"\n{data}'
    path = chat_tokenizer(base / "tokenizer", template)
    text = f"{clean}\n[finetune]\n{more}\n[finetune.data]\n{data}"
    recipe = make(text_source(), validation=validation, more=text)
    return prepare_task(recipe, base, base / "store", path, QUIET)


def learnt(prepared: PreparedTask, split: str = "train", context: int = 256) -> list[str]:
    """The text of the targets of each document, sorted."""
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    rows = prepared.rows(split, context)  # type: ignore[arg-type]
    found = []
    for index in range(len(rows)):
        row = rows.row(index)
        for _, begin, end in rows.documents(index):
            targets = row.targets_T[begin:end]
            found.append(engine.decode(targets[targets != NO_LOSS].tolist(), skip_special_tokens=False))
    return sorted(found)


def whole(prepared: PreparedTask, split: str = "train", context: int = 256) -> list[str]:
    """The text of each document, sorted."""
    engine = Tokenizer.from_file(str(prepared.tokenizer_path))
    rows = prepared.rows(split, context)  # type: ignore[arg-type]
    return sorted(
        engine.decode(rows.row(index).tokens_T[begin:end].tolist(), skip_special_tokens=False)
        for index in range(len(rows))
        for _, begin, end in rows.documents(index)
    )


def chat(*texts: str, system: str | None = None) -> dict[str, Any]:
    """Turns of user and assistant, one after another."""
    roles = ["user", "assistant"] * len(texts)
    said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + said}
