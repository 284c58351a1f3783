"""What a run would take of its budget: shown by `plan`, warned of, refused, and kept for fine-tuning."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from making_plans import run_plan

from bessemer.cli.main import main
from bessemer.errors import RecipeError, RefusedError
from bessemer.finetune import compare_scratch
from bessemer.finetune.task import Task
from bessemer.hardware import GIB, Ceilings
from bessemer.log import Console
from bessemer.planner.calibrated.taught import Row, Taught, step_key
from bessemer.planner.machine.facts import Facts, cluster_facts
from bessemer.planner.plan import Estimate, Plan
from bessemer.planner.resolve import _STILL, resolve
from bessemer.planner.sizing.budget import Use, check_budget, finetuning_after, times_compared, uses, warning
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Recipe

CEILINGS = Ceilings("a CPU", 2.0, 0.4, 20.0, 2, "2.13.0", "2026-01-01")
CPU = Facts("a CPU", "cpu", cores=2, memory_bytes=16 * GIB, ceilings=CEILINGS, vocab=8000)
CLUSTER = cluster_facts("H100", 64)
SOURCE = '[[data.source]]\nname = "x"\nkind = "text"\npath = "x.txt"\n'
TASK = '[finetune]\ndata = { path = "t.jsonl" }\n'
NOTHING = Estimate(0.0, 0.0, 0.0, "assumed")


def recipe(*overrides: str, text: str = "") -> Recipe:
    return parse(f'name = "a"\n{text}', "r.toml", list(overrides))


def use(amount: float, left: tuple[float, float, float], spent: float = 0.0) -> Use:
    return Use("kwh", amount, spent, Estimate(*left, "assumed"), NOTHING)


def hours_of(plan: Plan) -> float:
    hours = plan.predicted["hours"].value
    assert hours is not None
    return hours


def test_a_likely_excess_is_a_warning_and_a_sure_one_a_refusal_that_counts_what_is_spent() -> None:
    fits, likely, sure = (use(amount, (10.0, 8.0, 13.0)) for amount in (11.0, 9.0, 7.0))
    for found in (fits, likely):
        check_budget([found], 100)
    assert warning([fits]) is None
    assert "budget.kwh = 9 is likely to be reached: 10 kWh (8 to 13)" in (warning([likely]) or "")
    with pytest.raises(RefusedError) as caught:
        check_budget([sure], 100)
    assert "set fewer steps (70 would do), or raise it with --set budget.kwh=10.1" in caught.value.fix
    with pytest.raises(RefusedError) as caught:
        check_budget([use(9.0, (10.0, 8.0, 13.0), spent=5.0)], 100)
    assert caught.value.found == "13 kWh at the least, 15 likely, 5 of them spent already"
    assert "(40 would do)" in caught.value.fix


def test_fewer_devices_are_offered_where_they_waste_so_little_that_it_fits() -> None:
    words = ("model.size=1B", "pretrain.tokens=20B")
    low = {
        n: resolve(recipe(*words), cluster_facts("H100", n)).predicted["kwh"].low or 0.0 for n in (512, 128)
    }
    assert low[128] < 0.9 * low[512]
    for limit, offered in ((1.01 * low[128], "take 128 devices, or "), (0.1 * low[128], "")):
        with pytest.raises(RefusedError) as caught:
            resolve(recipe(*words, f"budget.kwh={limit}"), cluster_facts("H100", 512))
        assert offered in caught.value.fix and ("devices" in caught.value.fix) == bool(offered)


def test_each_limit_is_compared_with_its_own_prediction() -> None:
    given = recipe("pretrain.tokens=1B", "model.size=100M", "budget.hours=10", "budget.usd=1000",
                   "budget.kwh=200", "budget.kg_co2e=1e5", "energy.region=DEU")  # fmt: skip
    plan = resolve(given, CLUSTER)
    found = uses(given, CLUSTER, plan.predicted)
    assert {each.name for each in found} == {"hours", "usd", "kwh", "kg_co2e"}
    for each in found:
        predicted = plan.predicted[each.name]
        assert (each.whole.value, each.whole.low, each.whole.high) == (
            predicted.value, predicted.low, predicted.high)  # fmt: skip
    shares = [(each.whole.value or 0.0) / each.amount for each in found]
    assert shares == sorted(shares, reverse=True)


def test_kilowatt_hours_are_refused_by_their_own_low_end_not_by_that_of_the_hours() -> None:
    given = recipe("pretrain.steps=1000", "model.size=10M")
    kwh = resolve(given, CPU).predicted["kwh"]
    assert kwh.low is not None and kwh.value is not None
    for limit, refused in ((1.01 * kwh.low, False), (0.99 * kwh.low, True)):
        asked = recipe("pretrain.steps=1000", "model.size=10M", f"budget.kwh={limit}")
        if refused:
            with pytest.raises(RefusedError, match="does not fit its budget"):
                resolve(asked, CPU)
        else:
            resolve(asked, CPU)


def test_fine_tuning_counts_as_likely_and_not_at_the_low_end() -> None:
    given = recipe("pretrain.steps=100", "pretrain.batch_tokens=8192", "model.size=10M", text=TASK)
    plan = resolve(given, CPU)
    later = finetuning_after(given, plan.pretrain, plan.predicted)["hours"]
    assert later.value == pytest.approx(hours_of(plan) * 2 * 1000 * 1024 / (100 * 8192)) and later.low == 0.0
    compared = recipe("pretrain.steps=100", "pretrain.batch_tokens=8192", "model.size=10M",
                      "finetune.compare_scratch=true", "finetune.compare_seeds=1", text=TASK)  # fmt: skip
    more = finetuning_after(compared, plan.pretrain, plan.predicted)["hours"].value
    assert more == pytest.approx(5.3125 * (later.value or 0.0))  # 1/16, 1/4, all; and twice all, at two rates
    limit = given.budget.model_copy(update={"hours": 1.5 * hours_of(plan)})
    resolve(given.model_copy(update={"budget": limit}), CPU)  # is not refused


@pytest.mark.parametrize("seeds", [1, 3])
def test_comparison_counts_as_long_as_all_of_its_trainings_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    """The comparison itself, which trains nothing here but notes for how long it would."""
    given = recipe("finetune.epochs=4", "finetune.compare_scratch=true", f"finetune.compare_seeds={seeds}",
                   text=TASK)  # fmt: skip
    epochs = [4.0]  # of all examples; its own training comes before the comparison

    def train_on(task: Any, name: str, *, examples: int | None = None, from_scratch: bool = False) -> None:
        epochs.append(task.recipe.finetune.epochs * (examples or 6400) / 6400)

    monkeypatch.setattr(compare_scratch, "train_on", train_on)
    monkeypatch.setattr(compare_scratch, "best_loss", lambda stage: 1.0)
    shape = resolve(recipe("pretrain.steps=1", "model.size=10M"), CPU).shape
    place = SimpleNamespace(run=tmp_path, console=Console(quiet=True))
    data = SimpleNamespace(num_examples=lambda split: 6400)
    parts: list[Any] = [given, place, SimpleNamespace(plan=None), shape, tmp_path, data, CPU]
    compare_scratch.compare_scratch(Task(*parts))
    assert given.finetune is not None
    assert times_compared(given.finetune) == pytest.approx(sum(epochs) / 4.0)


def test_length_that_a_budget_decides_leaves_room_for_fine_tuning() -> None:
    alone = resolve(recipe("budget.hours=2", "model.size=10M"), CPU)
    given = recipe("budget.hours=2", "model.size=10M", text=TASK)
    plan = resolve(given, CPU)
    later = finetuning_after(given, plan.pretrain, plan.predicted)["hours"].value or 0.0
    planned = 0.9 * 2.0
    assert 0.95 * planned <= hours_of(alone) <= planned
    assert 0.95 * planned <= hours_of(plan) + later <= 1.005 * planned and later > 0.05
    short = resolve(recipe("budget.hours=0.1", "model.size=10M", text=TASK), CPU)
    assert hours_of(short) == pytest.approx(0.9 * 0.05, rel=0.05)  # half of it at least


def taught(plan: Plan, faster: float = 1.0) -> Facts:
    """The machine on which this very step was run already."""
    step_s = plan.predicted["step_time_s"].value
    assert step_s is not None
    key = step_key(plan.shape, plan.pretrain, "cpu", 2)
    row = Row(key.exact, key.way, key.hidden, step_s / faster, None, "", 50, "2026-11-28")
    return replace(CPU, taught=Taught(CPU.device, (row,)))


def test_reserve_is_what_the_band_says_and_a_quicker_machine_gets_more_only_before_the_start() -> None:
    given = recipe("budget.hours=2", "model.size=10M", "pretrain.batch_tokens=8192")
    first = resolve(given, CPU)
    known, faster = (resolve(given, taught(first, faster)) for faster in (1.0, 2.0))
    for plan, reserve in ((first, 0.1), (known, 1.0 - 1.0 / 1.05), (faster, 1.0 - 1.0 / 1.05)):
        told = {row.key: row for row in plan.derived}["budget.reserve"]
        assert told.value == pytest.approx(reserve, abs=1e-4) and "gets no longer" in told.rule
        assert hours_of(plan) == pytest.approx((1.0 - reserve) * 2.0, rel=0.002)
    assert faster.pretrain.steps == pytest.approx(2.0 * known.pretrain.steps, abs=1.0)


def test_reserve_is_of_the_limit_that_decides() -> None:
    """Energy is assumed within a factor of two, however well the speed is known."""
    given = recipe("budget.kwh=0.1", "model.size=10M", "pretrain.batch_tokens=8192")
    plan = resolve(given, taught(resolve(given, CPU)))
    assert plan.predicted["kwh"].value == pytest.approx(0.9 * 0.1, rel=0.01)
    assert plan.predicted["hours"].high == pytest.approx(1.05 * hours_of(plan))


@pytest.mark.parametrize("limit", ["kwh=2000", "kg_co2e=700", "usd=4000", "hours=30"])
def test_the_reserve_is_kept_of_what_the_plans_own_step_draws(limit: str) -> None:
    """Boards of a large model draw more than is typical of them."""
    given = recipe("model.size=8B", "cluster.region=DEU", f"budget.{limit}")
    plan = resolve(given, CLUSTER)
    share = plan.predicted[limit.split("=")[0]].times(1.0 / float(limit.split("=")[1])).value
    assert share is not None and 0.9 * (1.0 - _STILL) <= share <= 0.9


def test_hours_of_pre_training_are_a_length_and_no_limit() -> None:
    plan = resolve(recipe("pretrain.hours=2", "model.size=10M", text=TASK), CPU)
    limited = resolve(recipe(f"budget.hours={2 / 0.9}", "model.size=10M"), CPU)  # without its reserve
    assert plan.pretrain.steps == limited.pretrain.steps and 0.95 * 2.0 <= hours_of(plan) <= 2.0
    assert not uses(recipe("pretrain.hours=2"), CPU, plan.predicted)
    for beside in ("pretrain.steps=5", "pretrain.tokens=1M", "model.size=auto"):
        with pytest.raises(RecipeError, match="contradicts itself"):
            resolve(recipe("pretrain.hours=2", beside), CPU)
    with pytest.raises(RefusedError):
        resolve(recipe("pretrain.hours=2", "model.size=10M", "budget.hours=0.5"), CPU)


def test_plan_shows_the_share_of_each_limit_and_warns(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    (tmp_path / "x.txt").write_text("iron\n" * 1000)
    file.write_text(f'name = "a"\n[model]\nsize = "1B"\n[pretrain]\ntokens = "20B"\n{SOURCE}{TASK}')
    words = [str(file), "--cluster", "64xH100"]
    found = run_plan(*words, settings=("budget.usd=1e5", "budget.kwh=1e4", "energy.region=DEU"))[0]
    usd, kwh = (next(row for row in found["budget"] if row["name"] == name) for name in ("usd", "kwh"))
    assert usd["share"]["value"] == pytest.approx(usd["takes"]["value"] / 1e5)
    assert usd["takes"]["low"] == pytest.approx(found["predicted"]["usd"]["low"])
    assert kwh["takes"]["value"] > found["predicted"]["kwh"]["value"] and found["budget_warning"] is None
    tight = f"budget.kwh={0.9 * kwh['takes']['value']}"
    document, text = run_plan(*words, settings=(tight,))
    assert "is likely to be reached" in document["budget_warning"] and document["budget_warning"] in text
    assert "share" in text and "111 %" in text and "as if the task had a thousand rows" in text
    assert document["budget_reserve"] is None and "in reserve" not in text  # it decided nothing
    assert run_plan(*words)[0]["budget"] == []
    file.write_text(f'name = "a"\n[model]\nsize = "1B"\n{SOURCE}')
    document, text = run_plan(*words, settings=("budget.usd=1000",))
    assert document["budget_reserve"] == 0.1 and "planned with 10.0 % of the budget in reserve" in text
    assert document["budget"][0]["share"]["value"] == pytest.approx(0.9, rel=0.01)


@pytest.mark.parametrize("amount", ["0", "-2.5"])
def test_budget_of_nothing_is_refused_with_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], amount: str
) -> None:
    file = tmp_path / "r.toml"
    file.write_text(f'name = "a"\n[budget]\nhours = 3\nkwh = {amount}\n')
    assert main(["plan", str(file), "--cluster", "8xH100"]) == 2
    told = capsys.readouterr().err
    assert "r.toml, line 4: `budget.kwh`" in told and "greater than 0" in told and f"kwh = {amount}" in told


def test_limit_beyond_which_no_step_fits_says_to_raise_it(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('name = "a"\n[model]\nsize = "1B"\n[pretrain]\nsteps = 10\n[budget]\nusd = 0.001\n')
    assert main(["plan", str(file), "--cluster", "8xH100"]) == 3


def test_unlisted_device_may_have_a_budget_of_energy_where_it_decides_nothing() -> None:
    stranger = Facts("a stranger", "gpu", ceilings=CEILINGS, vocab=8000)
    limited = ("budget.kwh=5", "energy.region=DEU", "budget.kg_co2e=2")
    given = recipe("pretrain.steps=10", "model.size=10M", *limited)
    found = uses(given, stranger, resolve(given, stranger).predicted)
    assert [each.whole.value for each in found] == [None, None] and warning(found) is None
    for fixed, missing in (("budget.kwh=5", "cluster.device"), ("budget.kg_co2e=2", "cluster.region")):
        with pytest.raises(RecipeError) as caught:
            resolve(recipe("model.size=10M", fixed), stranger)
        assert missing in caught.value.fix
