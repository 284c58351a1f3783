"""Prepared data, opened: what training, evaluation and reports read. No engine of building is here.

data/<hash>/   manifest.json   tokenizer.json   tokenizer_config.json
               tokens/<nn-source>/<split>-<nnnnn>.{bin,idx,parquet}     pre-training: a shard a part
               tokens/<split>-00000.{bin,idx,jsonl}                     a task
               samples.jsonl                                            of what was kept and what was left out
               energy.json   energy.claimed                             what that took (metering/beside.py)
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bessemer.data.format import FORMAT
from bessemer.data.mixed_rows import MixedRows
from bessemer.data.mixture import Mixture, MixtureStage, planned_stages, with_replay
from bessemer.data.packed_rows import NO_EXTRA, Extra, Marks, PackedRows
from bessemer.data.rows import StreamRows, pad_id_of
from bessemer.data.tokens.shards import Offsets, Shard, Stream
from bessemer.errors import DataError
from bessemer.recipe.schema import Data
from bessemer.rundir import read_object

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Replayed:
    """Earlier data that a run reads beside its own. weights: of each of its sources, with what it replays."""

    data: "Prepared"
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Prepared:
    """Pre-training data. Token counts include begin and end of documents, and nothing that is replayed."""

    folder: Path
    manifest: dict[str, Any]
    replayed: Replayed | None = None

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def hash(self) -> str:
        return str(self.manifest["hash"])

    @property
    def vocab(self) -> int:
        return int(self.manifest["tokenizer"]["vocab"])

    @property
    def bos_id(self) -> int | None:
        bos_id = self.manifest["tokenizer"]["bos_id"]
        return None if bos_id is None else int(bos_id)

    @property
    def eos_id(self) -> int:
        return int(self.manifest["tokenizer"]["eos_id"])

    @property
    def train_tokens(self) -> int:
        return int(self.manifest["splits"]["train"]["tokens"])

    @property
    def validation_tokens(self) -> int:
        return int(self.manifest["splits"]["validation"]["tokens"])

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out text: what bits per byte divides by."""
        return int(self.manifest["splits"]["validation"]["bytes"])

    def samples(self) -> list[dict[str, Any]]:
        """A few rows of each fate of each source, the beginning of their texts."""
        text = (self.folder / "samples.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    def stems(self, split: Split) -> list[list[Path]]:
        """The shards of each source, in their order, without ending."""
        return [
            [self.folder / stem for stem in source["shards"][split]] for source in self.manifest["sources"]
        ]

    def streams(self, split: Split) -> list[Stream]:
        """Of each source."""
        return [Stream([Shard(stem) for stem in stems]) for stems in self.stems(split)]

    def named_streams(self, split: Split) -> list[tuple[str, Stream]]:
        """Of each source, in training then of each one that is replayed. Their names decide their order."""
        names = [source["name"] for source in self.manifest["sources"]]
        own = list(zip(names, self.streams(split), strict=True))
        if self.replayed is None or split == "validation":
            return own
        return [*own, *((f"replay of {name}", old) for name, old in self.replayed.data.named_streams(split))]

    def rows(self, split: Split, context: int) -> MixedRows:
        """Validation rows are in an order in which the first are like all; training rows by source."""
        pad_id = pad_id_of(self.manifest["tokenizer"])
        named = self.named_streams(split)
        sources = [StreamRows(stream, context, pad_id) for _, stream in named]
        return MixedRows(sources, [name for name, _ in named], in_order=split == "validation")

    def stages(self, data: Data, context: int) -> list[MixtureStage]:
        """The mixture that a recipe asks for."""
        sources = self.manifest["sources"]
        rows = [-(-source["splits"]["train"]["tokens"] // context) for source in sources]
        tokens = [source["splits"]["train"]["tokens"] for source in sources]
        stages = planned_stages(data, tokens, rows, context)
        if self.replayed is None:
            return stages
        assert data.replay is not None, f"{self.folder} with data to replay, and a recipe without"
        return with_replay(stages, data.replay.share, self.replayed.weights)

    def mixture(self, data: Data, context: int) -> Mixture:
        return Mixture(self.stages(data, context))


@dataclass(frozen=True)
class Example:
    """What evaluation needs of an example. Of a class: `prompt_ids` is the whole text, `answer` its label."""

    id: str
    prompt: str
    answer: str  # of a pair the chosen one
    prompt_ids: list[int]  # up to the last answer, as the model gets them: what is too long is cut already
    answer_ids: list[int]  # with the end token
    label: int | None = None
    rejected: str | None = None
    rejected_ids: list[int] | None = None


@dataclass(frozen=True)
class PreparedTask:
    """A fine-tuning task."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def hash(self) -> str:
        return str(self.manifest["hash"])

    @property
    def task_format(self) -> str:
        """What a row of the source was: FinetuneData.format, never "auto"."""
        return str(self.manifest.get("task_format", "prompt"))

    @property
    def labels(self) -> list[str]:
        """Classification: the names, by number."""
        return [str(name) for name in self.manifest.get("labels") or []]

    def label_counts(self, split: Split) -> list[int]:
        """Examples of each label."""
        return [int(count) for count in self.manifest["label_counts"][split]]

    def stop_id(self, eos_id: int | None) -> int | None:
        """The token that an answer ends with: the one that closes a turn of the template."""
        template = self.manifest.get("template")
        return eos_id if template is None else int(template["end_id"])

    def num_examples(self, split: Split) -> int:
        return int(self.manifest["splits"][split]["examples"])

    def num_documents(self, split: Split) -> int:
        """More than examples where an example has several."""
        counts = self.manifest["splits"][split]
        return int(counts.get("documents", counts["examples"]))

    def rows(
        self, split: Split, context: int, examples: int | None = None, extra: Extra = NO_EXTRA
    ) -> PackedRows:
        """The first `examples` examples, or all, packed whole."""
        return PackedRows(
            self._shard(split),
            [_marks(line) for line in self._each_line(split)],  # not all at once: they hold the texts
            context,
            pad_id_of(self.manifest["tokenizer"]),
            examples,
            pairs=self.task_format == "preference",
            packing=bool(self.manifest.get("packing", True)),
            extra=extra,
        )

    def examples(self, split: Split) -> list[Example]:
        shard, found, first = self._shard(split), [], 0
        for line in self.lines(split):
            documents = [shard.document(first + k).tolist() for k in range(line["documents"])]
            first += len(documents)
            found.append(_example(line, documents, self.task_format))
        return found

    def lines(self, split: Split) -> list[dict[str, Any]]:
        """id, group, prompt, answer, documents, spans … of each example, in the order of the tokens."""
        return list(self._each_line(split))

    def _each_line(self, split: Split) -> Iterator[dict[str, Any]]:
        sizes = np.diff(self._shard(split).borders)
        with open(self.folder / "tokens" / f"{split}-00000.jsonl", encoding="utf-8") as file:
            for number, line in enumerate(file):
                row = json.loads(line)
                yield row if isinstance(row, dict) else _earlier_line(row, int(sizes[number]))

    def borders(self, split: Split) -> Offsets:
        """Where each document begins in the tokens of the split, and where the last one ends."""
        return self._shard(split).borders

    def _shard(self, split: Split) -> Shard:
        return Shard(self.folder / "tokens" / f"{split}-00000")


def _earlier_line(row: list[Any], length: int) -> dict[str, Any]:
    """Of data prepared before there was more than prompt and answer."""
    name, group, prompt, answer, prompt_tokens = row
    line = {"id": name, "group": group, "prompt": prompt, "answer": answer}
    return {**line, "documents": 1, "spans": [[[prompt_tokens, length]]]}


def _marks(line: dict[str, Any]) -> Marks:
    spans = tuple(tuple((begin, end) for begin, end in each) for each in line["spans"])
    return Marks(spans, line.get("label"))


def _example(line: dict[str, Any], documents: list[list[int]], task_format: str) -> Example:
    begins = [
        spans[-1][0] if spans else len(ids) for spans, ids in zip(line["spans"], documents, strict=True)
    ]
    first, begin = documents[0], begins[0]
    is_pair = task_format == "preference"
    return Example(
        line["id"],
        line["prompt"],
        line["answer"],
        first[:begin],
        first[begin:],
        line.get("label"),
        line.get("rejected"),
        documents[1][begins[1] :] if is_pair else None,
    )


def open_prepared(folder: Path) -> Prepared | PreparedTask:
    """Prepared data of either kind. A file that is not as the manifest says is a DataError."""
    manifest = read_object(folder / "manifest.json")
    if manifest is None or manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder} holds no prepared data",
            found="no manifest.json" if manifest is None else f"format {manifest.get('format')}",
            wanted=f"a folder that `bessemer data build` wrote, of format {FORMAT}",
            fix="run `bessemer data build RECIPE`, which prints the folder",
        )
    for name, file in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != file["bytes"]:
            raise DataError(
                f"prepared data is damaged: {path}",
                found="no such file" if size is None else f"{size} bytes",
                wanted=f"{file['bytes']} bytes",
                fix=f"remove the folder {folder} and run the same command again: it is built anew",
            )
    return (Prepared if manifest["kind"] == "pretrain" else PreparedTask)(folder, manifest)
