"""Memory under FSDP: against what torchtitan publishes, and runs that did or did not fit."""

from dataclasses import replace
from statistics import mean

import pytest
from making_memory import HERE, candidate, llama, rows

from bessemer.hardware import GIB, lookup
from bessemer.planner.cost.candidates import Candidates
from bessemer.planner.cost.memory import fits, stage_bytes
from bessemer.planner.published.runs import read_runs
from bessemer.planner.published.validate import predict

LLAMA3 = {
    "Llama 3.1 8B": llama(32, 4096, 32, 8, 14336),
    "Llama 3.1 70B": llama(80, 8192, 64, 8, 28672),
    "Llama 3.1 405B": llama(126, 16384, 128, 8, 53248),
}
LLAMA2_13B = llama(40, 5120, 40, 40, 13824, 32000)
LLAMA2_70B = llama(80, 8192, 64, 8, 28672, 32000)
TITAN = [row for row in rows("torchtitan_runs.csv") if row["mem_gib"]]


def layout(row: dict[str, str]) -> Candidates:
    names = {"tensor": "tp", "pipeline": "pp", "context": "cp", "shard": "dp", "micro_batch": "micro_batch"}
    words = {word: int(row[name]) for word, name in names.items()}
    words["interleave"] = int(row["interleave"])
    if words["pipeline"] > 1:
        # torchtitan cuts the batch into as many micro-batches as there are stages.
        rows_here = int(row["global_batch_sequences"]) // words["shard"]
        words["micro_batches"] = words["pipeline"] * words["interleave"]
        words["micro_batch"] = rows_here // words["micro_batches"] or 1
    schedule = "interleaved" if words["interleave"] > 1 else "1f1b"
    return candidate(
        recompute=row["activation_recompute"], precision=row["precision"], schedule=schedule, zero=3, **words
    )


def error(row: dict[str, str]) -> float:
    stack = "fsdp" if "2025" in row["source"] else "fsdp-eager"
    found = stage_bytes(LLAMA3[row["model"]], int(row["seq"]), layout(row), stack)
    return float(found.reserved[0] / GIB / float(row["mem_gib"]) - 1)


def test_reserved_memory_of_torchtitan_without_a_pipeline() -> None:
    found = [error(row) for row in TITAN if row["pp"] == "1"]
    assert len(found) == 14
    assert mean(map(abs, found)) < 0.03 and max(map(abs, found)) < 0.065


def test_reserved_memory_of_torchtitan_with_a_pipeline_is_too_low_by_a_known_share() -> None:
    found = [error(row) for row in TITAN if row["pp"] != "1"]
    assert len(found) == 6
    assert mean(found) == pytest.approx(-0.12, abs=0.03) and min(found) > -0.19


def test_validation_reads_the_layouts_that_these_errors_are_of() -> None:
    runs = [run for run in read_runs(HERE / "torchtitan_runs.csv") if run.actual_reserved_gib]
    assert len(runs) == len(TITAN)
    for run, row in zip(runs, TITAN, strict=True):
        assert predict(run).memory_error == pytest.approx(abs(error(row)), abs=0.005), row


@pytest.mark.parametrize(
    ("model", "rows_", "recompute", "ran"),
    [
        (LLAMA2_13B, 2, "none", True), (LLAMA2_13B, 2, "selective", True),
        (LLAMA2_70B, 1, "selective", True), (LLAMA2_70B, 2, "selective", False),
        (LLAMA2_70B, 2, "full", True),
    ],
)  # fmt: skip
def test_layouts_that_ran_on_64_a100_fit_and_the_one_that_ran_out_of_memory_does_not(
    model: object, rows_: int, recompute: str, ran: bool
) -> None:
    """pytorch/torchtitan, docs/performance.md: the 70B with two rows ends in an out-of-memory error."""
    tried = candidate(shard=64, micro_batch=rows_, recompute=recompute, zero=3)
    columns = stage_bytes(model, 4096, tried, "fsdp-eager")  # type: ignore[arg-type]
    assert fits(columns, lookup("A100-SXM4-80GB"))[0] == ran


# Largest micro-batches of mosaicml/llm-foundry, scripts/train/benchmarking (Apache-2.0), by device.
FOUNDRY = [
    ("A100-SXM4-40GB", 24, 1024, 16, 2048, 128, 18, "none"),
    ("A100-SXM4-40GB", 24, 2048, 16, 2048, 32, 10, "none"),
    ("A100-SXM4-40GB", 32, 2560, 20, 2048, 32, 6, "none"),
    ("A100-SXM4-80GB", 48, 7168, 56, 8192, 8, 1, "full"),
    ("H100", 32, 2560, 20, 8192, 8, 3, "none"), ("H100", 24, 2048, 16, 2048, 16, 20, "none"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "layers", "hidden", "heads", "seq", "data", "rows_", "recompute"), FOUNDRY
)
def test_largest_micro_batches_that_ran_are_not_refused(
    device: str, layers: int, hidden: int, heads: int, seq: int, data: int, rows_: int, recompute: str
) -> None:
    shape = replace(llama(layers, hidden, heads, heads, 4 * hidden, 50432), gated=False, tie_embeddings=True)
    tried = candidate(shard=data, micro_batch=rows_, recompute=recompute, zero=3)
    columns = stage_bytes(shape, seq, tried, "fsdp")
    assert fits(columns, lookup(device))[0]
    # And they were the largest: much more would not have.
    assert columns.needed[0] > 0.85 * lookup(device).memory_gib_usable * GIB  # type: ignore[operator]


def test_shards_divide_what_is_held_and_replicas_do_not() -> None:
    shape = LLAMA3["Llama 3.1 8B"]
    whole, four, hybrid = (
        stage_bytes(shape, 8192, candidate(zero=3, **words), "fsdp")
        for words in ({"shard": 1}, {"shard": 4}, {"shard": 4, "replicate": 8})
    )
    assert four.weights == pytest.approx(whole.weights / 4) and hybrid.optimizer == four.optimizer


@pytest.mark.parametrize("pipeline", [1, 8])
def test_weights_that_stay_gathered_are_shards_still_and_lie_beside_them_in_bf16(pipeline: int) -> None:
    shape = LLAMA3["Llama 3.1 8B"]
    words = {"shard": 8, "pipeline": pipeline, "micro_batches": pipeline}
    gathers, keeps = (
        stage_bytes(shape, 8192, candidate(zero=zero, **words), "fsdp", stage=0) for zero in (3, 2)
    )
    assert keeps.weights == gathers.weights and keeps.gradients == gathers.gradients
    held = 8 * gathers.weights[0] / 4
    if pipeline == 1:
        assert keeps.buffers[0] > gathers.buffers[0] and keeps.buffers[0] > 2 * held
    else:  # a stage stays gathered either way, with whole fp32 gradients
        assert keeps.buffers == gathers.buffers and keeps.buffers[0] > 6 * held


@pytest.mark.parametrize("stack", ["fsdp", "fsdp-eager", "maxtext"])
def test_one_shard_computes_with_copies_in_bf16_whatever_is_said_to_be_sharded(stack: str) -> None:
    """A real rank holds them where FSDP has one rank alone, as replicas of a pipeline do."""
    shape = LLAMA3["Llama 3.1 8B"]
    whole, sharded = (stage_bytes(shape, 4096, candidate(zero=zero), stack) for zero in (0, 3))
    assert sharded.allocated[0] == whole.allocated[0]
