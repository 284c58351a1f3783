"""Prepared data, opened: what training, evaluation and reports read. No engine of building is here.

data/<hash>/   manifest.json   tokenizer.json   tokenizer_config.json
               tokens/<nn-source>/<split>-<nnnnn>.{bin,idx,parquet}     pre-training: a shard a part
               tokens/<split>-00000.{bin,idx,jsonl}                     a task
               samples.jsonl                                            of what was kept and what was left out
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bessemer.data.mixed_rows import MixedRows
from bessemer.data.mixture import Mixture, MixtureStage, planned_stages
from bessemer.data.rows import PackedRows, Rows, StreamRows, pad_id_of
from bessemer.data.tokens.shards import Shard, Stream
from bessemer.errors import DataError
from bessemer.recipe.schema import Data
from bessemer.rundir import read_object

FORMAT = 2  # raise it whenever the same recipe and inputs would give other tokens
Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Prepared:
    """Pre-training data. Token counts include begin and end of documents."""

    folder: Path
    manifest: dict[str, Any]

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

    def rows(self, split: Split, context: int) -> MixedRows:
        """Validation rows are in an order in which the first are like all; training rows by source."""
        pad_id = pad_id_of(self.manifest["tokenizer"])
        sources = [StreamRows(stream, context, pad_id) for stream in self.streams(split)]
        names = [source["name"] for source in self.manifest["sources"]]
        return MixedRows(sources, names, in_order=split == "validation")

    def stages(self, data: Data, context: int) -> list[MixtureStage]:
        """The mixture that a recipe asks for."""
        sources = self.manifest["sources"]
        rows = [-(-source["splits"]["train"]["tokens"] // context) for source in sources]
        return planned_stages(
            data, [source["splits"]["train"]["tokens"] for source in sources], rows, context
        )

    def mixture(self, data: Data, context: int) -> Mixture:
        return Mixture(self.stages(data, context))


@dataclass(frozen=True)
class Example:
    id: str
    prompt: str
    answer: str
    prompt_ids: list[int]  # with the begin token; the middle is cut where the context is too short
    answer_ids: list[int]  # with the end token


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

    def num_examples(self, split: Split) -> int:
        return int(self.manifest["splits"][split]["examples"])

    def rows(self, split: Split, context: int, examples: int | None = None) -> Rows:
        """The first `examples` examples, or all, packed whole."""
        prompt_tokens = [row[4] for row in self.lines(split)]
        pad_id = pad_id_of(self.manifest["tokenizer"])
        return PackedRows(self._shard(split), prompt_tokens, context, pad_id, examples)

    def examples(self, split: Split) -> list[Example]:
        shard, found = self._shard(split), []
        for number, (name, _, prompt, answer, prompt_tokens) in enumerate(self.lines(split)):
            ids = shard.document(number).tolist()
            found.append(Example(name, prompt, answer, ids[:prompt_tokens], ids[prompt_tokens:]))
        return found

    def lines(self, split: Split) -> Sequence[Any]:
        """[id, group, prompt, answer, prompt tokens] of each example, in the order of the tokens."""
        text = (self.folder / "tokens" / f"{split}-00000.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    def _shard(self, split: Split) -> Shard:
        return Shard(self.folder / "tokens" / f"{split}-00000")


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
