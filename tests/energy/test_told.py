"""What is told of an account: prices and place of a cluster file, sources, the model card, Prometheus."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from prometheus_client.parser import text_string_to_metric_families

from bessemer.cli.energy import show
from bessemer.energy.accounting.account import account
from bessemer.energy.accounting.card import co2_front_matter
from bessemer.energy.accounting.likeness import KG_CO2E, KWH
from bessemer.energy.accounting.prometheus import prometheus_text
from bessemer.energy.draw import PRETRAINING, mean_draw
from bessemer.energy.power import around_each
from bessemer.formulas.layout import ONE_PROCESS
from bessemer.hardware import lookup
from bessemer.planner.machine.facts import cluster_facts, planned_facts
from bessemer.planner.predict import devices_of, kw_per_device
from bessemer.planner.source import with_cluster_file
from bessemer.recipe.load import load
from bessemer.recipe.schema import Recipe

OURS = """device = "H100"
devices = 8
link_gb_per_s = 450
usd_per_device_hour = 7.5
region = "FRA"
pue = 1.5
"""


def made_run(folder: Path, recipe: str, **columns: Any) -> Path:
    """One stage of 360 kJ in 1000 s on a CPU."""
    run = folder / "run"
    (run / "pretrain").mkdir(parents=True)
    row = {"attempt": 1, "step": 1, "tokens": 1000, "time_s": 1000.0, "loss": 2.0, "tokens_per_s": 1.0,
           "energy_j": 360e3, "energy_low_j": 300e3, "energy_high_j": 400e3, "energy_basis": "modelled",
           **columns}  # fmt: skip
    (run / "pretrain" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (run / "pretrain" / "events.jsonl").write_text("")
    (run / "pretrain" / "stage.json").write_text("{}")
    (run / "recipe.toml").write_text(recipe)
    return run


def test_account_has_price_and_place_of_the_cluster_file_after_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text(OURS)
    (tmp_path / "r.toml").write_text('name = "a"\n[cluster]\nfile = "ours.toml"\n')
    loaded = with_cluster_file(load(str(tmp_path / "r.toml"), []))
    (tmp_path / "ours.toml").unlink()
    run = made_run(tmp_path, loaded.text)
    told = account(run)["stages"]["pretrain"]
    assert told["kwh_facility"] == pytest.approx(0.1 * 1.5)
    assert told["usd"] == pytest.approx(7.5 * 1000 / 3600) and told["carbon_from"] == "yearly mean of FRA"
    again = load(str(run / "recipe.toml"), [])  # what a run has can be planned, and gone on with, without it
    assert planned_facts(None, again.recipe, again.base) == (again.recipe, None)
    assert with_cluster_file(again) == again


@pytest.mark.parametrize("name", ["H100", "RTX 4090", "V100"])
@pytest.mark.parametrize("devices", [1, 2, 8, 64])
def test_around_a_device_published_trainings_and_plans_have_the_same_watts(name: str, devices: int) -> None:
    device = lookup(name)
    drawn = mean_draw(device, devices, PRETRAINING)
    assert drawn is not None and device.tdp_w is not None
    facts = devices_of(ONE_PROCESS, cluster_facts(name, devices))
    planned = kw_per_device(Recipe.model_validate({"name": "a", "cluster": {"pue": 1.0}}), facts).value
    around_w = 1000.0 * (planned or 0.0) - 0.8 * device.tdp_w
    assert drawn.value == pytest.approx(0.87 * device.tdp_w + around_w)
    assert around_each(device, devices).value == pytest.approx(around_w)


def test_lone_card_has_a_workstation_around_it_and_an_unknown_number_a_full_node() -> None:
    assert [around_each(lookup("H100"), devices).value for devices in (1, 2, None)] == [100.0, 250.0, 250.0]
    assert around_each(None, 1).value == 100.0 and around_each(None, 4).value == 240.0
    assert around_each(lookup("H100"), 8, per_node=1).value == 100.0


def test_everyday_uses_are_what_their_sources_come_to() -> None:
    amounts = {use.what: use.amount for use in (*KWH, *KG_CO2E)}
    assert amounts["months of a household's electricity, USA"] == pytest.approx(10_715 / 12, rel=1e-3)
    assert amounts["km in a petrol car"] == pytest.approx(8.887 / 22.2 / 1.609344, rel=0.005)
    assert amounts["litres of water boiled"] == pytest.approx(4.186e3 * 80 / 3.6e6 / 0.9)


def test_emissions_of_a_tiny_training_are_a_number_to_every_reader_of_yaml(tmp_path: Path) -> None:
    run = made_run(tmp_path, 'name = "a"\n[cluster]\nregion = "FRA"\n', energy_j=1e-4)
    lines = co2_front_matter(account(run), ["pretrain"])
    told = yaml.safe_load("\n".join(lines))["co2_eq_emissions"]
    assert 0.0 < told["emissions"] < 1e-6 and set(told) == {
        "emissions", "source", "training_type", "geographical_location"}  # fmt: skip
    card = ModelCard("\n".join(["---", "license: mit", *lines, "---", "# a model"]))
    assert card.data.co2_eq_emissions == told
    assert "preparing data, evaluation and export not among them" in told["source"]


def test_lines_of_the_command_fit_a_terminal_and_tell_phases_and_what_stands_beside_training(
    tmp_path: Path,
) -> None:
    recipe = 'name = "a"\n[cluster]\nregion = "FRA"\nusd_per_device_hour = 1234.5\n'
    phases = {"starting": 1.0, "steps": 123456.0, "validation": 54321.0}
    run = made_run(tmp_path, recipe, energy_phases_j=phases, time_phases_s=phases, waiting_for_data_s=3.0)
    shutil.copytree(run / "pretrain", run / "finetune-scratch")
    beside = {"time": 1.0, "seconds": 10.0, "energy_j": 1234.5, "energy_low_j": 1000.4,
              "energy_high_j": 1999.6, "energy_basis": "assumed", "energy_parts_j": {}, "energy_gaps": 0,
              "energy_gap_s": 0.0}  # fmt: skip
    kinds = ("data", "evaluate", "export")
    (run / "energy.jsonl").write_text("".join(json.dumps({"kind": kind, **beside}) + "\n" for kind in kinds))
    document = account(run)
    text = show(document)
    assert max(map(len, text.splitlines())) <= 110
    for told in (*kinds, "finetune-scratch", "in validation", "waiting", "all stages", "restarts"):
        assert told in text, told
    assert len(document["stages"]) == 5 and text.count("CO2e") >= 4


def families(document: dict[str, Any]) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(prometheus_text(document))}


def test_prometheus_has_joules_and_seconds_by_phase(tmp_path: Path) -> None:
    run = made_run(
        tmp_path,
        'name = "a"\n',
        energy_phases_j={"steps": 300e3, "validation": 60e3},
        time_phases_s={"steps": 900.0, "validation": 100.0},
    )
    found = families(account(run))
    joules = {row.labels["phase"]: row.value for row in found["bessemer_phase_energy_joules"].samples}
    seconds = {row.labels["phase"]: row.value for row in found["bessemer_phase_seconds"].samples}
    assert joules == {"steps": 300e3, "validation": 60e3} and seconds == {"steps": 900.0, "validation": 100.0}
    assert sum(joules.values()) == found["bessemer_energy_joules"].samples[0].value
    assert all(family.type == "counter" for name, family in found.items() if "phase" in name)


def test_prometheus_names_have_base_units_and_counters_end_in_total(tmp_path: Path) -> None:
    run = made_run(tmp_path, 'name = "a"\n[cluster]\nregion = "FRA"\nusd_per_device_hour = 1.0\n')
    for line in prometheus_text(account(run)).splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            assert name.startswith("bessemer_") and (name.endswith("_total") == (kind == "counter"))
            stem = name.removesuffix("_total").rsplit("_", 1)[-1]
            assert stem in ("joules", "grams", "usd", "seconds", "tokens", "info"), name
