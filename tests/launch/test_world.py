"""Which world the environment describes, which it does not, and what a worker reports."""

import json
from pathlib import Path

import pytest

from bessemer.errors import DataError, RecipeError
from bessemer.launch.world import WORKER, World, first_host, is_ours, report_failure, world_of_environment

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1(x3)",
    "SLURM_STEP_NODELIST": "node[07-09,12],login",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
}


def test_torchrun() -> None:
    assert world_of_environment(TORCHRUN) == World(5, 8, 1, 4, "node1", 29400)


def test_a_world_of_one_under_torchrun_is_a_world() -> None:
    alone = TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert world_of_environment(alone) == World(0, 1, 0, 1, "node1", 29400)


def test_slurm() -> None:
    world = world_of_environment(SLURM)
    assert world == World(5, 7, 0, 1, "node07", 10_000 + 4711 * 31 % 20_000)


def test_slurm_steps_and_jobs_one_after_the_other_meet_at_other_ports() -> None:
    found = [
        world_of_environment(SLURM | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
        for job in (100, 101, 102)
        for step in (0, 1, 2)
    ]
    assert len({world.port for world in found if world is not None}) == 9


def test_older_slurm_names_its_tasks_otherwise() -> None:
    older = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NUM_TASKS"}
    assert world_of_environment(older | {"SLURM_NTASKS": "7"}) == world_of_environment(SLURM)


def test_address_of_the_user_wins_under_slurm() -> None:
    world = world_of_environment(SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000"})
    assert world is not None and (world.host, world.port) == ("10.0.0.1", 5000)


def test_torchrun_started_by_slurm_is_torchrun() -> None:
    assert world_of_environment(SLURM | TORCHRUN) == world_of_environment(TORCHRUN)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "", "RANK": ""},
        {"MASTER_ADDR": "node1", "MASTER_PORT": "29400"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        # a batch script that does not use srun
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "4711"},
    ],
)
def test_a_lone_process(environment: dict[str, str]) -> None:
    assert world_of_environment(environment) is None


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"RANK": "one"}, "RANK=one"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"RANK": ""}, "RANK is not set"),
        ({"RANK": "8"}, "rank 8 of 8"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is not set"),
        ({"LOCAL_RANK": "4"}, "local rank 4 of 4"),
        ({"LOCAL_WORLD_SIZE": "9"}, "local rank 1 of 9 on this machine, 8 in all"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536"),
    ],
)
def test_malformed_torchrun_is_refused(wrong: dict[str, str], found: str) -> None:
    with pytest.raises(RecipeError) as caught:
        world_of_environment(TORCHRUN | wrong)
    assert found in caught.value.found and "torchrun" in caught.value.fix


@pytest.mark.parametrize(
    "wrong",
    [
        {"SLURM_PROCID": "7"},
        {"SLURM_NODEID": "5"},
        {"SLURM_STEP_TASKS_PER_NODE": "2(x"},
        {"SLURM_JOB_ID": "4711_3"},
        {"SLURM_STEP_NODELIST": "["},
    ],
)
def test_malformed_slurm_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(RecipeError) as caught:
        world_of_environment(SLURM | wrong)
    assert "world" in caught.value.problem


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login", "login"),
        ("a1,a2", "a1"),
        ("node[001-004,007],gpu3", "node001"),
        ("node[7]", "node7"),
        ("rack[2-3]node[07,09-12]", "rack2node07"),
        ("a[1,3]-ib.example.org,b", "a1-ib.example.org"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


class _Refinement(DataError):
    """Defined outside of bessemer.errors."""


def test_report_of_a_user_error_names_a_class_that_the_launcher_knows(tmp_path: Path) -> None:
    environment = {WORKER: str(tmp_path), "RANK": "3"}
    error = _Refinement("torn", found="a", wanted="b", fix="c")
    assert is_ours(environment) and report_failure(error, environment) == 65
    content = json.loads((tmp_path / "rank-00003.json").read_text())
    assert content.pop("time_s") > 0
    assert content == {"exit_code": 65, "rank": 3, "kind": "DataError", "problem": "torn", "found": "a",
                       "wanted": "b", "fix": "c"}  # fmt: skip


def test_nothing_is_reported_where_no_launcher_of_ours_listens() -> None:
    assert not is_ours(TORCHRUN)
    assert report_failure(DataError("torn", found="a", wanted="b", fix="c"), TORCHRUN) == 65
    assert report_failure(ValueError("x"), TORCHRUN) == 1
