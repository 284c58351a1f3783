"""The examples of a split, written: documents into a shard, and beside it a line an example.

    {"id", "group", "prompt", "answer", "documents", "spans", "label", "rejected"}

A line says how many documents the example has, and which tokens of each are learnt ([begin, end]); label
(a number) and rejected (a text) only where there is one.
Also for what is not read but made: answers of a teacher, answers that were sampled.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bessemer.data.fitting import Spans
from bessemer.data.tokens.shards import ShardWriter
from bessemer.durable import write_bytes


@dataclass(frozen=True)
class Written:
    id: str
    group: str | None
    prompt: str
    answer: str
    documents: Sequence[tuple[Sequence[int], Spans]]
    label: int | None = None
    rejected: str | None = None


class SplitWriter:
    """Use as a context manager: the line file is written on leaving it without an exception."""

    def __init__(self, folder: Path, split: str, vocab: int) -> None:
        (folder / "tokens").mkdir(exist_ok=True, parents=True)
        self._stem = folder / "tokens" / f"{split}-00000"
        self._shard = ShardWriter(self._stem, vocab)
        self._lines: list[str] = []
        self.total = {"examples": 0, "documents": 0, "tokens": 0, "answer_tokens": 0, "bytes": 0}

    def add(self, example: Written) -> None:
        for tokens, spans in example.documents:
            self._shard.add(tokens)
            self.total["tokens"] += len(tokens)
            learnt = sum(end - begin for begin, end in spans)
            self.total["answer_tokens"] += learnt if example.label is None else 1
        self.total["examples"] += 1
        self.total["documents"] += len(example.documents)
        texts = (example.prompt, example.answer, example.rejected or "")
        self.total["bytes"] += sum(len(text.encode()) for text in texts)
        line: dict[str, Any] = {
            "id": example.id,
            "group": example.group,
            "prompt": example.prompt,
            "answer": example.answer,
            "documents": len(example.documents),
            "spans": [spans for _, spans in example.documents],
        }
        line |= {} if example.label is None else {"label": example.label}
        line |= {} if example.rejected is None else {"rejected": example.rejected}
        self._lines.append(json.dumps(line) + "\n")

    def __enter__(self) -> "SplitWriter":
        self._shard.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shard.__exit__(kind, error, trace)
        if kind is None:
            write_bytes(self._stem.with_suffix(".jsonl"), "".join(self._lines).encode())
