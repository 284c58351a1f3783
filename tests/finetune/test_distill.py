"""Distillation: what the teacher said is what it says of each example alone, and its student learns it."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making_runs import QUIET, curve, events, place, pretrained, write_recipe
from torch.nn import functional

from bessemer.checkpoint.folder import listed, step_of
from bessemer.checkpoint.load import load_model
from bessemer.data.prepared import PreparedTask, Split, open_prepared
from bessemer.data.rows import Rows
from bessemer.errors import CheckpointError, DataError, RecipeError
from bessemer.export.huggingface import export_huggingface
from bessemer.finetune import distill
from bessemer.finetune.rounds import RoundFolder
from bessemer.finetune.run import finetune
from bessemer.model.decoder import Decoder
from bessemer.recipe.load import load
from bessemer.rundir import read_object

TEACHER = ["pretrain.steps=10", "finetune.epochs=6", "finetune.lr=3e-3"]
STUDENT = ["pretrain.steps=4", "model.hidden=16", "model.ffn=24", "finetune.lr=3e-3", "finetune.top_k=7"]
SPLITS: tuple[Split, ...] = ("train", "validation")
TAUGHT = ['finetune.method="distill"', "finetune.teacher=teacher/finetune"]


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that knows the task, and a smaller model that has been trained for four steps."""
    folder = tmp_path_factory.mktemp("distill")
    write_recipe(folder, task=True)
    pretrained(folder, TEACHER[0], run="teacher")
    finetune(load(str(folder / "tiny.toml"), TEACHER), place(folder, "teacher"))
    pretrained(folder, *STUDENT[:3])
    return folder


@pytest.fixture
def folder(start_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(start_folder, tmp_path / "runs"))


def tuned(folder: Path, *settings: str, run: str = "run") -> dict[str, Any]:
    return finetune(load(str(folder / "tiny.toml"), [*STUDENT, *settings]), place(folder, run))


def taught(folder: Path, *settings: str) -> dict[str, Any]:
    return tuned(folder, *TAUGHT, *settings)


def test_what_the_teacher_said_is_what_it_says_of_each_example_alone(folder: Path) -> None:
    taught(folder)
    stage = folder / "run" / "finetune"
    teacher = model_of(folder / "teacher" / "finetune")
    for split in SPLITS:
        ids, log_probs = (np.load(stage / "teacher" / f"{split}.{name}.npy") for name in ("ids", "log_probs"))
        begin = 0
        for example in data_of(folder).examples(split):
            tokens = torch.tensor([*example.prompt_ids, *example.answer_ids])
            with torch.no_grad():
                wanted = teacher.logits(teacher(tokens[None]))[0].log_softmax(-1)
            first, last = begin + len(example.prompt_ids) - 1, begin + len(tokens) - 1
            wanted = wanted[len(example.prompt_ids) - 1 : -1]
            found = torch.tensor(log_probs[first:last])
            torch.testing.assert_close(found, wanted.topk(7).values, rtol=1e-4, atol=1e-4)
            picked = wanted.gather(1, torch.tensor(ids[first:last], dtype=torch.int64))
            torch.testing.assert_close(found, picked, rtol=1e-4, atol=1e-4)
            begin += len(tokens)
        assert begin == len(ids)


@pytest.mark.slow
def test_a_hugging_face_teacher_says_the_same(folder: Path) -> None:
    out = folder / "hf"
    export_huggingface(folder / "teacher" / "finetune", out, step=None, dtype=None, console=QUIET)
    taught(folder)
    said = np.load(folder / "run" / "finetune" / "teacher" / "train.log_probs.npy")
    shutil.rmtree(folder / "run" / "finetune")
    taught(folder, f"finetune.teacher={out}")
    again = np.load(folder / "run" / "finetune" / "teacher" / "train.log_probs.npy")
    np.testing.assert_allclose(again, said, atol=1e-5)


def test_a_teacher_that_was_interrupted_goes_on_where_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(folder)
    whole = np.load(folder / "run" / "finetune" / "teacher" / "train.log_probs.npy")
    shutil.rmtree(folder / "run" / "finetune")
    asked = []
    likeliest = distill.likeliest

    def interrupted(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return likeliest(*arguments)

    monkeypatch.setattr(distill, "_NOTE_ROWS", 1)
    monkeypatch.setattr(distill, "likeliest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        taught(folder)
    assert not (folder / "run" / "finetune" / "teacher").exists()
    before = len(asked)
    taught(folder)
    again = np.load(folder / "run" / "finetune" / "teacher" / "train.log_probs.npy")
    np.testing.assert_array_equal(again, whole)
    turns = -(-len(open_rows(folder)) // 8)
    assert len(asked) - before == turns - 3 + 2  # the rows that were left, and two passes of held-out ones


def test_on_policy_the_teacher_judges_what_the_student_wrote(folder: Path) -> None:
    document = taught(folder, "finetune.on_policy=true", "finetune.answer_tokens=6", "finetune.rounds=2")
    stage = folder / "run" / "finetune"
    teacher = model_of(folder / "teacher" / "finetune")
    answers, columns = RoundFolder(stage, 1).read()
    assert len(document["rounds"]) == 2 and not events(stage, "diverged")
    begin = 0
    for answer in answers[:10]:
        tokens = torch.tensor(answer.tokens, dtype=torch.int64)
        with torch.no_grad():
            log_probs = teacher.logits(teacher(tokens[None]))[0].log_softmax(-1)[answer.prompt - 1 : -1]
        found = torch.tensor(columns["teacher_log_probs"][begin : begin + answer.trained])
        torch.testing.assert_close(found, log_probs.topk(7).values, rtol=1e-4, atol=1e-4)
        begin += answer.trained
    assert {path.name for path in (stage / "teacher").iterdir()} == {
        "teacher.json", "validation.ids.npy", "validation.log_probs.npy"}  # fmt: skip


def test_the_loss_of_a_step_is_torchs_kl_div_over_its_tokens(folder: Path) -> None:
    """With the whole vocabulary; one step over all rows, so that each example counts once."""
    taught(folder, "finetune.top_k=400", "finetune.batch_tokens=1536", "finetune.epochs=1")
    assert len(open_rows(folder)) * 32 == 1536
    total = distance(folder, "run/pretrain", "train")
    count = sum(len(example.answer_ids) for example in data_of(folder).examples("train"))
    (only,) = curve(folder / "run" / "finetune")
    assert only[1] == pytest.approx(total / count, rel=1e-5)


def test_a_teacher_with_another_tokenizer_is_refused(folder: Path) -> None:
    path = folder / "teacher" / "finetune" / "tokenizer.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document, indent=7))  # the same, laid out in another way
    taught(folder)
    shutil.rmtree(folder / "run" / "finetune")
    document["model"]["vocab"] = {word: 299 - number for word, number in document["model"]["vocab"].items()}
    path.write_text(json.dumps(document))
    with pytest.raises(RecipeError, match="another tokenizer"):
        taught(folder)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"labels": 3}, "a head of 3"),
        ({"context": 16, "max_positions": None}, "finetune.context = 32, and .* at most 16"),
    ],
)
def test_a_teacher_that_cannot_say_a_next_word_of_such_rows_is_refused(
    folder: Path, changes: dict[str, Any], found: str
) -> None:
    path = folder / "teacher" / "finetune" / "stage.json"
    document = json.loads(path.read_text())
    document["shape"].update(changes)
    path.write_text(json.dumps(document))
    with pytest.raises(RecipeError, match=found):
        taught(folder)
    assert not (folder / "run" / "finetune").exists()


def test_without_held_out_examples_it_learns_all_the_same(folder: Path) -> None:
    loaded = load(str(folder / "tiny.toml"), [*STUDENT, *TAUGHT, "data.validation=0.0", "finetune.epochs=1"])
    document = finetune(loaded, place(folder, "other"), str(folder / "run"))
    stage = folder / "other" / "finetune"
    assert document["step"] == len(curve(stage)) > 0 and document["validation_loss"] is None
    assert not list((stage / "teacher").glob("validation.*"))


def test_the_teachers_memory_is_given_back_before_the_student_trains(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[weakref.ref[Decoder]] = []
    alive: list[bool] = []
    real = distill.origin_model

    def noted(*arguments: Any) -> Decoder:
        model = real(*arguments)
        teachers.append(weakref.ref(model))
        return model

    monkeypatch.setattr(distill, "origin_model", noted)
    monkeypatch.setattr(distill, "this_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: alive.append(teachers[0]() is not None))
    taught(folder, "finetune.epochs=1")
    assert len(teachers) == 1 and alive == [False]


def goes_on(folder: Path) -> None:
    """The stage has its last checkpoint still to make."""
    shutil.rmtree(listed(folder / "run" / "finetune")[0])


def test_what_the_teacher_said_is_read_as_it_was_written(folder: Path) -> None:
    taught(folder, "finetune.epochs=1")
    goes_on(folder)
    path = folder / "run" / "finetune" / "teacher" / "train.ids.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged: .*train\.ids\.npy"):
        taught(folder, "finetune.epochs=1")
    shutil.rmtree(path.parent)  # as the error says
    steps = len(curve(folder / "run" / "finetune"))
    assert taught(folder, "finetune.epochs=1")["step"] == steps


ON_POLICY = (
    "finetune.on_policy=true",
    "finetune.answer_tokens=6",
    "finetune.rounds=2",
    "finetune.teacher=teacher/pretrain",
)


def test_a_teacher_on_policy_stays_and_stays_the_same(folder: Path) -> None:
    steps = taught(folder, *ON_POLICY)["step"]
    goes_on(folder)
    shutil.rmtree(folder / "run" / "finetune" / "rollouts-00001")
    longer = ("pretrain.steps=12", "pretrain.keep=1", "pretrain.save_every=1")
    pretrained(folder, *TEACHER, *longer, run="teacher")
    assert [step_of(each) for each in listed(folder / "teacher" / "pretrain")] == [12, 10]
    manifest = listed(folder / "teacher" / "pretrain")[1] / "manifest.json"
    written = manifest.read_text()
    values = {**json.loads(written), "state": {}}
    values.pop("xxh3_128")
    manifest.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="asks another model"):
        taught(folder, *ON_POLICY)
    manifest.write_text(written)
    assert taught(folder, *ON_POLICY)["step"] == steps


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (['finetune.method="distill"'], "without finetune.teacher"),
        ([*TAUGHT, "finetune.rounds=3"], "the answers are those of the data"),
        (["finetune.top_k=3"], "finetune.top_k with method"),
    ],
)
def test_a_distillation_that_cannot_be_meant_is_refused(
    folder: Path, settings: list[str], found: str
) -> None:
    with pytest.raises(RecipeError, match=found):
        tuned(folder, *settings)


@pytest.mark.slow
def test_its_student_is_nearer_to_it_than_one_that_learnt_alone_in_equal_steps(folder: Path) -> None:
    """On held-out examples, with the same rows, rate and seed."""
    shutil.copytree(folder / "run", folder / "alone")
    taught(folder, "finetune.epochs=4")
    finetune(load(str(folder / "tiny.toml"), [*STUDENT[:-1], "finetune.epochs=4"]), place(folder, "alone"))
    losses = [row[1] for row in curve(folder / "run" / "finetune")]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert len(losses) == len(curve(folder / "alone" / "finetune"))
    found, alone = (distance(folder, f"{run}/finetune", "validation") for run in ("run", "alone"))
    assert found < alone


def data_of(folder: Path) -> PreparedTask:
    stage = read_object(folder / "run" / "finetune" / "stage.json")
    assert stage is not None
    data = open_prepared(Path(stage["data"]["folder"]))
    assert isinstance(data, PreparedTask)
    return data


def open_rows(folder: Path) -> Rows:
    return data_of(folder).rows("train", 32)


def model_of(stage: Path) -> Decoder:
    return load_model(stage, None, lambda _: None).model


def distance(folder: Path, student: str, split: Split) -> float:
    """Summed divergence from the teacher over the answers of a split, of all words, example by example."""
    models, total = [model_of(folder / stage) for stage in (student, "teacher/finetune")], 0.0
    for example in data_of(folder).examples(split):
        tokens, first = (
            torch.tensor([[*example.prompt_ids, *example.answer_ids]]),
            len(example.prompt_ids) - 1,
        )
        with torch.no_grad():
            ours, theirs = (model.logits(model(tokens))[0, first:-1].log_softmax(-1) for model in models)
        total += float(functional.kl_div(ours, theirs, reduction="sum", log_target=True))
    return total
