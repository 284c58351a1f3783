import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from making_runs import run_job, stage_plan
from prometheus_client.parser import text_string_to_metric_families

from bessemer.cli.main import main
from bessemer.energy.accounting.account import account
from bessemer.energy.accounting.card import co2_front_matter
from bessemer.energy.accounting.prometheus import write_prometheus
from bessemer.errors import RecipeError, WriteError
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.layout import ONE_PROCESS
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import cluster_facts
from bessemer.planner.predict import devices_of, kw_per_device, usd_per_device_hour
from bessemer.recipe.schema import Recipe
from bessemer.rundir import read_rows

SHAPE = {"family": "llama", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64,
         "vocab": 48, "context": 16, "tie_embeddings": False, "qk_norm": False}  # fmt: skip
BEGAN_S = 1_795_860_000.0  # 2026-11-28T10:00:00Z
GPUS = {"device": "H100-SXM-80GB", "layout": {"replicate": 2, "shard": 4, "expert": 2}}


def rows_of(
    watts: float, steps: int, *, step_s: float = 10.0, basis: str = "measured"
) -> list[dict[str, Any]]:
    return [
        {"attempt": 1, "step": step, "tokens": 1000 * step, "time_s": step_s * step, "loss": 2.0,
         "tokens_per_s": 1000 / step_s, "step_time_s": step_s, "energy_j": watts * step_s * step,
         "energy_low_j": 0.9 * watts * step_s * step, "energy_high_j": 1.1 * watts * step_s * step,
         "energy_basis": basis}
        for step in range(1, steps + 1)
    ]  # fmt: skip


def write_stage(run: Path, rows: list[dict[str, Any]], name: str = "pretrain", **info: Any) -> Path:
    stage = run / name
    stage.mkdir(parents=True, exist_ok=True)
    (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = [{"time": BEGAN_S, "attempt": 1, "kind": "start", "step": 0}]
    (stage / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
    (stage / "stage.json").write_text(json.dumps({"kind": name, "shape": SHAPE, "context": 16, **info}))
    return stage


def write_run(
    folder: Path, rows: list[dict[str, Any]], recipe: str = "", plan: dict[str, Any] | None = None
) -> Path:
    run = folder / "run"
    write_stage(run, rows, plan={"layout": (plan or {}).get("layout")})
    (run / "recipe.toml").write_text(f'name = "run"\n{recipe}\n')
    kind = "gpu" if plan and "layout" in plan else "cpu"
    (run / "receipt.json").write_text(json.dumps({"device": {"name": "Abacus", "kind": kind, "cores": 2}}))
    (run / "plan.json").write_text(json.dumps({"device": "Abacus", **(plan or {})}))
    return run


def with_parts(row: dict[str, Any], **joules: float) -> dict[str, Any]:
    parts = {
        name: {"value": value, "low": value, "high": value, "basis": "measured", "by_basis": {}}
        for name, value in joules.items()
    }
    return {**row, "energy_parts_j": parts}


def test_kilowatt_hours_carbon_and_money_are_the_products_that_they_should_be(tmp_path: Path) -> None:
    recipe = '[cluster]\npue = 1.5\nregion = "DEU"\nusd_per_device_hour = 2.0'
    told = account(write_run(tmp_path, rows_of(360.0, 100), recipe))["stages"]["pretrain"]
    assert [told["energy_j"][end] for end in ("low", "value", "high")] == pytest.approx([324e3, 360e3, 396e3])
    assert told["kwh_facility"] == pytest.approx(0.1 * 1.5)
    assert told["kg_co2e"] == pytest.approx(0.15 * 0.3441, rel=0.01)
    assert told["usd"] == pytest.approx(2.0 * 1000 / 3600)
    assert told["bands"]["kg_co2e"]["low"] == pytest.approx(0.9 * 0.65 * told["kg_co2e"])
    assert (told["bands"]["kwh_facility"]["basis"], told["bands"]["kg_co2e"]["basis"]) == (
        "measured",
        "assumed",
    )


def test_joules_per_token_and_per_useful_flop(tmp_path: Path) -> None:
    told = account(write_run(tmp_path, rows_of(100.0, 10)))["stages"]["pretrain"]
    flops = train_flops_per_token(ModelShape.from_json(SHAPE), 16)
    assert told["joules_per_token"] == pytest.approx(1.0)
    assert told["joules_per_flop"] == pytest.approx(1.0 / flops)


def test_account_of_a_real_training_adds_up(tmp_path: Path) -> None:
    """The rows as the recorder writes them, over two attempts."""
    for steps in (2, 4):
        run_job(tmp_path / "pretrain", stage_plan(steps=steps))
    document = account(tmp_path, region="WLD")
    told = document["stages"]["pretrain"]
    last = read_rows(tmp_path / "pretrain" / "metrics.jsonl")[-1]
    done = read_rows(tmp_path / "pretrain" / "events.jsonl")[-1]  # with what the last save drew
    assert told["energy_j"]["value"] == done["energy_j"] > last["energy_j"] > 0.0
    assert told["tokens"] == last["tokens"]
    assert told["kwh_facility"] == pytest.approx(done["energy_j"] / 3.6e6)
    assert told["kg_co2e"] == pytest.approx(told["kwh_facility"] * 0.473, rel=0.01)
    assert told["lost_j"]["value"] == 0.0 and told["hours"] * 3600 == pytest.approx(last["time_s"])


def test_tokens_of_a_forks_origin_are_not_this_runs(tmp_path: Path) -> None:
    rows = [{**row, "tokens": row["tokens"] + 50_000, "step": row["step"] + 50} for row in rows_of(100.0, 10)]
    assert account(write_run(tmp_path, rows))["stages"]["pretrain"]["tokens"] == pytest.approx(10_000)


def test_energy_of_steps_that_were_run_again_is_a_line_of_its_own(tmp_path: Path) -> None:
    rows = rows_of(100.0, 8)  # killed after step 8, gone on from the checkpoint of step 5
    again = [
        {**row, "attempt": 2, "step": row["step"] - 3, "tokens": row["tokens"] - 3000}
        for row in rows_of(100.0, 13)[8:]
    ]
    run = write_run(tmp_path, [*rows, *again])
    with (run / "pretrain" / "events.jsonl").open("a") as events:
        events.write(json.dumps({"time": BEGAN_S + 140, "attempt": 2, "kind": "resume", "step": 5}) + "\n")
    told = account(run)["stages"]["pretrain"]
    assert told["lost_j"]["value"] == pytest.approx(3 * 1000.0) and told["energy_j"]["value"] == 13_000.0
    assert told["joules_per_token"] == pytest.approx(1.3)
    assert told["between_attempts_s"] == pytest.approx(60.0)  # 80 s in steps, then a minute of nothing


def test_around_accelerators_the_node_is_added_less_the_cpu_that_was_read(tmp_path: Path) -> None:
    rows = rows_of(8 * 600.0 + 300.0, 360)
    rows[-1]["energy_parts_j"] = {
        "accelerator": {"value": 8 * 600.0 * 3600, "low": 1, "high": 1, "basis": "measured", "by_basis": {}},
        "cpu": {"value": 300.0 * 3600, "low": 1, "high": 1, "basis": "measured", "by_basis": {}},
    }
    document = account(write_run(tmp_path, rows, plan=GPUS))
    told = document["stages"]["pretrain"]
    assert told["node_j"]["value"] == pytest.approx(8 * (600.0 + 250.0) * 3600)  # as the catalogue has H100's
    assert told["node_j"]["basis"] == "assumed" and document["scope"]["pue"] == 1.25
    assert told["kwh_facility"] == pytest.approx(8 * 0.85 * 1.25)


def test_of_a_node_that_is_metered_nothing_is_added(tmp_path: Path) -> None:
    rows = [with_parts(row, node=row["energy_j"]) for row in rows_of(7000.0, 360)]
    document = account(write_run(tmp_path, rows, plan=GPUS))
    assert document["stages"]["pretrain"]["node_j"]["value"] == 7000.0 * 3600
    assert document["scope"]["metered"].startswith("the whole machine, by its own meter: other programs")
    assert document["scope"]["node"] == "as metered"


@pytest.mark.parametrize("meter_first", [True, False])
def test_around_accelerators_the_node_is_added_for_attempts_without_its_meter_only(
    tmp_path: Path, meter_first: bool
) -> None:
    """Half an hour at 7000 W by the node's meter, half an hour at 5100 W of its parts; the CPUs at 300 W."""
    rows, sums = rows_of(1.0, 360), {"energy": 0.0, "node": 0.0, "cpu": 0.0}
    for number, row in enumerate(rows):
        by_node = (number < 180) == meter_first
        drawn = {"energy": 7000.0 if by_node else 5100.0, "node": 7000.0 * by_node, "cpu": 300.0}
        sums = {name: value + 10.0 * drawn[name] for name, value in sums.items()}
        row |= {"energy_j": sums["energy"], "energy_low_j": sums["energy"], "energy_high_j": sums["energy"]}
        row["attempt"] = 1 + number // 180
        row |= with_parts(row, **{name: sums[name] for name in ("node", "cpu") if sums[name]})
    document = account(write_run(tmp_path, rows, plan=GPUS))
    told, scope = document["stages"]["pretrain"], document["scope"]
    around_w = 8 * 250.0 - 300.0  # as the catalogue has H100's
    assert told["node_j"]["value"] == pytest.approx((7000.0 + 5100.0 + around_w) * 1800)
    assert told["hours_beside_node_meter"] == pytest.approx(0.5) and told["node_j"]["basis"] == "assumed"
    assert "for 50% of the time, else accelerators" in scope["metered"] and "else with what" in scope["node"]


def test_around_a_lone_card_the_account_adds_what_the_plan_does(tmp_path: Path) -> None:
    plan = {"device": "H100-SXM-80GB", "layout": {"replicate": 1}}
    told = account(write_run(tmp_path, rows_of(600.0, 360), plan=plan))["stages"]["pretrain"]
    around = {end: told["node_j"][end] - told["energy_j"][end] for end in ("value", "low", "high")}
    assert around == pytest.approx({"value": 100.0 * 3600, "low": 60.0 * 3600, "high": 200.0 * 3600})
    planned = kw_per_device(Recipe(name="run"), devices_of(ONE_PROCESS, cluster_facts("H100", 1)))
    assert planned.value == pytest.approx(0.7 * 0.8 + 0.1) and planned.high == pytest.approx(0.7 * 0.95 + 0.2)


def test_without_a_region_carbon_is_unknown_with_the_way_to_name_one(tmp_path: Path) -> None:
    told = account(write_run(tmp_path, rows_of(100.0, 3)))["stages"]["pretrain"]
    assert told["kg_co2e"] is None and "energy.region" in told["carbon_from"]
    assert told["usd"] is None and "usd_per_device_hour" in told["usd_from"]


def test_own_machines_cost_their_electricity_and_their_wear(tmp_path: Path) -> None:
    recipe = (
        "[energy]\ntariff_usd_per_kwh = 0.30\namortisation_usd_per_device_hour = 0.5\n[cluster]\npue = 2.0"
    )
    told = account(write_run(tmp_path, rows_of(360.0, 100), recipe))["stages"]["pretrain"]
    assert told["usd"] == pytest.approx(0.2 * 0.30 + 0.5 * 1000 / 3600)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("[energy]\ntariff_usd_per_kwh = 0.3\n[cluster]\nusd_per_device_hour = 2.0", "two prices"),
        ("[energy]\namortisation_usd_per_device_hour = 1.0", "no effect"),
        ("[energy]\ntariff_usd_per_kwh = 0", "tariff_usd_per_kwh"),
        ("[budget]\nkwh = 0", "kwh"),
        ("[budget]\nkg_co2e = -1.0", "kg_co2e"),
        ("[energy]\ncommand = []", "command"),
        ('[energy]\nregion = "GBRR"', "did you mean GBR"),
        ("[cluster]\npue = 0.5", "no facility has such a PUE"),
    ],
)
def test_prices_regions_and_budgets_that_make_no_sense_are_errors(
    tmp_path: Path, recipe: str, told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        account(write_run(tmp_path, rows_of(100.0, 3), recipe))


def test_two_prices_are_refused_by_the_plan_already() -> None:
    recipe = Recipe.model_validate(
        {"name": "run", "energy": {"tariff_usd_per_kwh": 0.3}, "cluster": {"usd_per_device_hour": 2.0}}
    )
    with pytest.raises(RecipeError, match="two prices"):
        usd_per_device_hour(recipe, cluster_facts("H100", 1))


def test_energy_that_is_unknown_stays_unknown_in_every_figure(tmp_path: Path) -> None:
    rows = rows_of(100.0, 3)
    rows[-1] |= {"energy_j": None, "energy_low_j": None, "energy_high_j": None, "energy_basis": "assumed"}
    document = account(write_run(tmp_path, rows, '[energy]\nregion = "DEU"'))
    told = document["stages"]["pretrain"]
    assert told["energy_j"]["value"] is told["kwh_facility"] is told["kg_co2e"] is None
    assert told["joules_per_token"] is document["total"]["energy_j"]["value"] is None
    assert document["equivalents"] == []


def test_stages_are_added_and_the_plan_is_compared_for_the_steps_done(tmp_path: Path) -> None:
    predicted = {"kwh": {"value": 0.2, "low": 0.1, "high": 0.4, "basis": "assumed"}}
    plan = {"predicted": predicted, "pretrain": {"steps": 200}}
    run = write_run(tmp_path, rows_of(360.0, 100), plan=plan)
    write_stage(run, rows_of(36.0, 100, basis="assumed"), "finetune")
    document = account(run)
    assert document["total"]["energy_j"]["value"] == pytest.approx(396e3)
    assert document["total"]["energy_j"]["basis"] == "assumed"
    grade = document["plan"]["kwh_facility"]
    assert (document["plan"]["steps_done"], grade["ratio"], grade["inside_band"]) == (
        0.5,
        pytest.approx(1.0),
        True,
    )
    assert document["plan"]["usd"]["ratio"] is None


def test_a_run_in_two_layouts_is_not_compared_with_the_plan_of_one(tmp_path: Path) -> None:
    predicted = {"kwh": {"value": 0.2, "low": 0.1, "high": 0.4, "basis": "assumed"}}
    plan = {"predicted": predicted, "pretrain": {"steps": 200, "layout": {"replicate": 2}}}
    rows = [row | {"layout": "replicate=2"} for row in rows_of(360.0, 100)]
    alike = account(write_run(tmp_path / "alike", rows, plan=plan))
    assert alike["plan"]["kwh_facility"]["ratio"] == pytest.approx(1.0)
    for row in rows[:40]:
        row["layout"] = "replicate=1"
    run = write_run(tmp_path / "relaid", rows, plan=plan)
    assert account(run)["plan"] is None


def test_equivalents_have_sources_and_published_trainings_a_ratio(tmp_path: Path) -> None:
    run = write_run(tmp_path, rows_of(3600.0, 1000), '[energy]\nregion = "POL"')
    document = account(run)
    told = {row["what"]: row for row in document["equivalents"]}
    assert told["litres of water boiled"]["count"] == pytest.approx(10.0 / 0.1034, rel=0.01)
    assert all(row["source"] for row in document["equivalents"]) and "km in a petrol car" in told
    (t5,) = [row for row in document["published"] if row["model"] == "T5-11B"]
    assert t5["times_this_run"] == pytest.approx(8570)


def hourly(folder: Path, grams: dict[int, Any]) -> Path:
    path = folder / "hours.csv"
    rows = [f"2026-11-28T{hour:02d}:00Z,{value}" for hour, value in grams.items()]
    path.write_text("time,g_per_kwh\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_by_the_hour_carbon_is_that_of_when_the_energy_was_drawn(tmp_path: Path) -> None:
    rows = rows_of(1000.0, 720)  # two hours at 1 kW, from ten o'clock on
    run = write_run(tmp_path, rows)
    told = account(run, intensity=hourly(tmp_path, {10: 100.0, 11: 500.0}))["stages"]["pretrain"]
    assert told["kg_co2e"] == pytest.approx(0.1 + 0.5) and told["carbon_from"] == "hourly intensity"
    assert told["bands"]["kg_co2e"]["basis"] == "modelled"


def test_hour_that_the_file_lacks_is_told_and_filled_by_the_region_only(tmp_path: Path) -> None:
    run = write_run(tmp_path, rows_of(1000.0, 1080))  # three hours
    file = hourly(tmp_path, {10: 100.0, 12: 300.0})
    document = account(run, intensity=file)
    told = document["stages"]["pretrain"]
    assert told["kg_co2e"] is None and "covers 67%" in told["carbon_from"]
    assert document["scope"]["missing_hours"] == ["2026-11-28T11:00Z"]
    filled = account(run, intensity=file, region="WLD")["stages"]["pretrain"]
    assert filled["kg_co2e"] == pytest.approx(0.4 + 0.473, rel=0.01)
    assert filled["bands"]["kg_co2e"]["basis"] == "assumed"


def families(path: Path) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(path.read_text())}


def test_prometheus_reads_every_sample_and_unknown_ones_are_not_there(tmp_path: Path) -> None:
    run = write_run(tmp_path, rows_of(360.0, 100), "[cluster]\npue = 1.5")
    run = run.rename(tmp_path / 'a "name"\\with')
    path = tmp_path / "node" / "bessemer.prom"
    write_prometheus(path, account(run))
    found = families(path)
    (joules,) = found["bessemer_energy_joules"].samples
    assert (joules.name, joules.value) == ("bessemer_energy_joules_total", 360e3)
    assert joules.labels == {"run": 'a "name"\\with', "stage": "pretrain"}
    assert found["bessemer_energy_joules"].type == "counter"
    assert found["bessemer_facility_energy_joules"].samples[0].value == pytest.approx(540e3)
    assert found["bessemer_step_seconds"].samples[0].value == pytest.approx(1000.0)
    assert found["bessemer_energy_basis_info"].samples[0].labels["basis"] == "measured"
    assert not {"bessemer_co2e_grams", "bessemer_cost_usd"} & set(found)
    assert [file.name for file in path.parent.iterdir()] == ["bessemer.prom"]  # no half one beside it


def test_components_are_told_by_how_they_were_come_by(tmp_path: Path) -> None:
    rows = rows_of(100.0, 10)
    by_basis = {"measured": [900.0, 1, 1], "assumed": [100.0, 1, 1]}
    rows[-1]["energy_parts_j"] = {
        "cpu": {"value": 1000.0, "low": 1, "high": 1, "basis": "assumed", "by_basis": by_basis}
    }
    path = tmp_path / "x.prom"
    write_prometheus(path, account(write_run(tmp_path, rows)))
    samples = families(path)["bessemer_component_energy_joules"].samples
    assert {(row.labels["component"], row.labels["basis"]): row.value for row in samples} == {
        ("cpu", "measured"): 900.0,
        ("cpu", "assumed"): 100.0,
    }


def test_file_that_the_collector_would_pass_over_is_refused(tmp_path: Path) -> None:
    document = account(write_run(tmp_path, rows_of(1.0, 1)))
    with pytest.raises(RecipeError, match="would not read"):
        write_prometheus(tmp_path / "energy.txt", document)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        write_prometheus(tmp_path / "file" / "x.prom", document)


def test_command_prints_scope_and_bands_and_json_has_the_contracts_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, rows_of(360.0, 100, basis="assumed"), '[energy]\nregion = "FRA"')
    assert main(["energy", str(run), "--pue", "1.2", "--prometheus", str(tmp_path / "x.prom")]) == 0
    text = capsys.readouterr().out
    for word in ("assumed", "100 Wh (90 Wh to 110 Wh)", "metered   CPU", "PUE 1.2, as given", "of FRA"):
        assert word in text
    assert (tmp_path / "x.prom").is_file()
    assert main(["energy", str(run / "pretrain"), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert {"energy_j", "kwh_facility", "kg_co2e", "usd"} <= stages["pretrain"].keys()
    assert set(stages["pretrain"]["energy_j"]) == {"value", "low", "high", "basis"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "is not a run"),
        (["nowhere", "rows.csv"], "rows.csv has no effect"),
        (["validate", "rows.csv", "--region", "DEU"], "--region has no effect"),
        (["validate"], "no file of published"),
    ],
)
def test_command_with_words_that_do_nothing_is_an_error(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["energy", *words]) == 2
    assert told in capsys.readouterr().err


def test_card_fragment_is_read_by_the_hub_and_left_out_where_carbon_is_unknown(tmp_path: Path) -> None:
    run = write_run(tmp_path, rows_of(360.0, 1000), "", GPUS)
    write_stage(run, rows_of(36.0, 1000), "finetune")
    assert co2_front_matter(account(run), ["pretrain", "finetune"]) == []
    document = account(run, region="FRA")
    lines = co2_front_matter(document, ["pretrain", "finetune"])
    told = ModelCard("\n".join(["---", "license: mit", *lines, "---", "# a model"])).data.co2_eq_emissions
    assert told["emissions"] == pytest.approx(1000 * document["total"]["kg_co2e"]["value"], rel=1e-3)
    assert (told["training_type"], told["geographical_location"]) == ("fine-tuning", "France")
    assert told["hardware_used"] == "8 x H100-SXM-80GB" and "measured joules, PUE 1.25" in told["source"]


def work_row(kind: str, joules: float, begin_s: float, seconds: float = 60.0) -> dict[str, Any]:
    parts = {"cpu": {"value": joules, "low": joules, "high": joules, "basis": "measured",
                     "by_basis": {"measured": [joules, joules, joules]}}}  # fmt: skip
    return {"kind": kind, "time": begin_s, "seconds": seconds, "energy_j": joules, "energy_low_j": joules,
            "energy_high_j": joules, "energy_basis": "measured", "energy_parts_j": parts, "energy_gaps": 1,
            "energy_gap_s": 2.0}  # fmt: skip


def write_works(run: Path, *rows: dict[str, Any]) -> None:
    (run / "energy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_pieces_of_work_of_one_kind_are_added_and_time_between_them_is_nobodys(tmp_path: Path) -> None:
    run = write_run(tmp_path, rows_of(100.0, 10))
    write_works(run, *(work_row("evaluate", joules, BEGAN_S + 9000.0 * joules) for joules in (1.0, 4.0)))
    document = account(run)
    told = document["stages"]["evaluate"]
    assert told["energy_j"] == {"value": 5.0, "low": 5.0, "high": 5.0, "basis": "measured"}
    assert told["parts_j"]["cpu"]["by_basis"] == {"measured": [5.0, 5.0, 5.0]}
    assert (told["hours"], told["gaps"], told["gap_s"]) == (pytest.approx(120 / 3600), 2, 4.0)
    assert told["between_attempts_s"] is told["tokens"] is None and told["lost_j"]["value"] == 0.0
    assert document["total"]["energy_j"]["value"] == pytest.approx(10_005.0)


def test_work_by_the_hour_has_the_carbon_of_its_own_hour(tmp_path: Path) -> None:
    run = write_run(tmp_path, rows_of(1000.0, 360))  # from ten o'clock on
    write_works(run, work_row("evaluate", 3.6e6, BEGAN_S + 3600.0), work_row("data", 3.6e6, BEGAN_S))
    told = account(run, intensity=hourly(tmp_path, {10: 100.0, 11: 500.0}))["stages"]
    assert list(told) == ["data", "pretrain", "evaluate"]
    assert {name: row["kg_co2e"] for name, row in told.items()} == pytest.approx(
        {"data": 0.1, "pretrain": 0.1, "evaluate": 0.5}
    )


def test_data_is_prepared_without_accelerators_and_evaluated_with_one(tmp_path: Path) -> None:
    recipe = "[cluster]\nusd_per_device_hour = 3.0"
    run = write_run(tmp_path, rows_of(5000.0, 360), recipe, GPUS)
    write_works(run, work_row("data", 100.0, BEGAN_S), work_row("evaluate", 100.0, BEGAN_S))
    told = account(run)["stages"]
    assert told["data"]["node_j"]["value"] == 100.0 and told["data"]["usd"] == 0.0
    assert told["evaluate"]["usd"] == pytest.approx(3.0 / 60)
    assert told["evaluate"]["node_j"]["value"] == pytest.approx(60.0 * 100.0)  # around a lone card
