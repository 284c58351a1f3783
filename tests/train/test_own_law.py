"""A law from runs that were really trained, of files that training wrote."""

from pathlib import Path

import pytest
from making_runs import pretrained, write_recipe

from bessemer.planner.sizing.own_runs import law_from_runs
from bessemer.rundir import read_object


def test_law_is_fitted_to_runs_that_were_trained(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    told = []
    for number, (layers, steps) in enumerate(((1, 4), (2, 4), (2, 16))):
        told.append(
            pretrained(tmp_path, f"model.layers={layers}", f"pretrain.steps={steps}", run=f"run-{number}")
        )
    runs = [tmp_path / f"run-{number}" for number in range(3)]
    law = law_from_runs(runs)
    for run, outcome in zip(runs, told, strict=True):
        plan = read_object(run / "plan.json") or {}
        expected = law.loss(plan["params"], outcome["tokens"])
        assert expected == pytest.approx(outcome["validation_loss"], rel=0.05)
    assert law.largest_flops == pytest.approx(6.0 * plan["params"] * told[-1]["tokens"])
