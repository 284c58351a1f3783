"""What each source gave: rows in, kept, refused by which rule, unreadable for which reason.

rows_in = kept + all refused + all errors, always: the manifest, `bessemer data report` and the run's
report say where each row went.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bessemer.errors import DataError
from bessemer.units import format_count


@dataclass
class SourceCount:
    name: str
    kind: str
    licence: str | None = None
    rows_in: int = 0
    bytes_in: int = 0
    kept: int = 0
    documents: int = 0  # written, repeats by weight counted
    tokens: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def read(self, num_bytes: int, error: str | None) -> None:
        self.rows_in += 1
        self.bytes_in += num_bytes
        if error is not None:
            self.errors[error] += 1

    def to_json(self) -> dict[str, Any]:
        lost = sum(self.refused.values()) + sum(self.errors.values())
        assert self.rows_in == self.kept + lost, f"{self.name}: {self.rows_in} rows, {self.kept} + {lost}"
        return {
            "name": self.name,
            "kind": self.kind,
            "licence": self.licence,
            "rows_in": self.rows_in,
            "kept": self.kept,
            "refused": dict(sorted(self.refused.items())),
            "errors": dict(sorted(self.errors.items())),
            "bytes_in": self.bytes_in,
            "documents": self.documents,
            "tokens": self.tokens,
        }


def check_kept(told: dict[str, Any]) -> None:
    """Raises DataError for a source that gave nothing: it is there by mistake, or its path is wrong."""
    if told["kept"]:
        return
    lost = Counter(told["refused"]) + Counter(told["errors"])
    reasons = [f"{count} {reason}" for reason, count in lost.most_common()]
    most = lost.most_common(1)[0][0] if lost else ""
    raise DataError(
        f"source {told['name']!r} gave no {'document' if told['rows_in'] else 'row'}",
        found=f"{told['rows_in']} rows" + (f": {', '.join(reasons)}" if reasons else ""),
        wanted="one document or more",
        fix=_RULE_FIX
        if most.split(".")[0] in ("gopher", "c4", "fineweb")
        else _FIXES.get(most, _GENERAL_FIX),
    )


def nothing_held_out(share: float, splits: Mapping[str, Mapping[str, int]]) -> str | None:
    """What to say where `data.validation` asks for a share and none could be held out; None: some is."""
    if not share or splits["validation"]["documents"]:
        return None
    num_left = splits["train"]["documents"]
    why = "all the text is one document. A text file is one: cut it into several, or save it as jsonl with a "
    why += "document on each line"
    if num_left > 1:
        why = f"of {num_left:,} documents none is left for it. Give the sources a finer `group`, or see "
        why += "below what was left out"
    return f"data: nothing is held out, so validation will not be measured: {why}"


_MOST_REASONS = 6
_GENERAL_FIX = "check its path, query and columns, or remove it"
_RULE_FIX = 'give the source `rules = "off"` or others, or change data.clean.thresholds'
_FIXES = {
    "language": "give the source its own `language`, or [] for any",
    "dedup.minhash": "remove the source: others hold nearly all of it",
    "contaminated": "look at data.clean.decontaminate: every document holds a passage of it",
    "missing": "check `text`, `prompt`, `answer`, `id` and `group`: they name columns or fields",
    "not_tokens": "set tokenizer.vocab above every token, or name the right column",
    "not_text": "name a column that holds text",
    "not_messages": "name a column that holds chat messages in finetune.data.messages",
    "not_text_part": "name chats of text only: nothing here sees images or hears",
    "not_tools": "name a column that holds a list of functions in finetune.data.tools",
    "template.tools": 'set finetune.data.template = "qwen3", or a template that writes tools',
    "undecodable": "save the files as UTF-8",
    "binary": "name text files: these hold NUL bytes",
    "dedup.exact": "remove the source: another one holds all of it",
    "leak": "remove the source, or lower data.validation: held-out documents hold its text",
}


def funnel_lines(sources: Sequence[dict[str, Any]]) -> list[str]:
    """An aligned table: what each source gave."""
    headings = ["source", "kind", "rows", "kept", "MB", "documents", "tokens", "left out"]
    rows = [
        [
            row["name"],
            row["kind"],
            f"{row['rows_in']:,}",
            f"{row['kept']:,}",
            f"{row['bytes_in'] / 1e6:,.1f}",
            f"{row['documents']:,}",
            format_count(row["tokens"]),
            _left_out(row),
        ]
        for row in sources
    ]
    lines = [headings, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(headings))]
    left = (0, 1, 7)
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _left_out(row: dict[str, Any]) -> str:
    """The reasons of most rows; `data report` has them all."""
    reasons = sorted([*row["refused"].items(), *row["errors"].items()], key=lambda item: (-item[1], item[0]))
    told = [f"{count:,} {why}" for why, count in reasons[:_MOST_REASONS]]
    more = reasons[_MOST_REASONS:]
    if more:
        told.append(f"{sum(count for _, count in more):,} for {len(more)} other reasons")
    return ", ".join(told) or "–"
