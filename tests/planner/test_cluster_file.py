import re
from dataclasses import replace
from pathlib import Path

import pytest

from bessemer.errors import RecipeError
from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import lookup
from bessemer.planner.machine.cluster import Cluster, catalogue_cluster
from bessemer.planner.machine.facts import Facts, cluster_facts, planned_facts
from bessemer.planner.machine.planned import cluster_of, known_device, listed_device
from bessemer.planner.predict import devices_of, goodput_of, kg_per_kwh, kw_per_device, usd_per_device_hour
from bessemer.planner.search.question import Question
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Recipe

OURS = """
device = "H100"
nodes = 16
per_node = 8
link_gb_per_s = 450
network_gb_per_s = 25
usd_per_device_hour = 2.1
region = "DEU"
pue = 1.3
device_hours_per_failure = 20000
"""
OWN_DEVICE = """
devices = 64
per_node = 4
link_domain = 16
link_gb_per_s = 300
network_gb_per_s = 12.5
[device]
name = "X100"
memory_gib_usable = 120
memory_gb_per_s = 4000
bf16_dense_tflops = 800
tdp_w = 600
"""


def recipe(*overrides: str) -> Recipe:
    return parse('name = "a"\n', "r.toml", list(overrides))


def planned(tmp_path: Path, text: str, *overrides: str) -> tuple[Recipe, Facts]:
    path = tmp_path / "ours.toml"
    path.write_text(text)
    changed, facts = planned_facts(str(path), recipe(*overrides), tmp_path)
    assert facts is not None
    return changed, facts


def test_file_tells_everything_of_a_cluster(tmp_path: Path) -> None:
    changed, facts = planned(tmp_path, OURS)
    assert facts.devices == 128 and facts.device == "H100-SXM5-80GB"
    assert facts.cluster == Cluster(lookup("H100"), 128, 8, 8, 450.0, 25.0, 2.1, "DEU", 1.3, 20000.0)
    assert cluster_of(changed, facts) == facts.cluster
    assert usd_per_device_hour(changed, facts).value == 2.1
    assert kg_per_kwh(changed).value == pytest.approx(0.344, abs=0.001)
    one = recipe("cluster.pue=1.0", "cluster.region=DEU")
    alone = kw_per_device(one, facts).value
    assert alone is not None and kw_per_device(changed, facts).value == pytest.approx(1.3 * alone)


def test_device_of_ones_own_is_planned_with_its_own_figures(tmp_path: Path) -> None:
    changed, facts = planned(tmp_path, OWN_DEVICE)
    cluster = cluster_of(changed, facts)
    assert (cluster.per_node, cluster.link_domain, facts.device) == (4, 16, "X100")
    assert facts.memory_bytes == 120 * 2**30
    assert known_device(facts).peak_tflops("bf16") == 800 and listed_device(facts) == cluster.device
    assert kw_per_device(changed, facts).value
    assert usd_per_device_hour(changed, facts).value is None


def test_recipe_overrides_the_file_that_it_names_and_the_command_line_overrides_the_recipe(
    tmp_path: Path,
) -> None:
    (tmp_path / "ours.toml").write_text(OURS)
    given = recipe("cluster.file=ours.toml", "cluster.devices=32", "cluster.usd_per_device_hour=3.0")
    named, facts = planned_facts(None, given, tmp_path)
    assert facts is not None and facts.devices == 32
    assert (named.cluster.usd_per_device_hour, named.cluster.pue) == (3.0, 1.3)
    asked, facts = planned_facts(str(tmp_path / "ours.toml"), given, tmp_path)
    assert facts is not None and facts.devices == 128
    assert asked.cluster.usd_per_device_hour == 2.1
    silent = OURS.replace("usd_per_device_hour = 2.1\n", "").replace("device_hours_per_failure = 20000\n", "")
    (tmp_path / "silent.toml").write_text(silent)
    asked, facts = planned_facts(str(tmp_path / "silent.toml"), given, tmp_path)
    assert asked.cluster.usd_per_device_hour == 3.0 and asked.cluster.device_hours_per_failure is None


def test_without_a_file_the_catalogue_or_this_machine_is_planned(tmp_path: Path) -> None:
    assert planned_facts(None, recipe(), tmp_path) == (recipe(), None)
    _, facts = planned_facts("64xH100", recipe("cluster.device=A100"), tmp_path)
    assert facts == cluster_facts("H100", 64)
    _, facts = planned_facts(None, recipe("cluster.device=A100", "cluster.devices=16"), tmp_path)
    assert facts == cluster_facts("A100", 16)


def test_keys_of_the_recipe_reach_the_planned_cluster() -> None:
    given = recipe("cluster.region=FRA", "cluster.pue=1.1", "cluster.usd_per_device_hour=2",
                   "cluster.per_node=4", "cluster.device_hours_per_failure=1000")  # fmt: skip
    plain = catalogue_cluster(lookup("H100"), 64)
    expected = replace(plain, per_node=4, link_domain=4, usd_per_device_hour=2.0, region="FRA", pue=1.1,
                       device_hours_per_failure=1000.0)  # fmt: skip
    assert cluster_of(given, cluster_facts("H100", 64)) == expected
    assert cluster_of(recipe(), cluster_facts("H100", 64)) == plain


def test_rack_of_nodes_is_one_link_domain_and_part_of_a_node_is_no_error(tmp_path: Path) -> None:
    rack = 'device = "GB200-NVL72"\ndevices = 144\nlink_gb_per_s = 900\nnetwork_gb_per_s = 50\n'
    _, facts = planned(tmp_path, rack)
    assert facts.cluster is not None and facts.cluster.link_domain == 72
    _, facts = planned(tmp_path, 'device = "H100"\ndevices = 3\nlink_gb_per_s = 450\n')
    assert facts.cluster is not None and (facts.cluster.per_node, facts.cluster.link_domain) == (3, 3)
    _, facts = planned(tmp_path, 'device = "L40S"\ndevices = 1\n')
    assert facts.devices == 1


def changed_file(remove: str = "", add: str = "", text: str = OURS) -> str:
    lines = [line for line in text.splitlines() if not remove or not line.startswith(remove)]
    return "\n".join([add, *lines])


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        (changed_file("link_gb"), "link_gb_per_s is missing", "add link_gb_per_s"),
        (changed_file("network_gb"), "network_gb_per_s is missing", "add network_gb_per_s"),
        (changed_file("nodes"), "devices is missing", "add devices"),
        (changed_file("device =", 'device = "H1000"'), "unknown device", "did you mean"),
        (changed_file("", "devices = 100"), "contradict each other", "change one"),
        (changed_file("nodes", "devices = 100"), "nodes are not full", "change one"),
        (changed_file("", "link_domain = 12"), "link_domain does not fit", "change one"),
        (changed_file("", "netwrok_gb_per_s = 1"), "unknown key `netwrok_gb_per_s`", "network_gb_per_s"),
        (changed_file("pue", "pue = -1.0"), "`pue` does not take this value", "change it"),
        (changed_file("device =", ""), "`device` is missing", "add"),
        (changed_file("pue", "pue = "), "not valid TOML", "write"),
        (changed_file("memory_gib", "", OWN_DEVICE), "`device.memory_gib_usable` is missing", "add memory"),
        (OWN_DEVICE + "\ntdp_watts = 1", "unknown key `device.tdp_watts`", "tdp_w"),
        (changed_file("tdp_w", "", OWN_DEVICE) + '\ntdp_w = "1"', "`device.tdp_w` is not right", "change"),
        (changed_file("per_node", "", OWN_DEVICE), "per_node is missing", "add per_node"),
    ],
)  # fmt: skip
def test_wrong_file_is_refused_with_the_key_and_what_to_do(
    tmp_path: Path, text: str, problem: str, fix: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, text)
    assert problem in caught.value.problem and fix in caught.value.fix, caught.value
    if "unknown device" not in problem:
        assert "ours.toml" in caught.value.problem


def test_files_of_the_documentation_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
    whole, device = re.findall(r"^```ini\n(.*?)^```$", page, re.M | re.S)
    assert planned(tmp_path, whole)[1].devices == 128
    without_name = "\n".join(line for line in whole.splitlines() if not line.startswith("device ="))
    assert planned(tmp_path, f"{without_name}\n{device}")[1].device == "X100"


def test_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read cluster file .*nowhere\.toml"):
        planned_facts(str(tmp_path / "nowhere.toml"), recipe(), tmp_path)
    with pytest.raises(RecipeError, match="cannot read cluster file"):
        planned_facts(None, recipe("cluster.file=nowhere.toml"), tmp_path)


def test_text_too_long_for_a_file_name_is_no_cluster_and_no_crash(tmp_path: Path) -> None:
    for asked in ("x" * 5000, "x" * 5000 + ".toml", "9" * 5000 + "xH100"):
        with pytest.raises(RecipeError):
            planned_facts(asked, recipe(), tmp_path)


def test_more_devices_than_there_are_is_refused_wherever_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="more devices than there are"):
        planned_facts("100000000000000xH100", recipe(), tmp_path)
    with pytest.raises(RecipeError, match="more devices than there are"):
        planned_facts(None, recipe("cluster.device=H100", "cluster.devices=10000001"), tmp_path)
    with pytest.raises(RecipeError, match="more devices than there are"):
        planned(tmp_path, OURS.replace("nodes = 16", "nodes = 100000000"))
    with pytest.raises(RecipeError, match="more devices than there are"):
        devices_of(Layout(replicate=10**14), cluster_facts("H100", 1))
    assert planned_facts("10000000xH100", recipe(), tmp_path)[1] is not None


def test_nodes_that_are_not_full_are_refused_from_a_recipe_as_from_a_file() -> None:
    with pytest.raises(RecipeError, match="the nodes are not full"):
        cluster_of(recipe("cluster.per_node=3"), cluster_facts("H100", 64))


def test_device_of_a_wrong_kind_is_not_told_to_take_a_default(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="`device` does not take this value") as caught:
        planned(tmp_path, changed_file("device =", "device = 5"))
    assert "default" not in caught.value.fix and "H100" in caught.value.fix


def test_link_that_is_hardly_one_is_refused(tmp_path: Path) -> None:
    for name in ("link_gb_per_s", "network_gb_per_s"):
        with pytest.raises(RecipeError, match=f"`{name}` does not take this value") as caught:
            planned(tmp_path, changed_file(name, f"{name} = 1e-30"))
        assert "0.001" in caught.value.wanted


def test_goodput_of_the_plan_is_that_of_the_search(tmp_path: Path) -> None:
    slow = OURS.replace("network_gb_per_s = 25", "network_gb_per_s = 0.01")  # slower than the storage
    changed, facts = planned(tmp_path, slow)
    shape = ModelShape(
        "llama", 80, 8192, 64, 8, 128, 28672, 128256, 8192, tie_embeddings=False, qk_norm=False
    )
    for asynchronous in (True, False):
        asked = Question(shape, 8192, 256, 1000, "bf16", cluster_of(changed, facts), saves_async=asynchronous)
        assert goodput_of(changed, shape, facts, asynchronous).value == asked.reliability().goodput.value
    fast = planned(tmp_path, OURS)
    assert (goodput_of(changed, shape, facts).value or 1) < (goodput_of(fast[0], shape, fast[1]).value or 0)
