"""A round of sampled answers on disk: chunks while it is made, then a folder that appears whole.

    .rollouts-00002/   chunk-00000.npz …    being made; a chunk is written whole, or not at all
    rollouts-00002/    + rewards.npz  answers.jsonl  manifest.json

manifest.json has the figures of the round and each file's hash, which is checked when the round is read.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer

from bessemer.durable import atomic_file, file_hash, publish_folder, write_json, write_text
from bessemer.errors import DataError
from bessemer.finetune.answer_rows import Answer, Array
from bessemer.rundir import read_object

_LOOK_S, _SEEN_S = 0.05, 120.0


@dataclass(frozen=True)
class Prompt:
    id: str
    ids: list[int]
    text: str
    expected: str


@dataclass(frozen=True)
class Drawn:
    """An answer to a prompt, as it is rewarded."""

    prompt: Prompt
    answer: Answer
    ended: bool  # by its end token, not by the limit
    text: str


Columns = Mapping[str, Array]  # over all trained tokens, one answer after the other
Rewards = Callable[[Sequence[Drawn]], tuple[Columns, list[float] | None, dict[str, Any]]]


class RoundFolder:
    def __init__(self, stage: Path, round_: int) -> None:
        self.round, self.name = round_, f"rollouts-{round_:05d}"
        self.final, self._building = stage / self.name, stage / f".{self.name}"

    def missing(self, num_chunks: int) -> dict[str, Any]:
        """Whether it is there, and else which chunks are not."""
        if (self.final / "manifest.json").is_file():
            return {"done": True, "chunks": []}
        return {"done": False, "chunks": [k for k in range(num_chunks) if not self._chunk(k).is_file()]}

    def write_chunk(self, number: int, answers: Sequence[Answer], columns: Columns) -> None:
        lengths = np.array([[len(answer.tokens), answer.prompt] for answer in answers], dtype=np.int32)
        tokens = np.concatenate([answer.tokens for answer in answers])
        with atomic_file(self._chunk(number)) as file:
            _save(file, {"lengths": lengths, "tokens": tokens, **_named(columns)})

    def publish(
        self,
        num_chunks: int,
        prompts: Sequence[Prompt],
        rewards: Rewards,
        tokenizer: Path,
        end_id: int | None,
    ) -> dict[str, Any]:
        """The first rank's, when all chunks are written: rewards all answers, and returns the figures."""
        self._see_all(num_chunks)
        for path in self._building.glob(".*.tmp"):  # of whoever was killed: every chunk is whole by now
            path.unlink()
        answers, _ = self._read_chunks(self._building)
        drawn = _drawn(prompts, answers, Tokenizer.from_file(str(tokenizer)), end_id)
        columns, values, own = rewards(drawn)
        with atomic_file(self._building / "rewards.npz") as file:
            _save(file, columns)
        write_text(self._building / "answers.jsonl", _lines(drawn, values))
        figures = {
            "answers": len(drawn),
            **own,
            "answer_tokens": float(np.mean([each.answer.trained for each in drawn])),
            "ended": float(np.mean([each.ended for each in drawn])),
        }
        # By name: an attempt that was killed before the folder appeared has left its own manifest.
        patterns = ("chunk-*.npz", "rewards.npz", "answers.jsonl")
        paths = [path for pattern in patterns for path in sorted(self._building.glob(pattern))]
        files = {path.name: file_hash(path) for path in paths}
        write_json(self._building / "manifest.json", {"round": self.round, **figures, "files": files})
        publish_folder(self._building, self.final)
        return figures

    def manifest(self) -> dict[str, Any]:
        found = read_object(self.final / "manifest.json")
        assert found is not None, f"{self.final} is not there"
        return found

    def read(self) -> tuple[list[Answer], dict[str, Array]]:
        """All answers, and the columns of their trained tokens. DataError where a file is damaged."""
        for name, digest in self.manifest()["files"].items():
            path = self.final / name
            if not path.is_file() or file_hash(path) != digest:
                raise DataError(
                    f"sampled answers are damaged: {path}",
                    found="other content than was written" if path.is_file() else "no such file",
                    wanted=f"hash {digest}",
                    fix="put the file back from a copy, or begin a new run with --run DIR",
                )
        answers, columns = self._read_chunks(self.final)
        with np.load(self.final / "rewards.npz") as rewards:
            return answers, {**columns, **rewards}

    def _chunk(self, number: int) -> Path:
        return self._building / f"chunk-{number:05d}.npz"

    def _see_all(self, num_chunks: int) -> None:
        """A network disk shows what another machine wrote after a moment."""
        end_s = time.monotonic() + _SEEN_S
        while missing := self.missing(num_chunks)["chunks"]:
            if time.monotonic() > end_s:
                raise DataError(
                    "the first rank does not see answers that another one wrote",
                    found=f"no {self._chunk(missing[0])}, {len(missing)} of {num_chunks} missing",
                    wanted="one run directory for all ranks, on a disk that every machine mounts",
                    fix="give a shared folder with --run DIR",
                )
            time.sleep(_LOOK_S)

    def _read_chunks(self, folder: Path) -> tuple[list[Answer], dict[str, Array]]:
        answers: list[Answer] = []
        columns: dict[str, list[Array]] = {}
        for path in sorted(folder.glob("chunk-*.npz")):
            with np.load(path) as chunk:
                ends = np.cumsum(chunk["lengths"][:, 0])
                documents = np.split(chunk["tokens"], ends[:-1])
                prompts = chunk["lengths"][:, 1].tolist()
                answers += [Answer(tokens, prompt) for tokens, prompt in zip(documents, prompts, strict=True)]
                for name in (name for name in chunk.files if name.startswith("column.")):
                    columns.setdefault(name.removeprefix("column."), []).append(chunk[name])
        return answers, {name: np.concatenate(parts) for name, parts in columns.items()}


def rounds_of(stage: Path) -> list[dict[str, Any]]:
    """The figures of each round, without its files."""
    found = [read_object(path) or {} for path in sorted(stage.glob("rollouts-*/manifest.json"))]
    return [{name: value for name, value in each.items() if name != "files"} for each in found]


def _drawn(
    prompts: Sequence[Prompt], answers: Sequence[Answer], tokenizer: Tokenizer, end_id: int | None
) -> list[Drawn]:
    told = [answer.tokens[answer.prompt :].tolist() for answer in answers]
    ended = [ids[-1] == end_id for ids in told]
    texts = tokenizer.decode_batch(
        [ids[:-1] if end else ids for ids, end in zip(told, ended, strict=True)], skip_special_tokens=True
    )
    texts = [text.strip() for text in texts]  # a template may leave the blank before an answer to the model
    return [Drawn(*each) for each in zip(prompts, answers, ended, texts, strict=True)]


def _lines(drawn: Sequence[Drawn], values: list[float] | None) -> str:
    rows = []
    for number, each in enumerate(drawn):
        row: dict[str, Any] = {"id": each.prompt.id, "prompt": each.prompt.text, "answer": each.text}
        row |= {"expected": each.prompt.expected, "ended": each.ended}
        rows.append(row if values is None else {**row, "reward": values[number]})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _named(columns: Columns) -> dict[str, Array]:
    return {f"column.{name}": values for name, values in columns.items()}


def _save(file: BinaryIO, arrays: Columns) -> None:
    np.savez(file, allow_pickle=False, **arrays)
