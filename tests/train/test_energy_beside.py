"""Data, evaluation and export in a run's account: done once, counted once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from making_runs import QUIET, pretrained, write_recipe

from bessemer.cli.main import main
from bessemer.data.prepared import open_prepared
from bessemer.energy.accounting.account import account
from bessemer.energy.metering import beside
from bessemer.energy.metering.meter import busy_seconds
from bessemer.energy.power import assumed_cpu_power
from bessemer.hardware import usable_cores
from bessemer.log import Console
from bessemer.rundir import read_object, read_rows
from bessemer.train.beside import metered


def kinds(run: Path) -> list[str]:
    return [row["kind"] for row in read_rows(run / "energy.jsonl")]


def exported(run: Path) -> dict[str, Any]:
    """Stands for an export, which imports transformers for seconds: done the first time it is called."""
    done = (run / "exported").exists()
    (run / "exported").touch()
    return {"already_done": done}


def test_what_stands_beside_training_is_counted_once_and_in_one_run(tmp_path: Path) -> None:
    write_recipe(tmp_path, ready=False)
    run = tmp_path / "run"
    for _ in range(2):
        pretrained(tmp_path, "pretrain.steps=4")
        assert main(["evaluate", str(run)]) == 0
        metered(beside.EXPORT, run, lambda: exported(run), QUIET)
    assert kinds(run) == ["data", "evaluate", "export"]
    document = account(run)
    assert list(document["stages"]) == ["data", "pretrain", "evaluate", "export"]
    whole = sum(stage["energy_j"]["value"] for stage in document["stages"].values())
    assert document["total"]["energy_j"]["value"] == pytest.approx(whole)
    told = document["stages"]["evaluate"]
    (row,) = (row for row in read_rows(run / "energy.jsonl") if row["kind"] == "evaluate")
    assert told["energy_j"]["value"] == row["energy_j"] > 0.0 and told["tokens"] is None
    assert told["hours"] == pytest.approx(row["seconds"] / 3600)
    assert told["parts_j"]["cpu"]["value"] == pytest.approx(row["energy_j"])
    assert told["kwh_facility"] == pytest.approx(row["energy_j"] / 3.6e6)
    receipt = read_object(run / "receipt.json")
    assert receipt is not None and receipt["energy"] == json.loads(json.dumps({**document, "run": str(run)}))
    pretrained(tmp_path, "pretrain.steps=4", run="other")
    assert kinds(tmp_path / "other") == []
    other = account(tmp_path / "other")
    shared = other["stages"]["data"]
    assert shared["energy_j"] == document["stages"]["data"]["energy_j"] and not shared["counts"]
    assert "leaves it out" in shared["note"]
    assert other["total"]["energy_j"]["value"] == other["stages"]["pretrain"]["energy_j"]["value"]


def test_data_that_was_built_apart_counts_in_the_run_that_trains_on_it_first(tmp_path: Path) -> None:
    write_recipe(tmp_path, ready=False)
    words = ["--store", str(tmp_path / "data")]
    assert main(["data", "build", str(tmp_path / "tiny.toml"), *words]) == 0
    (told,) = (tmp_path / "data").glob("*/energy.json")
    open_prepared(told.parent)  # it is beside what the manifest has
    pretrained(tmp_path, "pretrain.steps=1")
    first = account(tmp_path / "run")["stages"]["data"]
    row = read_object(told)
    assert row is not None and first["counts"] and first["energy_j"]["value"] == row["energy_j"]
    assert (told.parent / "energy.claimed").read_text() == f"{tmp_path / 'run'}\n"
    # Its workers kept cores busy, as they have ended: more than an idle machine for as long.
    idle = assumed_cpu_power(usable_cores(), 0.0).value * row["seconds"]
    assert row["energy_basis"] == "assumed" and row["energy_j"] > idle


def test_work_is_metered_with_its_child_processes_and_other_machines_make_it_unknown() -> None:
    before_s = busy_seconds()
    with beside.metered("evaluate") as row:
        subprocess.run([sys.executable, "-c", "sum(range(2 * 10**7))"], check=True)
    busy_s = busy_seconds() - before_s
    cores = usable_cores()
    band = assumed_cpu_power(cores, min(cores, busy_s / row["seconds"])).times(row["seconds"])
    assert busy_s > 0.05 and row["energy_j"] == pytest.approx(band.value, rel=0.1)
    with beside.metered("data", elsewhere=True) as unknown:
        pass
    assert unknown["energy_j"] is None and unknown["energy_basis"] == "assumed"


def test_account_that_cannot_be_kept_is_told_and_fails_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(tmp_path, ready=False)
    (tmp_path / "run" / "energy.jsonl").mkdir(parents=True)  # no file can be there
    console = Console()
    assert pretrained(tmp_path, "pretrain.steps=1", console=console)["step"] == 1
    assert metered(beside.EXPORT, tmp_path / "run", lambda: {"out": 1}, console) == {"out": 1}
    err = capsys.readouterr().err
    for words in ("is not in this run's account", "what export drew is not in", "has no new account"):
        assert "energy: " in err and words in err
