"""Device-hours of whole published trainings: predicted without their own speed, and honest about it."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bessemer.cli import plan
from bessemer.formulas.flops import attention_flops_per_token, train_flops_per_token
from bessemer.formulas.parameters import matmul_params
from bessemer.planner.cost import memory
from bessemer.planner.machine.cluster import catalogue_cluster
from bessemer.planner.programme import NUM_PUBLISHED, OVER_TRAINING
from bessemer.planner.published.hours import DeviceHours, device_hours
from bessemer.planner.published.jobs import asked_of, tokens_in
from bessemer.planner.published.runs import PublishedRun, read_runs
from bessemer.planner.published.validate import validate

RUNS = read_runs(Path(__file__).parent / "runs.csv")
HOURS = [run for run in RUNS if run.gpu_hours]

# What each may be off by. Those far above 0.15 hold more than the training that is predicted (jobs.py).
CAPS = {
    "GPT 175B": 0.04, "GPT 530B": 0.09, "GPT-2 124M": 0.10, "LLaMA 65B": 0.08,
    "DeepSeek-V3 671B-A37B": 0.04, "Olmo 3 7B": 0.27, "Olmo 3 32B": 0.36, "Llama 3 70B": 0.35,
    "Llama 3 8B": 0.68,
}  # fmt: skip
HEADER = "source,model,params,seq,gpus,gpu_type,tp,gpu_hours,notes"


def run_of(model: str) -> PublishedRun:
    return next(run for run in HOURS if run.model == model)


def hours_of(run: PublishedRun) -> DeviceHours:
    found = device_hours(run)
    assert found is not None, run
    return found


def table(folder: Path, *rows: str) -> list[PublishedRun]:
    (folder / "rows.csv").write_text("\n".join((HEADER, *rows)) + "\n")
    return read_runs(folder / "rows.csv")


@pytest.mark.parametrize("run", HOURS, ids=lambda run: f"{run.row}-{run.model}")
def test_error_of_published_hours_does_not_grow(run: PublishedRun) -> None:
    assert hours_of(run).error < CAPS[run.model]


def test_projected_hours_are_tokens_over_the_published_rate() -> None:
    rows = [run for run in HOURS if "SC21 table 2" in run.source]
    assert len(rows) == 4
    for run in rows:
        assert run.actual_tokens_per_s_per_device is not None
        published = 300e9 / run.actual_tokens_per_s_per_device / 3600.0
        hours = hours_of(run)
        assert hours.predicted == pytest.approx(published, rel=0.12)
        assert hours.projected and hours.goodput == 1.0


def test_speed_found_for_the_405b_is_near_the_one_that_its_report_gives(tmp_path: Path) -> None:
    run = table(tmp_path, 'card,Llama 3.1 405B,,,,H100-80GB-SXM,,30840000,"total GPU hours, tokens 15T+"')[0]
    hours, asked = hours_of(run), asked_of(run)
    assert asked is not None and (hours.devices, hours.tokens) == (16384, 15.6e12)
    per_token = 6.0 * matmul_params(asked.shape) + 3.0 * attention_flops_per_token(asked.shape, 8192.0)
    step_tokens = asked.batch_rows * asked.context
    tflops = per_token * step_tokens / hours.step_time_s / hours.devices / 1e12
    assert tflops == pytest.approx(400.0, rel=0.15)  # arXiv:2407.21783, table 4
    assert hours.error < 0.15


@pytest.mark.parametrize("run", [run for run in HOURS if run.skipped_because], ids=lambda run: run.model)
def test_layout_that_is_found_fills_the_devices_and_fits(run: PublishedRun) -> None:
    hours, asked = hours_of(run), asked_of(run)
    assert asked is not None and int(hours.layout.world[0]) == hours.devices == asked.devices
    stack = "fsdp" if asked.stack == "fsdp" else "megatron"
    columns = memory.stage_bytes(asked.shape, asked.context, hours.layout, stack)
    assert memory.fits(columns, asked.device)[0]
    rows = hours.layout.data * hours.layout.micro_batch * hours.layout.micro_batches
    assert int(rows[0]) >= asked.batch_rows
    assert int(hours.layout.tensor[0]) <= catalogue_cluster(asked.device, asked.devices).per_node
    assert hours.goodput < 1.0


@pytest.mark.parametrize(
    ("notes", "tokens"),
    [
        ("total GPU hours, tokens 15T+; TDP 700 W", 15e12),
        ("tokens up to 9T (pruned+distilled)", 9e12),
        ("tokens ~40T", 40e12),
        ("~146 MWh, 5.93T tokens (512 H100)", 5.93e12),
        ("90 days for 300B tokens -> tokens/s/GPU", 300e9),
        ("14.8T tokens, pretrain 2.664M h = 180K h per 1T tokens", 14.8e12),
        ("from memory: about 380 tokens/s/GPU, 21 days for 1.4T tokens", 1.4e12),
        ("about 380 tokens/s", None),
    ],
)
def test_tokens_are_read_from_notes_as_sources_write_them(notes: str, tokens: float | None) -> None:
    assert tokens_in(notes) == (tokens, "T+" in notes)


def test_row_that_says_its_own_tokens_and_context_is_believed(tmp_path: Path) -> None:
    rows = table(
        tmp_path,
        "card,Llama 2 7B,,4096,,A100-80GB-SXM,,184320,2.0T tokens",
        "paper,LLaMA 7B,,,,A100-80GB-SXM,,82432,",
        'card,Llama 3.1 405B,,,,H100-80GB-SXM,,30840000,"tokens 15T+"',
    )
    asked = [asked_of(run) for run in rows]
    found = [(one.tokens, one.context) for one in asked if one is not None]
    assert found == [(2.0e12, 4096), (1.0e12, 2048), (15.6e12, 8192)]


def test_first_llamas_take_the_hours_of_their_paper(tmp_path: Path) -> None:
    row = "LLaMA (arXiv 2302.13971),LLaMA {},,,,A100-80GB-SXM,,{},"
    sizes = {"7B": 82432, "13B": 135168, "33B": 530432, "65B": 1022362}  # table 15
    runs = table(tmp_path, *(row.format(size, hours) for size, hours in sizes.items()))
    assert [hours_of(run).error < 0.15 for run in runs] == [True] * 4


def test_what_finished_programmes_took_is_the_range_that_a_plan_tells(tmp_path: Path) -> None:
    """Meta's model cards, whose rows the excerpt has two of; sources of the others are in it."""
    row = 'meta-llama/llama-models MODEL_CARD,{},{},,,H100-80GB-SXM,,{},"total GPU hours, tokens {}"'
    cards = [
        ("Llama 3.1 8B", 8030000000, 1.46e6, "15T+"), ("Llama 3.1 70B", 70600000000, 7.0e6, "15T+"),
        ("Llama 3.1 405B", 405000000000, 30.84e6, "15T+"), ("Llama 3.2 1B", 1230000000, 3.7e5, "up to 9T"),
        ("Llama 3.2 3B", 3210000000, 4.6e5, "up to 9T"), ("Llama 4 Scout", 109000000000, 5.0e6, "~40T"),
        ("Llama 4 Maverick", 400000000000, 2.38e6, "~22T"),
    ]  # fmt: skip
    runs = [*HOURS, *table(tmp_path, *(row.format(*card) for card in cards))]
    summary = validate(runs)["summary"]
    assert summary["device_hours_finished_rows"] == NUM_PUBLISHED
    ends = [summary[f"device_hours_finished_over_{end}"] for end in ("low", "median", "high")]
    told = (OVER_TRAINING.low, OVER_TRAINING.value, OVER_TRAINING.high)
    assert told == pytest.approx(ends, rel=0.05)
    taken = sorted(found.actual / found.predicted for run in runs if not (found := hours_of(run)).projected)
    assert sum(ends[0] <= each <= ends[2] for each in taken) == 10 and taken[6] < ends[1] < taken[7]


def test_what_a_source_is_known_to_share_is_not_searched() -> None:
    ddp, fsdp = (hours_of(run_of(model)).layout for model in ("GPT-2 124M", "LLaMA 65B"))
    assert (ddp.replicate[0], ddp.zero[0]) == (8, 0)  # nanoGPT: torch's DDP
    assert fsdp.zero[0] == 3


def test_model_that_no_list_knows_has_hours_in_proportion_to_its_tokens(tmp_path: Path) -> None:
    row = "report,Qwen2.5 7B,,4096,256,H100-80GB-SXM,,{},{} tokens"
    one, two = table(tmp_path, row.format(1e5, "1T"), row.format(1e5, "2T"))
    assert hours_of(two).predicted == pytest.approx(2.0 * hours_of(one).predicted)
    unsaid = table(tmp_path, "report,Qwen2.5 7B,,4096,,H100-80GB-SXM,,1e6,18T tokens")[0]
    found = hours_of(unsaid)
    assert found.assumed and found.devices % 8 == 0
    # By 6 N D, 7.6e9 parameters: 2 months at 40 % of 989 TFLOP/s would take 401 devices.
    assert found.devices == 512
    assert found.predicted == pytest.approx(6 * 7.6e9 * 18e12 / (0.42 * 989e12) / 3600.0, rel=0.25)


def test_longer_rows_at_the_end_of_a_training_count_by_their_flops() -> None:
    run = run_of("DeepSeek-V3 671B-A37B")
    asked = asked_of(run)
    assert asked is not None and [stage.context for stage in asked.longer] == [32768, 131072]
    per_token = [train_flops_per_token(asked.shape, context) for context in (4096, 32768, 131072)]
    stage_tokens = 1000 * 1920 * 32768  # arXiv:2412.19437, 4.3: of either stage
    whole = 14.8e12 + stage_tokens * (per_token[1] + per_token[2]) / per_token[0]
    steps = whole / (asked.batch_rows * asked.context)
    hours = hours_of(run)
    assert hours.predicted == pytest.approx(steps * hours.step_time_s * 2048 / 3600.0 / hours.goodput)
    # Published: 119,000 of 2,788,000 hours.
    assert 0.02 < whole / 14.8e12 - 1.0 < 0.045


def test_number_of_devices_that_does_not_divide_the_batch_has_hours_too(tmp_path: Path) -> None:
    run = table(tmp_path, "report,Qwen2.5 7B,,4096,200,H100-80GB-SXM,,1e5,1T tokens")[0]
    assert int(hours_of(run).layout.world[0]) == 200


def test_nothing_is_predicted_where_tokens_model_or_hours_are_not_known(tmp_path: Path) -> None:
    run = run_of("Olmo 3 7B")
    assert device_hours(replace(run, notes="no figure")) is None
    assert device_hours(replace(run, gpu_hours=None)) is None
    assert device_hours(replace(run, shape=None)) is None
    assert device_hours(replace(run, device=None)) is None
    assert device_hours(replace(run, job="lora")) is None
    small = "report,Llama 3 405B,,8192,8,H100-80GB-SXM,,1e6,1T tokens"
    assert device_hours(table(tmp_path, small)[0]) is None  # fits nowhere on 8 devices


def test_document_has_hours_of_rows_that_are_skipped_for_time_and_says_what_was_assumed() -> None:
    document = validate(RUNS)
    rows = {row["row"]: row for row in document["rows"]}
    for run in RUNS:
        row = rows[run.row]
        assert row["actual_device_hours"] == run.gpu_hours
        assert (row["predicted_device_hours"] is None) == (run.gpu_hours is None)
        assert row["skipped_because"] == run.skipped_because
    llama = rows[run_of("Llama 3 70B").row]
    assert llama["skipped_because"] == "missing layout" and "8,192 devices" in llama["device_hours_assumed"]
    assert llama["device_hours_note"]
    summary = document["summary"]
    errors = [abs(row["predicted_device_hours"] / row["actual_device_hours"] - 1.0)
              for row in document["rows"] if row["predicted_device_hours"] is not None]  # fmt: skip
    assert summary["device_hours_rows"] == len(errors) == len(HOURS)
    assert summary["device_hours_mape"] == pytest.approx(sum(errors) / len(errors))
    assert summary["device_hours_within_15_percent"] == sum(error <= 0.15 for error in errors)
    assert summary["device_hours_finished_rows"] == len(HOURS) - 4


def test_people_see_a_table_of_hours_with_its_assumptions() -> None:
    text = shown("runs.csv")
    assert "Device-hours" in text and "Assumed for row" in text and "Note on row" in text
    assert "1,300,000" in text and "of finished trainings" in text
    assert "Device-hours  model" not in shown("throughput.csv")


def test_hours_cost_little_time() -> None:
    began = time.perf_counter()
    for run in RUNS:
        device_hours(run)
    assert time.perf_counter() - began < 3.0


def shown(file: str) -> str:
    parser = argparse.ArgumentParser()
    plan.arguments(parser)
    args = parser.parse_args(["validate", str(Path(__file__).parent / file)])
    args.set = []
    document: dict[str, Any] = plan.run(args)
    return plan.show(document)
