"""What `bessemer plan` says to a person in a hurry: what figures count with, and what was meant."""

import json
import os
import struct
import subprocess
import sys
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest
from making_plans import run_plan

from bessemer.cli.columns import fitted
from bessemer.cli.main import main
from bessemer.cli.plan_notes import remarks
from bessemer.errors import RecipeError
from bessemer.hardware import GIB, catalogue, lookup
from bessemer.planner.layout import parse_layout
from bessemer.planner.machine.cluster import catalogue_cluster
from bessemer.planner.machine.facts import parse_cluster
from bessemer.recipe.load import load

CLUSTER = """
device = "H100"
nodes = 2
per_node = 8
link_gb_per_s = 450
network_gb_per_s = 50
"""


def test_device_of_unknown_usable_memory_is_planned_within_its_nominal_memory() -> None:
    for words in ("64xTPUv5e", "8xGB200"):
        document, text = run_plan("llama-8b", "--cluster", words)
        device = catalogue()[document["cluster"]["device"]]
        assert device.memory_gib_usable is None and device.memory_gb_nominal
        nominal_gib = device.memory_gb_nominal * 1e9 / GIB
        assert document["predicted"]["memory_gib"]["high"] <= nominal_gib == document["cluster"]["memory_gib"]
        assert f"nominal {device.memory_gb_nominal:g} GB" in text


def test_nominal_memory_is_about_what_devices_report() -> None:
    known = [row for row in catalogue().values() if row.memory_gib_usable and row.memory_gb_nominal]
    ratios = [row.memory_gib_usable / (row.memory_gb_nominal * 1e9 / GIB) for row in known]  # type: ignore[operator]
    assert len(known) > 20 and min(ratios) > 0.97 and max(ratios) < 1.08


def test_plan_says_what_money_energy_and_carbon_are_counted_with(tmp_path: Path) -> None:
    document, text = run_plan("llama-8b", "--cluster", "8xH100")
    rates, predicted = document["counted_with"], document["predicted"]
    assert rates["price"] == "list price, 1.99 USD a device-hour" and rates["price_source"] in text
    assert predicted["usd"]["value"] == pytest.approx(1.99 * predicted["device_hours"]["value"])
    assert "PUE 1.25 (assumed" in text and "cluster.region, such as" in text
    assert "cluster.usd_per_device_hour" in run_plan("llama-8b", "--cluster", "8xMI300X")[1]
    own = tmp_path / "own.toml"
    own.write_text(CLUSTER + 'usd_per_device_hour = 2.1\nregion = "DEU"\npue = 1.2\n')
    document, text = run_plan("llama-8b", "--cluster", str(own))
    assert "money: 2.1 USD a device-hour\n" in text and "PUE 1.2 (as given)" in text
    grams = 1000.0 * document["predicted"]["kg_co2e"]["value"] / document["predicted"]["kwh"]["value"]
    assert document["counted_with"]["g_co2e_per_kwh"] == pytest.approx(grams)
    assert f"carbon: {grams:.0f} g" in text


def test_plan_of_a_device_of_unknown_watts_says_which_key_is_missing(tmp_path: Path) -> None:
    device = '[device]\nname = "X"\nmemory_gib_usable = 80\nmemory_gb_per_s = 3350\nbf16_dense_tflops = 989\n'
    own = tmp_path / "own.toml"
    for watts, said in (
        ("", "energy: nobody knows the device's watts: tdp_w"),
        ("tdp_w = 600\n", "PUE 1.25"),
    ):
        own.write_text(CLUSTER.replace('device = "H100"', "") + device + watts)
        document, text = run_plan("llama-1b", "--cluster", str(own))
        assert (document["predicted"]["kwh"]["value"] is None) is not bool(watts)
        assert said in text and ("nobody knows" in text) is not bool(watts)


def test_failures_of_a_short_run_are_hardly_any() -> None:
    text = run_plan("lora-chat", "--cluster", "1xRTX4090")[1]
    assert "hardly any (below 0.01)" in text and "Best checkpoint interval: longer than the run" in text


def test_plan_remarks_on_a_partly_empty_node_and_on_gigabits(tmp_path: Path) -> None:
    h100 = lookup("H100")
    assert remarks(catalogue_cluster(h100, 12)) == ["12 devices leave one of the nodes of 8 partly empty"]
    assert remarks(catalogue_cluster(h100, 16)) == remarks(catalogue_cluster(h100, 4)) == []
    own = tmp_path / "own.toml"
    own.write_text(CLUSTER.replace("network_gb_per_s = 50", "network_gb_per_s = 400"))
    document, text = run_plan("llama-1b", "--cluster", str(own))
    assert "Note: network_gb_per_s = 400 is more" in text and len(document["remarks"]) == 1


@pytest.mark.parametrize(
    ("text", "fix"),
    [("64H100", "--cluster 64xH100"), ("64 H100", "--cluster 64xH100"), ("H100x64", "--cluster 64xH100"),
     ("2xCPU", "leave --cluster out"), ("8xRTX3060", "cluster file"), ("/tmp", "cluster file")],
)  # fmt: skip
def test_cluster_that_is_none_is_told_how_to_be_written(text: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_cluster(text)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("text", "fix"),
    [("tp=8", "did you mean tensor=8?"), ("TP=8,PP=2", "did you mean tensor=8?"),
     ("fsdp=64", "did you mean shard=64?"), ("zero=3,shard=8", "ZeRO-3 is shard="),
     ("shard=8,micro_batch=4", "--set pretrain.micro_batch=4")],
)  # fmt: skip
def test_words_of_other_programs_are_translated(text: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_layout(text)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("change", "fix"),
    [("[cluster]\n", "without [cluster]"), ("network_gbit_per_s = 400\n", "400 Gbit/s are 50")],
)
def test_cluster_file_of_other_habits_is_told_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, fix: str
) -> None:
    own = tmp_path / "own.toml"
    own.write_text(change + CLUSTER)
    assert main(["plan", "llama-8b", "--cluster", str(own)]) == 2
    assert fix in capsys.readouterr().err


def test_device_in_another_unit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.toml"
    device = '[device]\nname = "X"\nmemory_gib_usable = 80\nmemory_gb_per_s = 3350\nbf16_dense_tflops = 989\n'
    own.write_text(CLUSTER.replace('device = "H100"', "") + device)
    assert main(["plan", "llama-8b", "--cluster", str(own)]) == 0
    for right, wrong in (("usable = 80", "usable = 81559"), ("per_s = 3350", "per_s = 3.35")):
        own.write_text(CLUSTER.replace('device = "H100"', "") + device.replace(right, wrong))
        assert main(["plan", "llama-8b", "--cluster", str(own)]) == 2
        assert wrong.split(" = ")[1] in capsys.readouterr().err


def test_model_in_a_recipes_place_is_told_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("llama-8b").mkdir()  # a shipped recipe stays one beside a folder of its name
    Path("mine").mkdir()
    for folder in ("llama-8b", "mine"):
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for word in ("mine", "mine/config.json"):
        assert main(["plan", word]) == 2
        assert f'[model] from = "{word}"' in capsys.readouterr().err
    assert load("llama-8b", []).recipe.name == "llama-8b"


def test_table_with_another_column_is_told_what_was_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("model,seqlen,gpus,gpu_type,tp,pp,dp,speed\nLlama 3 8B,8192,8,H100,1,1,8,9\n")
    assert main(["plan", "validate", str(rows)]) == 0
    assert "nothing is read from: seqlen (was seq_len meant?), speed" in capsys.readouterr().out
    assert main(["plan", "validate", str(rows), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unread_columns"] == {"seqlen": "seq_len", "speed": None}
    rows.write_text(rows.read_text().replace(",", ";"))
    assert main(["plan", "validate", str(rows)]) == 2
    assert "separated by semicolons" in capsys.readouterr().err
    rows.write_bytes("model,tp\nLl\xe4ma,1\n".encode("latin-1"))
    assert main(["plan", "validate", str(rows)]) == 2
    assert "UTF-8" in capsys.readouterr().err.split("fix:")[1]


def test_long_line_goes_on_under_its_last_column() -> None:
    line = "    1,434  shard=12 micro_batch=1: fits, 5% slower: matmuls take 28.7 s"
    broken = fitted(line, 50).splitlines()
    assert all(len(part) <= 50 for part in broken) and len(broken) == 2
    assert " ".join(part.strip() for part in broken) == line.strip()
    assert broken[1].startswith(" " * 11) and not broken[1].startswith(" " * 12)
    assert fitted(line, 80) == line


def test_plan_fits_a_narrow_terminal() -> None:
    width = 72
    here, terminal = os.openpty()
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    words = [sys.executable, "-m", "bessemer", "plan", "llama-1b", "--cluster", "8xH100"]
    with subprocess.Popen(words, stdout=terminal, stderr=subprocess.DEVNULL, env=environment) as child:
        os.close(terminal)
        text = b""
        with suppress(OSError):  # once the other end is closed
            while part := os.read(here, 65536):
                text += part
    os.close(here)
    lines = text.decode().splitlines()
    assert child.returncode == 0 and len(lines) > 40 and max(map(len, lines)) <= width
