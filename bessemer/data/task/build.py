"""Prepare a fine-tuning task: rows of any usual format become examples with loss on what is to be learnt.

Counted as sources are: rows that are no samples (reading.py says why), the same example again by
`dedup.exact`, by `leak` what learns an answer to a prompt that is held out too (leaks.py),
labels without a training row by `label.unseen`, what the template refuses, and what has nothing to learn by
`masked`. Held out is by group, else by id, else by prompt, with the same hash as in pre-training: what is
held out there is held out here. Examples are in an order by hash, so the first n are a fair share of any n.
Cost on one core: 2,600 chats or 2.2 MB a second, a third of it for the tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bessemer.data import holdout
from bessemer.data.ledger import SourceCount, check_kept
from bessemer.data.order import mixed
from bessemer.data.sources.parts import Input
from bessemer.data.spool import Numbered, Numbers, Spool, Stored
from bessemer.data.task import WHAT
from bessemer.data.task.classes import Classes
from bessemer.data.task.cuts import Cuts, Documents, total
from bessemer.data.task.encoding import SampleEncoder
from bessemer.data.task.leaks import MOST_LOST, Prompts
from bessemer.data.task.reading import SHOWN, Lost, Reading
from bessemer.data.task.samples import Sample
from bessemer.data.task.telling import check_masked, context_for, told_lines
from bessemer.data.task.templates import Template, own_template
from bessemer.data.task.unusable import Unusable
from bessemer.data.task.whole import encoder_for
from bessemer.data.task.writing import SplitWriter, Written
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.durable import write_text
from bessemer.errors import DataError
from bessemer.log import Console
from bessemer.recipe.schema import FinetuneData, Recipe

_BATCH = 1024
SPLITS = {"train": holdout.TRAIN, "validation": holdout.VALIDATION}


@dataclass(frozen=True)
class TaskWork:
    recipe: Recipe
    data: FinetuneData
    inputs: Sequence[Input]
    reading: Reading
    template: Template
    tokenizer: TextTokenizer
    tokenizer_path: Path
    context: int
    folder: Path
    console: Console


def build_task(work: TaskWork) -> dict[str, Any]:
    """Write the examples into the folder. Returns the manifest's own part."""
    count = SourceCount(WHAT, work.data.kind)
    lost = Lost(count)
    spool = Spool(work.folder / "examples.spool")
    lengths: list[int] = []
    encoder = encoder_for(work.tokenizer, work.template, work.data.learn)
    with closing(spool), closing(encoder):
        prompts = _read(work, spool, lost)
        parts, begins = _decide(work, spool, prompts, lost)
        classes = _classes(work, spool, parts)
        numbers = spool.numbers()
        splits = {}
        for name, part in SPLITS.items():
            order = _order(numbers, np.flatnonzero(parts == part))
            split = _Split(name, lost, classes, lengths)
            splits[name] = _encode(work, encoder, _samples(spool, order, begins), split)
    check_masked(work.data, count, lost.rows)
    check_kept(count.to_json())
    _check_training(splits["train"]["examples"], count)
    count.documents = sum(split["documents"] for split in splits.values())
    count.tokens = sum(split["tokens"] for split in splits.values())
    manifest = {
        "task_format": work.reading.task_format,
        "tokenizer": work.tokenizer.description(),
        "context": work.context,
        "context_99": context_for(lengths, work.context),
        "packing": work.data.packing,
        "template": _template(work, encoder),
        "splits": splits,
        "common_beginnings": len(begins),
        "unread_tools": work.reading.unread_tools,
        "sources": [count.to_json()],
        "lost": lost.rows,
        **(classes.to_json() if classes else {}),
    }
    _write_tokenizer(work, encoder)
    for line in told_lines(manifest):
        work.console.line(line)
    return manifest


def _read(work: TaskWork, spool: Spool, lost: Lost) -> Prompts:
    """Fill the spool."""
    prompts = Prompts()
    for number, sample in enumerate(work.reading.samples(work.inputs, lost)):
        ends = sample.prompt_keys(work.data.learn)
        asked = {holdout.normalise(key): 0 if sample.is_pair else end for key, end in ends.items()}
        prompt, answers = next(iter(asked)), [holdout.normalise(key) for key in sample.answer_keys()]
        key = holdout.holdout_hash(sample.group, sample.id if sample.has_own_id else None, prompt)
        spool.add(
            Stored(0, sample.id, sample.group, sample.to_text(), None), b"\0".join([prompt, *answers]), key
        )
        prompts.add(number, asked)
    return prompts


def _decide(work: TaskWork, spool: Spool, prompts: Prompts, lost: Lost) -> tuple[Numbers, dict[int, int]]:
    """The part of each example, and of chats the messages before what is measured."""
    numbers, count = spool.numbers(), lost.count
    parts = holdout.split(numbers.holdout, work.recipe.data.validation)
    if work.recipe.data.clean.dedup != "off":
        holdout.refuse_duplicates(parts, numbers)
    holds_out = bool((parts == holdout.VALIDATION).any())
    begins = prompts.refuse_leaks(parts)
    for part, rule in holdout.REFUSED.items():
        refused = np.flatnonzero(parts == part)
        if len(refused):
            count.refused[rule] += len(refused)
        for stored in spool.read(refused[:SHOWN]):
            lost.show(_sample(stored).place, Unusable(rule))
    count.kept = int(np.isin(parts, list(SPLITS.values())).sum())
    check_kept(count.to_json())
    _check_training(int((parts == holdout.TRAIN).sum()), count)
    if holds_out and not (parts == holdout.VALIDATION).any():
        raise DataError(
            "finetune.data: no held-out answer is left to measure",
            found=f"every held-out prompt is one that more than {MOST_LOST} training chats have",
            wanted="held-out chats with prompts of their own",
            fix="leave out `id`, so that prompts are held out; or set data.validation = 0",
        )
    return parts, begins


def _classes(work: TaskWork, spool: Spool, parts: Numbers) -> Classes | None:
    """The labels of a classification."""
    if work.reading.task_format != "classification":
        return None
    training = spool.read(np.flatnonzero(parts == holdout.TRAIN))
    return Classes.of(work.data.labels, (_sample(stored).label or "" for stored in training))


def _check_training(examples: int, count: SourceCount) -> None:
    if not examples:
        raise DataError(
            "finetune.data: no example is left to train on",
            found=f"{count.kept} examples, all held out",
            wanted="examples of two groups or more",
            fix="set data.validation = 0, or name a finer `group`",
        )


def _order(numbers: Numbered, chosen: Numbers) -> Numbers:
    """These examples, in an order that only their content decides."""
    return chosen[np.argsort(mixed(numbers.content_low[chosen]), kind="stable")]


@dataclass(frozen=True)
class _Split:
    name: str
    lost: Lost
    classes: Classes | None
    lengths: list[int]  # of examples before they are cut, which all splits add to


def _encode(
    work: TaskWork, encoder: SampleEncoder, chosen: Iterable[Sample], split: _Split
) -> dict[str, int]:
    """The counts of the split. What turns out to be of no use is taken from what was kept."""
    cuts = Cuts(work.context, encoder, is_text=work.reading.task_format == "text")
    with SplitWriter(work.folder, split.name, work.tokenizer.vocab) as writer:
        for samples in _batches(chosen):
            for sample, documents in zip(samples, encoder.documents(samples), strict=True):
                try:
                    if isinstance(documents, Unusable):
                        raise documents
                    label = split.classes.number(sample, split.name) if split.classes else None
                    if not cuts.is_text:
                        split.lengths.append(total(documents))
                    written = cuts.fitted(sample, documents)
                except Unusable as why:
                    split.lost.count.kept -= 1
                    split.lost.add(sample.place, why)
                    continue
                rejected = _told(work, sample, written, 1) if sample.is_pair else None
                texts = _texts(work, sample, written)
                writer.add(Written(sample.id, sample.group, *texts, written, label, rejected))
    return {**writer.total, **cuts.total}


def _texts(work: TaskWork, sample: Sample, written: Documents) -> tuple[str, str]:
    """Prompt and answer."""
    if work.reading.task_format == "text":
        return "", sample.texts[0]
    return sample.prompt, _told(work, sample, written, 0)


def _told(work: TaskWork, sample: Sample, written: Documents, number: int) -> str:
    """An answer; of a pair, 1 is the rejected one. A call of a tool is told as the template writes it: so a
    model answers."""
    if not sample.ends_in_call(number):
        return sample.answer(number)
    tokens, spans = written[number]
    answer = work.tokenizer.engine.decode(list(tokens[spans[-1][0] :]), skip_special_tokens=True)
    return str(answer).strip()


def _template(work: TaskWork, encoder: SampleEncoder) -> dict[str, Any] | None:
    if not work.reading.is_templated or encoder.end is None:
        return None
    end_id = work.tokenizer.engine.token_to_id(encoder.end)
    return {
        "name": work.template.name,
        "xxh3_128": work.template.xxh3_128,
        "end": encoder.end,
        "end_id": end_id,
    }


def _write_tokenizer(work: TaskWork, encoder: SampleEncoder) -> None:
    """With the template that it was used with, else its own; `turn_end_token` says that one was used."""
    more = {}
    own = own_template(work.tokenizer_path)
    if work.reading.is_templated and encoder.end is not None:
        more = {"chat_template": work.template.source, "turn_end_token": encoder.end}
    elif own is not None:
        more = {"chat_template": own}
    write_text(work.folder / "tokenizer.json", work.tokenizer.text)
    write_text(work.folder / "tokenizer_config.json", work.tokenizer.config_text(more))


def _sample(stored: Stored) -> Sample:
    return Sample.from_text(stored.text or "")


def _samples(spool: Spool, order: Numbers, begins: dict[int, int]) -> Iterator[Sample]:
    for number, stored in zip(order.tolist(), spool.read(order), strict=True):
        sample = _sample(stored)
        yield replace(sample, common=begins[number]) if number in begins else sample


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for one in samples:
        batch.append(one)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
