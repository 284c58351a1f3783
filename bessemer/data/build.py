"""Prepare pre-training data: from raw sources to shards. Read this file top to bottom.

    cut        sources into parts: files, ranges of files, ranges of tables
    documents  each part: read, cleaned, measured            by workers, cached (factory/stages.py)
    decide     where each row goes, before anything is learnt from a text       (factory/decide.py)
    tokenizer  words counted by workers, merged here; or the recipe's own
    encode     each part to a shard of its own               by workers, cached (factory/encode.py)
    publish    shards linked under the folder of this data, and what is told    (factory/link.py)

What a worker has written stays in the store's stages/ and is found by the next build: one that was killed,
one with a source more, one with another threshold.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from bessemer.data.factory.columns import read_texts
from bessemer.data.factory.decide import SPLITS, TRAIN, VALIDATION, Deciding, Decisions, decide
from bessemer.data.factory.encode import encoded
from bessemer.data.factory.engines import Engine, Local, Progress, Task
from bessemer.data.factory.how import How
from bessemer.data.factory.keys import PartFiles, key, part_files
from bessemer.data.factory.link import link_shards, sum_counts
from bessemer.data.factory.settings import shared_settings, stage_settings
from bessemer.data.factory.told import told_sources, write_samples
from bessemer.data.folders import in_use
from bessemer.data.ledger import check_kept, nothing_held_out
from bessemer.data.snapshots import cut_source
from bessemer.data.sources.parts import Input
from bessemer.data.task.templates import own_template
from bessemer.data.tokens.encoder import Encoder
from bessemer.data.tokens.learn import learn
from bessemer.data.tokens.tokenizer import TextTokenizer, word_level
from bessemer.durable import write_bytes, write_text
from bessemer.errors import DataError
from bessemer.hardware import usable_cores
from bessemer.log import Console
from bessemer.recipe.schema import Recipe, Source

_WORKER_BYTES = 3 << 30  # private memory that a worker may take: more is a document that unfolds
_SAMPLE_TEXTS = 100  # of each source, for the comparison of encoders
_WIDE_BYTES = 512 << 20  # for duplicates, beyond which they spill to disk


@dataclass(frozen=True)
class Work:
    """What the steps of one build share."""

    recipe: Recipe
    base: Path
    inputs: Sequence[Sequence[Input]]  # of each source
    ready: TextTokenizer | None
    store: Path
    folder: Path
    how: How
    console: Console
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def sources(self) -> list[Source]:
        return self.recipe.data.source

    @property
    def stages(self) -> Path:
        return self.store.resolve() / "stages"


def build(work: Work) -> dict[str, Any]:
    """Write tokenizer.json and tokens/ into the folder. Returns the manifest's own part."""
    with in_use(work.stages):
        return _built(work)


def _built(work: Work) -> dict[str, Any]:
    engine = _engine(work)
    try:
        with _timed(work, "documents_s"):
            parts = _documents(work, engine)
        with _timed(work, "decide_s"):
            decisions = _decide(work, parts)
            sources = told_sources(work.sources, parts, decisions)
            for told in sources:
                check_kept(told)
            _check_trained(decisions)
        with _timed(work, "tokenizer_s"):
            learnt = work.ready or _learn(work, engine, parts, decisions)
            write_text(work.folder / "tokenizer.json", learnt.text)
            path = work.recipe.tokenizer.path
            own = own_template(work.base / path) if path is not None else None
            more = {} if own is None else {"chat_template": own}
            write_text(work.folder / "tokenizer_config.json", learnt.config_text(more))
        with _timed(work, "encode_s"):
            encoded = _encode(work, engine, parts, decisions, learnt)
    finally:
        engine.close()
    link_shards(work.folder, parts, sources, encoded)
    write_samples(work.folder / "samples.jsonl", work.sources, parts, decisions)
    splits = {name: sum_counts([source["splits"][name] for source in sources]) for name in SPLITS}
    note = nothing_held_out(work.recipe.data.validation, splits)
    if note is not None:
        work.console.line(note)
    return {
        "tokenizer": learnt.description(),
        "splits": splits,
        "sources": sources,
        "timings_s": work.timings,
    }


def _engine(work: Work) -> Engine:
    if work.how.engine == "ray":
        # Ray is the user's own; who has none needs none.
        from bessemer.data.factory.on_ray import OnRay

        return OnRay(work.stages, work.how.workers, _WORKER_BYTES, work.how.timeout_s)
    return Local(work.how.workers or usable_cores(), _WORKER_BYTES, work.how.timeout_s)


def _documents(work: Work, engine: Engine) -> list[PartFiles]:
    """Every part of every source, behind the stages that it goes through."""
    parts, tasks = [], []
    shared = shared_settings(work.recipe, work.base, work.stages, work.console)
    for number, (source, inputs) in enumerate(zip(work.sources, work.inputs, strict=True)):
        settings = stage_settings(work.recipe, source, work.base, shared)
        for part in cut_source(source, inputs, work.store):
            one = part_files(number, source, part, settings, work.stages)
            parts.append(one)
            if not all(path.exists() for path in one.files.values()):
                tasks.append(_document_task(source, one, settings))
    if tasks:
        engine.run(tasks, Progress(work.console, "reading", tasks))
    return parts


def _document_task(source: Source, one: PartFiles, settings: dict[str, Any]) -> Task:
    return {
        "kind": "documents",
        "name": f"{source.name}: {one.part.inputs[0].name}",
        "size_bytes": one.size_bytes,
        "source": source.model_dump(mode="json", exclude_unset=True),  # what was said is known by it
        "part": one.part.to_json(),
        "settings": settings,
        "files": {name: str(path) for name, path in one.files.items()},
    }


def _decide(work: Work, parts: Sequence[PartFiles]) -> Decisions:
    clean = work.recipe.data.clean
    how = Deciding(
        sources=work.sources,
        clean=clean,
        validation=work.recipe.data.validation,
        vocab=work.ready.vocab if work.ready else work.recipe.tokenizer.vocab,
        folder=work.folder / "wide",
        memory_bytes=_WIDE_BYTES,
    )
    how.folder.mkdir()
    try:
        return decide(parts, how)
    finally:
        shutil.rmtree(how.folder, ignore_errors=True)


def _check_trained(decisions: Decisions) -> None:
    """Every source kept something; of all that, something must be left to train on."""
    num_held = sum(int((fates == VALIDATION).sum()) for fates in decisions.fates)
    if not any((fates == TRAIN).any() for fates in decisions.fates):
        raise DataError(
            "no document is left to train on",
            found=f"{num_held} documents, all held out",
            wanted="documents of two groups or more",
            fix="set data.validation = 0, or give the sources a finer `group`",
        )


def _learn(work: Work, engine: Engine, parts: Sequence[PartFiles], decisions: Decisions) -> TextTokenizer:
    """From all documents that are trained on: memory goes with distinct words, not with the text."""
    vocab = work.recipe.tokenizer.vocab
    if all(source.kind == "tokens" for source in work.sources):
        return word_level(vocab)
    counted, tasks = [], []
    for one, mask in _masked(work, parts, decisions):
        if not (mask.fates == TRAIN).any():
            continue
        known = key("words", one.keys["clean"], mask.hash)
        path = work.stages / "words" / known[:2] / f"{known}.arrow"
        counted.append(path)
        if not path.exists():
            files = {name: str(one.files[name]) for name in ("read", "clean")}
            files |= {"mask": str(mask.path), "words": str(path)}
            name = f"words of {one.part.inputs[0].name}"
            task = {"kind": "words", "name": name, "size_bytes": one.size_bytes, "files": files}
            tasks.append({**task, "split": TRAIN})
    if tasks:
        engine.run(tasks, Progress(work.console, "counting words", tasks))
    path = (
        work.stages / "tokenizer" / f"{key('tokenizer', '', [[path.name for path in counted], vocab])}.json"
    )
    if not path.exists():
        write_text(path, learn(counted, vocab, work.console).text)
    return TextTokenizer.read(path)


def _encode(
    work: Work, engine: Engine, parts: Sequence[PartFiles], decisions: Decisions, learnt: TextTokenizer
) -> list[dict[str, Any]]:
    """A folder of shards for each part. Returns what each says of itself, with its `folder`."""
    special = learnt.description()
    tokenizer_path = work.stages / "tokenizer" / f"{special['xxh3_128']}.json"
    if not tokenizer_path.exists():
        write_text(tokenizer_path, learnt.text)
    tasks: list[Task] = []
    for one, mask in _masked(work, parts, decisions):
        source = work.sources[one.source]
        about = {"source": source.name, "licence": source.licence, "language": one.keys.get("language")}
        known = key("tokens", one.keys["clean"], [mask.hash, special, about])
        files = {name: str(path) for name, path in one.files.items() if name in ("read", "clean", "language")}
        tasks.append(
            {
                "kind": "encode",
                "name": f"tokens of {one.part.inputs[0].name}",
                "size_bytes": one.size_bytes,
                "files": {**files, "mask": str(mask.path), "tokenizer": str(tokenizer_path)},
                "folder": str(work.stages / "tokens" / known[:2] / known),
                "special": special,
                "splits": SPLITS,
                **about,
            }
        )
    missing = [task for task in tasks if encoded(Path(task["folder"])) is None]
    if missing:
        fast = _may_be_fast(work, parts, learnt)
        engine.run([{**task, "fast": fast} for task in missing], Progress(work.console, "encoding", missing))
    return [{"folder": Path(task["folder"]), **(encoded(Path(task["folder"])) or {})} for task in tasks]


def _may_be_fast(work: Work, parts: Sequence[PartFiles], learnt: TextTokenizer) -> bool:
    """Whether the fast encoder stands the comparison, on the first texts of each source and on odd ones."""
    firsts = {one.source: one for one in reversed(parts) if work.sources[one.source].kind != "tokens"}
    samples: list[str] = []
    for one in firsts.values():
        batch = next(read_texts(one.files["read"], one.files["clean"]), None)
        samples += [] if batch is None else batch["text"][:_SAMPLE_TEXTS].drop_null().to_pylist()
    if not firsts:
        return False  # there is no text to encode
    encoder = Encoder.proven(learnt, samples)
    if encoder.slow_because is not None:
        work.console.line(f"data: encoding with `tokenizers`, as the fast encoder {encoder.slow_because}")
    return encoder.slow_because is None


@dataclass(frozen=True)
class _Mask:
    """Where the rows of a part go, as a file that workers read."""

    fates: "np.ndarray[Any, np.dtype[np.uint8]]"
    hash: str
    path: Path


def _masked(
    work: Work, parts: Sequence[PartFiles], decisions: Decisions
) -> Iterator[tuple[PartFiles, _Mask]]:
    """Why a row was left out is nothing to a shard: all such reasons are one here."""
    for one, fates in zip(parts, decisions.fates, strict=True):
        content = np.minimum(fates, VALIDATION + 1).tobytes()
        known = xxhash.xxh3_128_hexdigest(content)
        path = work.stages / "masks" / known[:2] / known
        if not path.exists():
            write_bytes(path, content)
        yield one, _Mask(fates, known, path)


@contextmanager
def _timed(work: Work, name: str) -> Iterator[None]:
    begin_s = time.monotonic()
    yield
    work.timings[name] = round(time.monotonic() - begin_s, 3)
