"""Rounds of sampled answers: killed at any moment they repeat nothing, and every layout samples alike."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making_processes import finish, start, wait_for
from making_runs import assert_same_training, place, pretrained, write_recipe

from bessemer.checkpoint.folder import listed, step_of
from bessemer.checkpoint.load import load_model
from bessemer.data.packed_rows import pack
from bessemer.errors import CheckpointError, DataError, RecipeError
from bessemer.finetune import rollouts, rounds
from bessemer.finetune.grpo import check_reference
from bessemer.finetune.rounds import RoundFolder, rounds_of
from bessemer.finetune.run import finetune
from bessemer.recipe.load import load
from bessemer.rundir import read_object, read_rows
from bessemer.train.stage import read_stage

GRPO = [
    "pretrain.steps=4",
    'finetune.method="grpo"',
    "finetune.group_size=4",
    "finetune.rounds=3",
    "finetune.epochs=1",
    "finetune.answer_tokens=20",
    "finetune.batch_tokens=512",
    "finetune.lr=1e-3",
    "finetune.reward_function=own:many_letters",
    "finetune.save_every=4",
]
REFERENCE = ("finetune.rounds=2", "finetune.beta=0.1")
OWN = """
def many_letters(prompt, answer, expected):
    return 0.1 * sum(letter.isalpha() for letter in answer)
"""


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its own reward, and a model that has been trained for four steps."""
    folder = tmp_path_factory.mktemp("rollouts")
    write_recipe(folder, task=True)
    (folder / "own.py").write_text(OWN)
    pretrained(folder, "pretrain.steps=4")
    return folder


@pytest.fixture
def folder(start_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(start_folder, tmp_path / "runs"))


def tuned(
    folder: Path, *more: str, run: str = "run", allow_code: bool = True, from_: str | None = None
) -> dict[str, Any]:
    where = place(folder, run)
    where = type(where)(where.run, where.store, where.console, allow_code)
    origin = None if from_ is None else str(folder / from_)
    return finetune(load(str(folder / "tiny.toml"), [*GRPO, *more]), where, origin)


def command(folder: Path, run: str, *more: str) -> list[str]:
    settings = [word for setting in [*GRPO, *more] for word in ("--set", setting)]
    return ["finetune", "tiny.toml", "--run", run, "--store", "data", "--allow-code", *settings]


def answers_of(stage: Path, number: int) -> list[dict[str, Any]]:
    text = (stage / f"rollouts-{number:05d}" / "answers.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_round_that_was_interrupted_goes_on_behind_its_last_chunk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "CHUNK_ANSWERS", 40)
    shutil.copytree(folder / "run", folder / "whole")
    steps = tuned(folder, run="whole")["step"]
    drawn = []
    real = rollouts.sample

    def sample(*arguments: Any, **options: Any) -> Any:
        drawn.append(arguments)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(rollouts, "sample", sample)
    with pytest.raises(KeyboardInterrupt):
        tuned(folder)
    assert tuned(folder)["step"] == steps
    chunks = len(list((folder / "run" / "finetune").glob("rollouts-*/chunk-*")))
    assert chunks > 6 and len(drawn) == chunks + 1  # each once, and the one that was interrupted
    assert_same_training(folder / "run" / "finetune", folder / "whole" / "finetune", steps)


@pytest.mark.slow
def test_killed_inside_and_between_rounds_it_repeats_nothing_and_loses_nothing(folder: Path) -> None:
    shutil.copytree(folder / "run", folder / "whole")
    tuned(folder, run="whole")
    stage = folder / "run" / "finetune"
    steps = read_object(folder / "whole" / "finetune" / "stage.json")["plan"]["steps"]  # type: ignore[index]
    second = RoundFolder(stage, 1)
    process = start(folder, *command(folder, "run"))
    chunk = stage / ".rollouts-00001" / "chunk-00000.npz"
    wait_for(process, lambda: chunk.is_file() or second.final.is_dir())
    process.kill()
    finish(process)
    kept = {path: path.read_bytes() for path in stage.glob("*rollouts-*/chunk-*")}
    assert kept
    process = start(folder, *command(folder, "run"))
    wait_for(process, second.final.is_dir)
    process.kill()
    finish(process)
    for path, content in kept.items():  # sampled once, however often the run began anew
        assert (stage / path.parent.name.removeprefix(".") / path.name).read_bytes() == content
    assert tuned(folder)["step"] == steps
    assert_same_training(stage, folder / "whole" / "finetune", steps)
    for number in range(3):
        assert answers_of(stage, number) == answers_of(folder / "whole" / "finetune", number)


def test_answers_are_drawn_by_the_models_own_probabilities_and_rewarded_in_groups(folder: Path) -> None:
    document = tuned(folder, "finetune.rounds=1")
    stage = folder / "run" / "finetune"
    answers, columns = RoundFolder(stage, 0).read()
    told = answers_of(stage, 0)
    assert len(answers) == len(told) == document["rounds"][0]["answers"]
    rewards = np.array([0.1 * sum(map(str.isalpha, each["answer"])) for each in told]).reshape(-1, 4)
    assert len({each["prompt"] for each in told}) == len(rewards)
    wanted = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    trained = [answer.trained for answer in answers]
    np.testing.assert_allclose(columns["advantage"], np.repeat(wanted.ravel(), trained), atol=1e-6)
    assert document["rounds"] == rounds_of(stage)
    assert document["rounds"][0]["reward"] == pytest.approx(rewards.mean())
    model = load_model(folder / "run" / "pretrain", None, lambda _: None).model  # which gave the answers
    alone = []
    for answer in answers[:20]:
        tokens = torch.tensor(answer.tokens, dtype=torch.int64)
        with torch.no_grad():
            log_probs = model.logits(model(tokens[None]))[0].log_softmax(-1)
        alone.append(log_probs[answer.prompt - 1 : -1].gather(1, tokens[answer.prompt :, None])[:, 0])
    count = sum(trained[:20])
    np.testing.assert_allclose(columns["old_log_probs"][:count], torch.cat(alone), atol=1e-5)


def test_with_a_beta_the_reference_is_the_model_it_began_from(folder: Path) -> None:
    tuned(folder, "finetune.rounds=2", "finetune.beta=0.1")
    stage = folder / "run" / "finetune"
    first, second = (RoundFolder(stage, number).read()[1] for number in range(2))
    np.testing.assert_allclose(first["reference_log_probs"], first["old_log_probs"], atol=1e-6)
    assert np.abs(second["reference_log_probs"] - second["old_log_probs"]).max() > 1e-4


def test_each_epoch_asks_every_prompt_once(folder: Path) -> None:
    tuned(folder, "finetune.epochs=2", "finetune.rounds=2", "finetune.group_size=2")
    stage = folder / "run" / "finetune"
    asked = [[each["id"] for each in answers_of(stage, number)[::2]] for number in range(2)]
    assert sorted(asked[0]) == sorted(asked[1]) and len(set(asked[0])) == len(asked[0])
    assert asked[0] != asked[1]


def test_own_reward_needs_permission_and_changes_nothing_without(folder: Path) -> None:
    before = sorted((folder / "run").rglob("*"))
    with pytest.raises(RecipeError, match="would run code of your own"):
        tuned(folder, allow_code=False)
    assert sorted((folder / "run").rglob("*")) == before


def test_damaged_answers_are_named(folder: Path) -> None:
    tuned(folder, "finetune.rounds=1")
    path = folder / "run" / "finetune" / "rollouts-00000" / "rewards.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"rewards\.npz"):
        RoundFolder(path.parents[1], 0).read()


def test_a_round_that_was_killed_before_it_appeared_is_whole_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(building: Path, final: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "publish_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            tuned(folder, "finetune.rounds=1")
    stage = folder / "run" / "finetune"
    building = stage / ".rollouts-00000"
    manifest = building / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"round"', '"earlier"'))  # such as with other figures
    (building / ".chunk-00000.npz.1.tmp").write_bytes(b"half")
    tuned(folder, "finetune.rounds=1")
    RoundFolder(stage, 0).read()
    names = {path.name for path in (stage / "rollouts-00000").iterdir()}
    chunks = {f"chunk-{number:05d}.npz" for number in range(3)}
    assert names == {*chunks, "answers.jsonl", "manifest.json", "rewards.npz"}


def test_a_reference_without_rows_for_added_tokens_is_refused(folder: Path) -> None:
    tuned(folder, "finetune.rounds=1", "finetune.beta=0.1")
    stage = read_stage(folder / "run" / "finetune")
    check_reference(stage)
    with pytest.raises(RecipeError, match="no rows for the tokens that are added"):
        check_reference(replace(stage, new_tokens=(300, 301)))
    without = replace(stage.plan, objective=replace(stage.plan.objective, beta=0.0))
    check_reference(replace(stage, plan=without, new_tokens=(300, 301)))


def test_tokens_are_those_of_the_rows_that_answers_fill(folder: Path) -> None:
    document = tuned(folder, "finetune.rounds=1", "finetune.answer_tokens=4", "finetune.batch_tokens=256")
    stage = folder / "run" / "finetune"
    plan = read_stage(stage).plan
    assert plan.objective.rollouts is not None
    lengths, size = (
        [len(answer.tokens) for answer in RoundFolder(stage, 0).read()[0]],
        plan.objective.rollouts.answers_per_step,
    )
    filled = [
        plan.context * len(pack(lengths[begin : begin + size], plan.context))
        for begin in range(0, len(lengths), size)
    ]
    rows = read_rows(stage / "metrics.jsonl")
    assert np.diff([0, *(row["tokens"] for row in rows)]).tolist() == filled
    assert sum(filled) == document["tokens"] < len(rows) * plan.batch_tokens  # some rows are empty
    for row, tokens in zip(rows, filled, strict=True):
        assert row["tokens_per_s"] == pytest.approx(tokens / row["step_time_s"])


def begun(folder: Path, run: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Killed when its second round is to be made."""
    real = rollouts.RolloutFeed._make

    def make(feed: Any, where: RoundFolder, missing: Any) -> None:
        if where.round == 1:
            raise KeyboardInterrupt
        real(feed, where, missing)

    with monkeypatch.context() as patch:
        patch.setattr(rollouts.RolloutFeed, "_make", make)
        with pytest.raises(KeyboardInterrupt):
            tuned(folder, *REFERENCE, *more, run=run, from_="run")


def test_another_reference_than_it_had_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(folder, "other", monkeypatch)
    manifest = listed(folder / "run" / "pretrain")[0] / "manifest.json"
    values = {**json.loads(manifest.read_text()), "state": {}}  # whole, and different
    values.pop("xxh3_128")
    manifest.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="asks another model"):
        tuned(folder, *REFERENCE, run="other")
    assert not (folder / "other" / "finetune" / "rollouts-00001").exists()


def test_the_run_that_a_reference_is_of_keeps_it_as_long_as_it_is_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(folder, "other", monkeypatch)
    more = [*GRPO, "pretrain.keep=1", "pretrain.save_every=1"]
    pretrained(folder, *more, "pretrain.steps=6")
    steps = [step_of(each) for each in listed(folder / "run" / "pretrain")]
    assert steps == [6, 4]
    assert tuned(folder, *REFERENCE, run="other")["attempts"] == 2
    shutil.rmtree(folder / "other")
    pretrained(folder, *more, "pretrain.steps=7")
    assert [step_of(each) for each in listed(folder / "run" / "pretrain")] == [7]


@pytest.mark.slow
def test_ranks_of_a_layout_sample_what_one_process_samples(folder: Path) -> None:
    shutil.copytree(folder / "run", folder / "ranks")
    one, many = (
        finish(start(folder, *command(folder, run, *more)))
        for run, more in (("run", []), ("ranks", ['parallel.layout="shard=2"']))
    )
    assert one[0] == many[0] == 0, (one, many)
    stages = [folder / run / "finetune" for run in ("run", "ranks")]
    for number in range(3):
        first, second = (answers_of(stage, number) for stage in stages)
        assert first == second


def test_sampling_is_a_phase_of_the_stages_energy_and_no_waiting_for_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent_s, real = [], rollouts.sample

    def sample(*arguments: Any, **options: Any) -> Any:
        begin_s = time.monotonic()
        answers = real(*arguments, **options)
        spent_s.append(time.monotonic() - begin_s)
        return answers

    monkeypatch.setattr(rollouts, "sample", sample)
    tuned(folder, "finetune.rounds=2")
    rows = read_rows(folder / "run" / "finetune" / "metrics.jsonl")
    told = rows[-1]["time_phases_s"]["sampling"]
    assert sum(spent_s) <= told < rows[-1]["time_s"]
    assert rows[-1]["energy_phases_j"]["sampling"] > 0.0
    assert rows[-1]["waiting_for_data_s"] < told
