"""Prepare a fine-tuning task: rows of prompt and answer become examples with loss on the answer only.

    BOS prompt answer EOS        loss on answer and EOS; prompt and answer are tokenised apart

Counted as sources are: missing or non-string text is an error, an empty prompt or answer is refused by
`empty`, the same example again by `dedup.exact`, a prompt that is held out too by `leak`. Held out is
by group, else by id, else by prompt, with the same hash as in pre-training: what is held out there is
held out here. Examples are in an order by hash, so the first n are a fair share of any n.
An example longer than the context loses the middle of its prompt, never its answer (rows.fit_example).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bessemer.data import holdout
from bessemer.data.ledger import SourceCount, check_kept
from bessemer.data.order import mixed
from bessemer.data.rows import fit_example
from bessemer.data.sources.documents import label, usable_text
from bessemer.data.sources.parts import Input
from bessemer.data.sources.records import Record, Wanted, read_records
from bessemer.data.spool import Numbered, Numbers, Spool, Stored
from bessemer.data.tokens.shards import ShardWriter
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.durable import write_bytes, write_text
from bessemer.errors import DataError
from bessemer.log import Console
from bessemer.recipe.schema import FinetuneData, Recipe

_BATCH = 1024
SPLITS = {"train": holdout.TRAIN, "validation": holdout.VALIDATION}
WHAT = "finetune.data"


@dataclass(frozen=True)
class TaskWork:
    recipe: Recipe
    data: FinetuneData
    inputs: Sequence[Input]
    tokenizer: TextTokenizer
    context: int
    folder: Path
    console: Console


def build_task(work: TaskWork) -> dict[str, Any]:
    """Write the examples into the folder. Returns the manifest's own part."""
    count = SourceCount(WHAT, work.data.kind)
    spool = Spool(work.folder / "examples.spool")
    try:
        prompts = _read(work, spool, count)
        numbers = spool.numbers()
        parts = _decide(work, numbers, prompts, count)
        splits = {
            name: _encode(work, spool, _order(numbers, np.flatnonzero(parts == part)), name)
            for name, part in SPLITS.items()
        }
    finally:
        spool.close()
    write_text(work.folder / "tokenizer.json", work.tokenizer.text)
    write_text(work.folder / "tokenizer_config.json", work.tokenizer.config_text())
    count.documents = sum(split["examples"] for split in splits.values())
    count.tokens = sum(split["tokens"] for split in splits.values())
    return {
        "tokenizer": work.tokenizer.description(),
        "context": work.context,
        "splits": splits,
        "sources": [count.to_json()],
    }


def _read(work: TaskWork, spool: Spool, count: SourceCount) -> list[int]:
    """Fill the spool. Returns a hash of each example's prompt."""
    data = work.data
    columns = [data.prompt, data.answer, *(name for name in (data.id, data.group) if name is not None)]
    wanted = Wanted(WHAT, data.kind, columns, data.table, data.query)
    prompts = []
    for entry in work.inputs:
        for record in read_records(wanted, entry):
            example, error = _example(data, columns, record)
            count.read(record.num_bytes, error)
            if example is None:
                continue
            name, group, prompt, answer = example
            normal = [holdout.normalise(text) for text in (prompt, answer)]
            if not all(normal):
                count.refused["empty"] += 1
                continue
            own_id = name if data.id is not None else None
            key = holdout.holdout_hash(group, own_id, normal[0])
            text = json.dumps([prompt, answer])
            spool.add(Stored(0, name, group, text, None), b"\0".join(normal), key)
            prompts.append(holdout.holdout_hash(None, None, normal[0]))
    return prompts


def _example(
    data: FinetuneData, columns: Sequence[str], record: Record
) -> tuple[tuple[str, str | None, str, str] | None, str | None]:
    """((id, group, prompt, answer), None), or (None, the reason why the row is none)."""
    fields = dict(zip(columns, record.values, strict=True))
    prompt, prompt_error = usable_text(fields[data.prompt])
    answer, answer_error = usable_text(fields[data.answer])
    own_id, id_error = label(fields, data.id)
    group, group_error = label(fields, data.group)
    error = record.error or prompt_error or answer_error or id_error or group_error
    if error is not None or prompt is None or answer is None:
        return None, error
    return (record.place if own_id is None else own_id, group, prompt, answer), None


def _decide(work: TaskWork, numbers: Numbered, prompts: list[int], count: SourceCount) -> Numbers:
    parts = holdout.split(numbers.holdout, work.recipe.data.validation)
    if work.recipe.data.clean.dedup != "off":
        holdout.refuse_duplicates(parts, numbers)
    asked = np.array(prompts, dtype=np.uint64)
    held_out = asked[parts == holdout.VALIDATION]
    parts[(parts == holdout.TRAIN) & np.isin(asked, held_out)] = holdout.LEAK
    count.kept = int(np.isin(parts, list(SPLITS.values())).sum())
    for part, rule in holdout.REFUSED.items():
        if refused := int((parts == part).sum()):
            count.refused[rule] += refused
    check_kept(count.to_json())
    if not (parts == holdout.TRAIN).any():
        raise DataError(
            "finetune.data: no example is left to train on",
            found=f"{count.kept} examples, all held out",
            wanted="examples of two groups or more",
            fix="set data.validation = 0, or name a finer `group`",
        )
    return parts


def _order(numbers: Numbered, chosen: Numbers) -> Numbers:
    """These examples, in an order that only their content decides."""
    return chosen[np.argsort(mixed(numbers.content_low[chosen]), kind="stable")]


def _encode(work: TaskWork, spool: Spool, order: Numbers, name: str) -> dict[str, int]:
    total = {"examples": 0, "tokens": 0, "answer_tokens": 0, "bytes": 0, "prompts_cut": 0, "answers_cut": 0}
    (work.folder / "tokens").mkdir(exist_ok=True)
    stem = work.folder / "tokens" / f"{name}-00000"
    labels = []
    with ShardWriter(stem, work.tokenizer.vocab) as shard:
        for batch in _batches(spool.read(order)):
            texts = [json.loads(stored.text or "") for stored in batch]
            prompts = work.tokenizer.encode([prompt for prompt, _ in texts])
            answers = work.tokenizer.encode([answer for _, answer in texts])
            for stored, (prompt, answer), asked, told in zip(batch, texts, prompts, answers, strict=True):
                begin_ids = [] if work.tokenizer.bos_id is None else [work.tokenizer.bos_id]
                whole = np.array([*begin_ids, *asked, *told, work.tokenizer.eos_id], dtype=np.int64)
                begin = len(begin_ids) + len(asked)
                tokens, prompt_tokens = fit_example(whole, begin, work.context)
                shard.add(tokens)
                labels.append(json.dumps([stored.id, stored.group, prompt, answer, prompt_tokens]) + "\n")
                total["examples"] += 1
                total["tokens"] += len(tokens)
                total["answer_tokens"] += len(tokens) - prompt_tokens
                total["bytes"] += len(prompt.encode()) + len(answer.encode())
                total["prompts_cut"] += prompt_tokens < begin
                total["answers_cut"] += len(tokens) - prompt_tokens <= len(told)
    write_bytes(stem.with_suffix(".jsonl"), "".join(labels).encode())
    return total


def _batches(stored: Iterator[Stored]) -> Iterator[list[Stored]]:
    batch: list[Stored] = []
    for one in stored:
        batch.append(one)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
