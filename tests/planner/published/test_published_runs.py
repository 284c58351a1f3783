"""Tables of published runs: read as their sources mean them, refused in words where they are none."""

from pathlib import Path

import pytest

from bessemer.errors import RecipeError
from bessemer.formulas.layout import SCHEDULES
from bessemer.planner.cost.candidates import RECOMPUTE
from bessemer.planner.published.runs import PublishedRun, read_runs

HERE = Path(__file__).parent
HEADER = (
    "source,model,seq,global_batch_sequences,gpus,gpu_type,tp,pp,dp,micro_batch,tokens_per_s_per_gpu,notes"
)


def table(folder: Path, *rows: str, header: str = HEADER) -> list[PublishedRun]:
    (folder / "rows.csv").write_text("\n".join((header, *rows)) + "\n")
    return read_runs(folder / "rows.csv")


def of(source: str, model: str) -> PublishedRun:
    runs = [run for run in read_runs(HERE / "runs.csv") if source in run.source and run.model == model]
    return runs[0]


def test_every_row_with_a_layout_is_read_and_fills_its_devices() -> None:
    runs = read_runs(HERE / "runs.csv")
    known = [run for run in runs if run.skipped_because is None]
    assert all(int(run.candidates.world[0]) == run.devices for run in known if run.candidates)
    reasons = {run.skipped_because for run in runs if run.skipped_because}
    assert all(reason.startswith(("unknown model", "missing layout")) for reason in reasons)
    assert len(known) > 65


def test_rows_of_the_three_tables_that_are_one_run_agree() -> None:
    throughput = read_runs(HERE / "throughput.csv")
    published = of(
        "SC21 table 1", "GPT 1.7B"
    )  # gives TFLOP/s alone, by a formula with the recomputed forward
    same = next(run for run in throughput if run.model == "GPT h2304 L24 a24")
    assert published.actual_step_time_s == pytest.approx(same.actual_step_time_s, rel=0.01)
    assert published.stack == same.stack == "megatron-2021"
    stage = read_runs(HERE / "memory.csv")[0]
    whole = of("SimuMax", "Llama-3 70B cut to 12 layers")
    assert stage.shape == whole.shape and stage.device == whole.device and stage.stage == 0
    assert stage.actual_step_time_s == whole.actual_step_time_s == 0.843
    assert stage.actual_allocated_gib == pytest.approx(whole.actual_allocated_gib, abs=0.01)
    assert stage.actual_reserved_gib == 70.885 and stage.devices == whole.devices == 8


def test_stacks_and_what_they_shard_follow_from_the_source() -> None:
    def read(source: str, model: str) -> tuple[str, int]:
        run = of(source, model)
        assert run.candidates is not None
        return run.stack, int(run.candidates.zero[0])

    assert read("Megatron-Bridge", "Llama-3.1 405B") == ("megatron", 1)
    assert read("llm-foundry", "MPT-70b") == ("llm-foundry", 3)
    assert read("bigscience", "BLOOM-candidate 181B") == ("megatron-deepspeed", 1)
    assert read("SC21 table 1", "GPT 1.7B") == ("megatron-2021", 0)
    assert read("maxtext", "MaxText 16B") == ("maxtext", 3)
    assert of("bigscience", "BLOOM 176B (production)").cluster.network_gb_per_s == 6.25  # type: ignore[union-attr]


def test_deepspeed_zero_3_rows_of_a_megatron_table_are_deepspeed() -> None:
    run = next(run for run in read_runs(HERE / "runs.csv") if "ZeRO-3 without" in run.notes)
    assert run.stack == "deepspeed" and run.candidates is not None and run.candidates.zero[0] == 3


def test_memory_is_told_apart_by_what_measured_it() -> None:
    bloom = of("bigscience", "BLOOM-candidate 181B")
    assert (bloom.actual_allocated_gib, bloom.actual_device_gib) == (None, 29.0)
    simumax = of("SimuMax", "Llama-3 70B cut to 12 layers")
    assert (simumax.actual_allocated_gib, simumax.actual_device_gib) == (66.55, None)
    assert any(run.out_of_memory for run in read_runs(HERE / "runs.csv"))


def test_later_token_layers_follow_from_the_name_or_the_published_flops() -> None:
    def layers(model: str) -> int:
        shape = of("Megatron-Bridge", model).shape
        assert shape is not None
        return shape.mtp_layers

    assert layers("DeepSeekV3") == 1 and layers("DeepSeekV3 (w/o MTP)") == 0


def test_maxtext_rows_take_layout_and_batch_of_their_scripts() -> None:
    run = next(run for run in read_runs(HERE / "runs.csv") if run.model == "MaxText 22B")
    assert run.candidates is not None and run.context == 2048
    assert run.candidates.micro_batch[0] == 13 and run.candidates.shard[0] == 64
    assert run.candidates.recompute[0] == RECOMPUTE.index("full")


def test_blanks_follow_from_the_other_columns(tmp_path: Path) -> None:
    (run,) = table(tmp_path, "NeMo,Llama-3 70B,8192,128,64,H100,4,8,,1,1000,")
    assert run.candidates is not None
    assert run.candidates.shard[0] == 2 and run.candidates.micro_batches[0] == 64
    assert run.actual_step_time_s == pytest.approx(128 * 8192 / 64_000)
    (run,) = table(tmp_path, "torchtitan,Llama 3 8B,8192,,128,H100,,,128,,5000,local batch size 2")
    assert run.candidates is not None and run.candidates.micro_batch[0] == 2
    assert run.actual_step_time_s is None and run.actual_tokens_per_s_per_device == 5000


def test_torchtitan_shards_weights_keeps_them_under_a_pipeline_and_logs_reserved_memory(
    tmp_path: Path,
) -> None:
    header = HEADER.replace("tokens_per_s_per_gpu", "mem_gib").replace("notes", "schedule,notes")
    plain, piped = table(
        tmp_path,
        'torchtitan,Llama 3.1 8B,8192,16,8,H100,1,1,8,2,70,,"H100 with 96GB HBM2e, 500 W"',
        "torchtitan,Llama 3.1 405B,8192,128,512,H100,8,8,8,1,70,Interleaved 1F1B,",
        header=header,
    )
    assert plain.device is not None and "500W" in plain.device.name
    assert plain.actual_reserved_gib == 70 and plain.actual_allocated_gib is None
    assert plain.candidates is not None and piped.candidates is not None
    assert piped.candidates.interleave[0] == 2
    assert (plain.stack, plain.candidates.zero[0], piped.candidates.zero[0]) == ("fsdp", 3, 2)


def test_torchtitan_cuts_the_rows_of_a_rank_into_as_many_micro_batches_as_there_are_stages(
    tmp_path: Path,
) -> None:
    header = HEADER.replace("notes", "schedule,notes")
    one, two, odd = table(
        tmp_path,
        "torchtitan,Llama 3.1 405B,8192,256,512,H100,8,8,8,1,70,1F1B,",
        "torchtitan,Llama 3.1 405B,8192,256,512,H100,8,8,8,1,70,Interleaved 1F1B,",
        "torchtitan,Llama 3.1 405B,8192,96,512,H100,8,8,8,1,70,1F1B,",
        header=header,
    )
    found = [run.candidates for run in (one, two, odd)]
    cut = [(each.micro_batch[0], each.micro_batches[0]) for each in found if each is not None]
    assert cut == [(4, 8), (2, 16), (1, 12)]  # where they do not divide: as the row says


def test_header_may_be_in_another_case_and_order(tmp_path: Path) -> None:
    header = "TP,PP,DP,Model,N_ACC,Accelerator,Seq_Len,Micro_Batch,Microbatches,VPP,step_ms_measured,SHARDING"
    (run,) = table(tmp_path, '2,2,2,llama3_8b,8,a100_80gb,"4,096",1,~8,4,900,"FSDP, HSDP 2x1"', header=header)
    assert run.candidates is not None and run.batch_rows == 16 and run.actual_step_time_s == 0.9
    assert run.candidates.replicate[0] == 2 and run.candidates.schedule[0] == SCHEDULES.index("interleaved")


def test_rows_that_cannot_be_predicted_say_why(tmp_path: Path) -> None:
    runs = table(
        tmp_path,
        "x,Llama-3 8B,8192,128,8,Z9000,1,1,8,1,,",
        "x,Frobnicator,8192,128,8,H100,1,1,8,1,,",
        "x,Llama-3 8B,8192,128,512,H100,,,,,9000,",
        "x,Llama-3 8B,8192,128,8,EPYC-7763,1,1,8,1,,",
    )
    reasons = [run.skipped_because for run in runs]
    assert reasons[:3] == ["unknown device 'Z9000'", "unknown model 'Frobnicator'", "missing layout"]
    assert reasons[3] is not None and "no peak" in reasons[3]
    assert runs[2].actual_tokens_per_s_per_device == 9000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no header"),
        ("# a page of text\n\nabout runs\n", "has no header"),
        ("name,kind\nH100,gpu\n", "no table of published runs"),
        (HEADER + "\n", "has no rows"),
        (HEADER + "\nNeMo,Llama-3 8B,8192,128,8,H100,two,1,8,1,1000,\n", "row 1 .* tp is no number"),
    ],
)
def test_file_that_is_no_such_table_is_refused_with_its_reason(
    tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(RecipeError, match=problem):
        read_runs(tmp_path / "rows.csv")
    with pytest.raises(RecipeError, match="cannot read"):
        read_runs(tmp_path / "absent.csv")
