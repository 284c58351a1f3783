"""What a build of a task tells: shares of tokens and rows, first rows left out, a better context."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bessemer.data.ledger import SourceCount
from bessemer.errors import DataError
from bessemer.recipe.schema import FinetuneData

MOST_MASKED = 0.01
_STEP = 64  # contexts are multiples of it
_SHOWN = 3


def check_masked(data: FinetuneData, count: SourceCount, lost: Sequence[dict[str, str]]) -> None:
    """DataError where over 1 % of the rows have nothing to learn, unless the recipe allows it."""
    masked = count.refused["masked"]
    if data.allow_masked or masked <= MOST_MASKED * count.rows_in:
        return
    first = [f"{row['place']}: {row['told']}" for row in lost if row["reason"] == "masked"]
    raise DataError(
        f"{masked:,} of {count.rows_in:,} rows have nothing to learn: all of their tokens are masked",
        found="for example\n          " + "\n          ".join(first[:_SHOWN]),
        wanted=f"at most {MOST_MASKED:.0%} of them",
        fix="mend the rows, raise finetune.context, or leave them out with finetune.data.allow_masked = true",
    )


def context_for(lengths: Sequence[int], context: int) -> int | None:
    """The context that would hold 99 % of the examples whole, where this one does not hold all."""
    if not lengths or max(lengths) <= context:
        return None
    needed = int(np.quantile(np.array(lengths), 0.99, method="higher"))
    return max(_STEP, -(-needed // _STEP) * _STEP)


def shares(manifest: dict[str, Any], split: str) -> dict[str, float]:
    """Percent: tokens that are masked, examples that were cut, rows of the source that were empty."""
    counts, source = manifest["splits"][split], manifest["sources"][0]
    cut = counts.get("examples_cut", max(counts["prompts_cut"], counts["answers_cut"]))
    return {
        "masked": _percent(counts["tokens"] - counts["answer_tokens"], counts["tokens"]),
        "truncated": _percent(cut, counts["examples"]),
        "empty": _percent(source["refused"].get("empty", 0), source["rows_in"]),
        "fully_masked": _percent(source["refused"].get("masked", 0), source["rows_in"]),
    }


def told_lines(manifest: dict[str, Any]) -> list[str]:
    lines = []
    for split, counts in manifest["splits"].items():
        if not counts["examples"]:
            continue
        share = shares(manifest, split)
        told = f"{counts['examples']:,} examples, {share['masked']:.1f} % of tokens masked"
        if counts["examples_cut"]:
            told += f", {counts['prompts_cut']:,} prompts and {counts['answers_cut']:,} answers cut"
        if counts["turns_dropped"]:
            told += f", {counts['turns_dropped']:,} oldest messages of long chats left out"
        lines.append(f"finetune.data: {split}: {told}")
    if alike := manifest["common_beginnings"]:
        told = f"{alike:,} begin as many training ones do, and are measured behind that"
        lines.append(f"finetune.data: validation: of the chats {told}")
    if manifest["unread_tools"]:
        lines.append("finetune.data: chats have `tools` that are not read: name them in finetune.data.tools")
    better = manifest["context_99"]
    if better is not None and better > manifest["context"]:
        lines.append(f"finetune.data: finetune.context = {better} would hold 99 % of the examples whole")
    reasons = dict.fromkeys(row["reason"] for row in manifest["lost"])
    for reason in reasons:
        rows = [row for row in manifest["lost"] if row["reason"] == reason][:_SHOWN]
        places = ", ".join(row["place"] + (f" ({row['told']})" if row["told"] else "") for row in rows)
        lines.append(f"finetune.data: left out as {reason}: {places}")
    return lines


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0
