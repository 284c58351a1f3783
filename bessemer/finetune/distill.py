"""The teacher of a distillation: asked about prepared examples before training, or about sampled answers.

Off policy it reads every example once, in the process that begins the stage, and what it says is kept as
arrays in the stage's folder (data/teacher.py): the ordinary loop then trains on rows with two columns
more, under any layout, without the teacher in memory. A pass that was killed goes on behind the last rows
that it noted.
On policy the answers are the model's own, round by round (rollouts.py), and each rank that samples asks the
teacher about them; held-out examples are still asked about once, for validation.
Only words that both models have are asked for: heads are padded to different sizes.
Cost: one forward pass of the teacher over the examples, once; on policy its weights on each rank.
Dims: N trained tokens, D hidden, V words of both, K kept.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from bessemer.checkpoint.needed import note_needs
from bessemer.data.prepared import PreparedTask, Split
from bessemer.data.rows import NO_LOSS, Rows
from bessemer.data.teacher import BUILDING, FOLDER, NAMES, taught_hashes, taught_path
from bessemer.durable import cannot_write, publish_folder, write_json
from bessemer.errors import RecipeError
from bessemer.finetune.answer_rows import Answer, Array, said_of, trained_states
from bessemer.finetune.models import ASKS, check_asked, origin_model
from bessemer.finetune.rollouts import Judge
from bessemer.finetune.rounds import Columns, Drawn
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.device import this_device
from bessemer.model.loss import chunks
from bessemer.rundir import read_object
from bessemer.train.first_weights import check_merged
from bessemer.train.origin import Origin, find_origin
from bessemer.train.stage import Stage

SETTING = "finetune.teacher"
_IDENTITY = (
    "normalizer",
    "pre_tokenizer",
    "model",
    "decoder",
    "added_tokens",
)  # what ids and texts follow from


@dataclass(frozen=True)
class Teacher:
    origin: Origin
    top_k: int

    def to_json(self) -> dict[str, Any]:
        return {"origin": self.origin.to_json(), "top_k": self.top_k}


def find_teacher(named: str | None, base: Path, top_k: int, tokenizer: Path, console: Console) -> Teacher:
    """RecipeError where there is none, or one with another tokenizer."""
    if named is None:
        raise RecipeError(
            "a distillation has no teacher",
            found='finetune.method = "distill" without finetune.teacher',
            wanted="a run or a Hugging Face folder to learn from",
            fix="set finetune.teacher=RUN",
        )
    beside = str(base / named)  # paths of a recipe are relative to its file; runs often are to where one is
    found = any(Path(path).exists() for path in (beside, beside.rpartition("@")[0]) if path)
    origin = find_origin(beside if found else named, console.line)
    check_merged(origin, SETTING)
    own, theirs = tokenizer_hash(tokenizer), tokenizer_hash(origin.tokenizer)
    if own != theirs:
        raise RecipeError(
            "the teacher has another tokenizer",
            found=f"{origin.tokenizer} of hash {theirs}",
            wanted=f"{own}, as {tokenizer}: words are compared one by one",
            fix="choose a teacher of the same family, or train the student with the teacher's tokenizer",
        )
    return Teacher(origin, min(top_k, origin.shape().vocab))


def check_teaches(origin: Origin, context: int) -> None:
    """RecipeError where it says no next word, or has not seen rows of the student's length."""
    shape = origin.shape()
    if shape.labels:
        raise RecipeError(
            "the teacher says classes or rewards, and no words",
            found=f"{origin.folder}: a head of {shape.labels} in place of the vocabulary's",
            wanted="a model that predicts the next word",
            fix=f"set {SETTING} to the run that it began from, or to another one",
        )
    if context > shape.longest_row:
        raise RecipeError(
            "the student's rows are longer than the teacher has seen",
            found=f"finetune.context = {context}, and {origin.folder} of at most {shape.longest_row}",
            wanted=f"at most {shape.longest_row}",
            fix=f"set finetune.context={shape.longest_row}, or choose a teacher of longer rows",
        )


def tokenizer_hash(path: Path) -> str:
    """Of what a tokenizer does with text, however its file is laid out."""
    document = json.loads(path.read_text(encoding="utf-8"))
    content = {name: document.get(name) for name in _IDENTITY}
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def has_answered(stage: Path) -> bool:
    """Whether the teacher of the stage in this folder has said all that it is asked before training."""
    return (stage / FOLDER / "teacher.json").is_file()


def ask_teacher(stage: Stage, teacher: Teacher, console: Console) -> None:
    """Write what it says of the examples, where that is not there yet."""
    final, building = stage.folder / FOLDER, stage.folder / BUILDING
    assert isinstance(stage.data, PreparedTask), stage.data
    splits: list[Split] = ["validation"] if stage.plan.objective.rollouts else ["train", "validation"]
    splits = [split for split in splits if stage.data.num_examples(split)]
    teacher = replace(teacher, origin=teacher.origin.hashed(stage.folder, ASKS))
    said = {**teacher.to_json(), "splits": splits}
    if read_object(building / "teacher.json") != said:
        shutil.rmtree(building, ignore_errors=True)
        write_json(building / "teacher.json", said)
    note_needs(stage.folder)
    model = origin_model(teacher.origin, stage.plan.dtype, console.line)
    for split in splits:
        rows = stage.data.rows(split, stage.plan.context, stage.examples if split == "train" else None)
        console.line(f"{stage.folder.name}: the teacher reads {len(rows):,} rows ({split})")
        _ask(
            model, rows, stage.data.borders(split), _Files(building, split, teacher.top_k), stage.shape.vocab
        )
    del model
    if this_device().type != "cpu":  # ranks of a layout are other processes, and need what a cache holds
        torch.accelerator.empty_cache()
    write_json(building / "teacher.json", {**said, "files": taught_hashes(building)})
    (building / _PROGRESS).unlink(missing_ok=True)
    publish_folder(building, final)


_PROGRESS = "progress.json"
_NOTE_ROWS = 256  # between notes of how far it has come


@dataclass(frozen=True)
class _Files:
    folder: Path
    split: str
    top_k: int

    def arrays(self, num_tokens: int) -> dict[str, Array]:
        """Open for writing; made where they are not there."""
        found: dict[str, Array] = {}
        for name, dtype in NAMES.items():
            path = taught_path(self.folder, self.split, name)
            mode: Any = "r+" if path.is_file() else "w+"
            try:
                found[name] = np.lib.format.open_memmap(path, mode, dtype, (num_tokens, self.top_k))
            except OSError as error:
                raise cannot_write(path, error) from error
        return found

    @property
    def done(self) -> int:
        """Rows that are on disk."""
        return int((read_object(self.folder / _PROGRESS) or {}).get(self.split, 0))

    def note(self, arrays: dict[str, Array], done: int) -> None:
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]
        noted = read_object(self.folder / _PROGRESS) or {}
        write_json(self.folder / _PROGRESS, {**noted, self.split: done})


def _ask(model: Decoder, rows: Rows, borders: Array, files: _Files, vocab: int) -> None:
    done = files.done
    fresh = done == 0
    if fresh:
        for name in NAMES:
            taught_path(files.folder, files.split, name).unlink(missing_ok=True)
    arrays, noted = files.arrays(int(borders[-1])), done
    for some, hidden_ND, _ in trained_states(model, rows, begin=done):
        places_N = np.concatenate([_places(rows, index, borders) for index in some])
        ids_NK, log_probs_NK = likeliest(model, hidden_ND, files.top_k, vocab)
        arrays["ids"][places_N], arrays["log_probs"][places_N] = ids_NK.cpu(), log_probs_NK.cpu()
        if some.stop - noted >= _NOTE_ROWS:
            noted = some.stop
            files.note(arrays, noted)
    files.note(arrays, len(rows))


def _places(rows: Rows, index: int, borders: Array) -> Array:
    """In the split's tokens, of those of a row that predict something, in their order."""
    targets_T, found = rows.row(index).targets_T, []
    for number, begin, end in rows.documents(index):
        assert end - begin == borders[number + 1] - borders[number], "an example is prepared to fit its row"
        found.append(np.flatnonzero(targets_T[begin:end] != NO_LOSS) + borders[number])
    return np.concatenate(found)


@torch.no_grad()
def likeliest(model: Decoder, hidden_ND: Tensor, top_k: int, vocab: int) -> tuple[Tensor, Tensor]:
    """(ids int32, log-probabilities fp32) [N, K] of the likeliest words, the likeliest first."""
    weight_VD = model.head_weight[:vocab].to(hidden_ND.dtype)
    ids, log_probs = [], []
    for some in chunks(hidden_ND.shape[0], weight_VD.shape[0]):
        top = (hidden_ND[some] @ weight_VD.T).float().log_softmax(-1).topk(top_k)
        ids.append(top.indices.to(torch.int32))
        log_probs.append(top.values)
    return torch.cat(ids), torch.cat(log_probs)


def distill_judge(stage: Stage, console: Console) -> Judge:
    """Of answers that the student gives itself."""
    noted = read_object(stage.folder / FOLDER / "teacher.json")
    assert noted is not None, f"{stage.folder} has no teacher"
    origin, top_k = Origin.from_json(noted["origin"]), int(noted["top_k"])
    assert origin is not None
    teacher: list[Decoder] = []  # read when it is asked for the first time

    def columns(_: Decoder, answers: Sequence[Answer]) -> Columns:
        if not teacher:
            teacher.append(origin_model(origin, stage.plan.dtype, console.line))

        def ask(hidden_ND: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            return likeliest(teacher[0], hidden_ND, top_k, stage.shape.vocab)

        ids, log_probs = said_of(teacher[0], answers, stage.plan.context, ask)
        return {"teacher_ids": ids, "teacher_log_probs": log_probs}

    def rewards(_: Sequence[Drawn]) -> tuple[Columns, None, dict[str, Any]]:
        return {}, None, {}

    return Judge(columns, rewards, lambda: check_asked(stage.folder, origin))
