"""The account in the report, against the rows that it was made from."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bessemer.energy.accounting.account import account
from bessemer.report.build import render
from bessemer.report.energy import _tile, energy
from bessemer.report.energy_picture import Bar, Part, energy_bars
from bessemer.report.record import read_run
from bessemer.units import format_kilograms


def with_columns(run: Path, **columns: Callable[[dict[str, Any]], Any]) -> None:
    """Each row of pre-training with more columns, or others."""
    path = run / "pretrain/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [{**row, **{name: told(row) for name, told in columns.items()}} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parts(row: dict[str, Any]) -> dict[str, Any]:
    """A measured package and assumed memory: three quarters and one."""
    each = {"cpu": (0.75, "measured"), "memory": (0.25, "assumed")}
    return {
        name: {"value": share * row["energy_j"], "low": 0.0, "high": row["energy_j"], "basis": basis,
               "by_basis": {basis: [share * row["energy_j"], 0.0, row["energy_j"]]}}
        for name, (share, basis) in each.items()
    }  # fmt: skip


BY_COMPONENT = "Energy at the meter of the building, by component"
BY_PHASE = "Metered energy, by what it went into"


def boxes(html: str, title: str) -> list[tuple[float, str]]:
    """(pixels, what it is) of each box of a picture."""
    box = re.compile(r'<rect class="fill [^"]*" x="[\d.]+" y="\d+" width="([\d.]+)".*?<title>(.*?):')
    return [(float(width), name) for width, name in box.findall(picture(html, title))]


def picture(html: str, title: str) -> str:
    return html[html.index(f"<b>{title}</b>") :].split("</figure>")[0]


def test_components_are_as_long_as_their_joules_and_hatched_where_not_measured(made_run: Path) -> None:
    with_columns(made_run, energy_parts_j=parts)
    html = energy(read_run(made_run))
    joules = {name: row["energy_j"]["value"] for name, row in account(made_run)["stages"].items()}
    widths = {name: width for width, name in boxes(html, BY_COMPONENT)}
    cpu, memory, other_stage = (widths.pop(name) for name in ("CPU", "memory", "not told apart"))
    assert not widths
    assert cpu / memory == pytest.approx(3.0, rel=0.01)
    ratio = joules["pretrain"] / joules["finetune"]
    assert (cpu + memory) / other_stage == pytest.approx(ratio, rel=0.01)
    hatched = picture(html, BY_COMPONENT).count('class="hatching"')
    assert hatched == 2  # memory, and the modelled joules of finetune


def test_server_and_building_are_parts_of_the_bar_that_are_assumed(made_run: Path) -> None:
    (made_run / "receipt.json").write_text('{"device": {"name": "H100", "kind": "gpu"}}')
    (made_run / "recipe.toml").write_text('name = "made"\n[cluster]\npue = 1.5\n')
    html = energy(read_run(made_run))
    widths = {name: width for width, name in boxes(html, BY_COMPONENT)[:3]}
    row = account(made_run)["stages"]["pretrain"]
    assert widths["the building (PUE)"] / sum(widths.values()) == pytest.approx(1.0 / 3.0, rel=0.01)
    around = row["node_j"]["value"] / row["energy_j"]["value"] - 1.0
    told_around = widths["server around the devices"] / widths["not told apart"]
    assert told_around == pytest.approx(around, rel=0.01)


def test_phases_add_up_with_what_was_lost_taken_out_of_the_steps(made_run: Path) -> None:
    with_columns(
        made_run,
        energy_phases_j=lambda row: {"steps": 0.9 * row["energy_j"], "validation": 0.1 * row["energy_j"]},
    )
    widths = {name: width for width, name in boxes(energy(read_run(made_run)), BY_PHASE)}
    assert widths["validation"] / sum(widths.values()) == pytest.approx(0.1, rel=0.02)
    row = account(made_run)["stages"]["pretrain"]
    lost = row["lost_j"]["value"] / row["energy_j"]["value"]
    assert widths["steps that were run again"] / sum(widths.values()) == pytest.approx(lost, abs=0.003)


def test_carbon_and_money_have_their_bands_or_the_reason_why_not(made_run: Path) -> None:
    html = energy(read_run(made_run))
    assert "no grid region is named" in html and "no price: name cluster.usd_per_device_hour" in html
    (made_run / "recipe.toml").write_text(
        'name = "made"\n[cluster]\nregion = "POL"\nusd_per_device_hour = 2.0\n'
    )
    predicted = {"kwh": {"value": 0.08, "low": 0.07, "high": 0.1, "basis": "assumed"}}
    (made_run / "plan.json").write_text(json.dumps({"pretrain": {"steps": 2000}, "predicted": predicted}))
    html = energy(read_run(made_run))
    for told in ("yearly mean of POL", "2 USD a device-hour", "Against the plan", "50% of the planned steps",
                 "inside the band", "km in a petrol car", "EPA, mean of the USA", "T5-11B"):  # fmt: skip
        assert told in html, told


def test_ends_of_a_band_have_the_unit_of_its_value(made_run: Path) -> None:
    predicted = {"kwh": {"value": 2.0, "low": 1.5, "high": 2200.0, "basis": "assumed"}}
    (made_run / "plan.json").write_text(json.dumps({"pretrain": {"steps": 2000}, "predicted": predicted}))
    assert "0.75 kWh to 1,100 kWh" in energy(read_run(made_run))  # of half the steps
    told = {"value": 2.0, "low": 0.9, "high": 1500.0, "basis": "assumed"}
    assert _tile("Carbon", told, format_kilograms, "").note == "0.9 kg to 1,500 kg, assumed"


def test_energy_that_is_unknown_reads_so_and_has_no_picture(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    html = energy(read_run(make(tmp_path / "dark", finetune=False, power_w=None)))
    assert '<span class="absent">not measured</span>' in html and "<svg" not in html
    assert "some of it could not be read" in html and "T5-11B" in html


def test_hatching_stays_inside_its_box_and_is_nearer_where_less_is_known() -> None:
    def feet(basis: str) -> list[float]:
        html = energy_bars("x", [Bar("a", [Part("one", 60.0, "s1", basis)], 50.0, 80.0)])
        ((left, width),) = re.findall(r'<rect class="fill s1" x="([\d.]+)" y="0" width="([\d.]+)"', html)
        (path,) = re.findall(r'class="hatching" d="(.*?)"', html)
        ends = [float(end) for end in re.findall(r"[ML]([\d.]+) ", path)]
        assert min(ends) >= float(left) - 0.1 and max(ends) <= float(left) + float(width) + 0.1
        return ends

    assert len(feet("assumed")) == pytest.approx(2 * len(feet("modelled")), rel=0.1)
    assert "hatching" not in energy_bars("x", [Bar("a", [Part("one", 60.0, "s1", "measured")], 50.0, 80.0)])
    assert energy_bars("x", [Bar("a", [], 0.0, 0.0)]) == ""


def test_whole_report_has_the_section_and_the_receipts_account_is_not_said_again(made_run: Path) -> None:
    receipt = json.loads((made_run / "receipt.json").read_text())
    receipt["energy"] = {"run": "made", "stages": {}}
    (made_run / "receipt.json").write_text(json.dumps(receipt))
    html = render(read_run(made_run))
    assert "energy.run" not in html and "device.cores" in html
    assert '<a href="#energy">Energy, carbon and money</a>' in html and html.count('id="energy"') == 1
