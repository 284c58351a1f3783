"""Energy of a run over two machines: real ranks, each told that it is one, with a counter of its own."""

from pathlib import Path

import pytest
from making_runs import events, write_recipe
from making_worlds import MACHINES, STEP_J, TWO_LAYERS, VALIDATION_J, trained

from bessemer.energy.accounting.account import account
from bessemer.rundir import read_rows

PRETRAIN = (
    "pretrain",
    "tiny.toml",
    "--run",
    "run",
    "--set",
    "pretrain.save_every=8",
    "--set",
    "pretrain.validate_every=10",
)


def test_what_two_machines_draw_is_summed_by_phase_and_goes_on_in_the_next_attempt(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    for rank in range(2):
        (tmp_path / "counters" / str(rank)).mkdir(parents=True)
    stage = tmp_path / "run/pretrain"
    for attempt, steps in enumerate((12, 20), start=1):
        words = (MACHINES, "counters", *PRETRAIN, "--set", f"pretrain.steps={steps}")
        document = trained(tmp_path, "replicate=2", 2, *words)
        (*_, done) = events(stage, "done")
        validations = sum("validation_loss" in row for row in read_rows(stage / "metrics.jsonl"))
        drawn = {
            "starting": 0.0,
            "steps": 3.0 * STEP_J * steps,
            "validation": 3.0 * VALIDATION_J * validations,
        }
        assert validations == attempt + 1  # at steps 10, 12; 20
        assert done["energy_phases_j"] == pytest.approx({**drawn, "saving": 0.0})
        assert done["energy_j"] == document["energy_j"]["value"] == pytest.approx(sum(drawn.values()))
        assert done["energy_basis"] == "measured" and done["energy_parts_j"].keys() == {"memory"}
        assert done["energy_low_j"] == pytest.approx(0.95 * done["energy_j"])
        assert set(done["time_phases_s"]) == set(done["energy_phases_j"])
    rows = read_rows(stage / "metrics.jsonl")
    assert {row["energy_machines"] for row in rows} == {2}
    assert [row["energy_j"] for row in rows] == sorted(row["energy_j"] for row in rows)
    first, last = events(stage, "done")
    assert last["energy_j"] >= rows[-1]["energy_j"] > first["energy_j"] >= rows[11]["energy_j"]
    assert account(tmp_path / "run")["stages"]["pretrain"]["energy_j"]["value"] == last["energy_j"]


def test_machine_that_knows_nothing_makes_the_sum_unknown(tmp_path: Path) -> None:
    write_recipe(tmp_path, sizes=TWO_LAYERS)
    (tmp_path / "counters" / "0").mkdir(parents=True)
    words = (MACHINES, "counters", *PRETRAIN, "--set", "pretrain.steps=4")
    document = trained(tmp_path, "replicate=2", 2, *words)
    assert document["energy_j"]["value"] is None
    last = read_rows(tmp_path / "run/pretrain/metrics.jsonl")[-1]
    assert last["energy_parts_j"]["memory"]["value"] == 4.0 * STEP_J + VALIDATION_J
    assert last["energy_parts_j"]["accelerator"]["value"] is None
    assert last["power_w"] is None and set(last["energy_phases_j"].values()) == {None}
