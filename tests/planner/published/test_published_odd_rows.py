"""Rows that are mistyped, sparse or worded otherwise: read as meant, or skipped alone and with a reason."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bessemer.errors import RecipeError
from bessemer.planner.cost.candidates import RECOMPUTE
from bessemer.planner.published import conventions
from bessemer.planner.published.jobs import tokens_in
from bessemer.planner.published.models import catalogue
from bessemer.planner.published.runs import PublishedRun, read_runs
from bessemer.planner.published.validate import validate

PLAIN = {
    "source": "torchtitan docs", "model": "Llama 3.1 8B", "seq": "8192", "gpus": "8", "gpu_type": "H100",
    "tp": "1", "pp": "1", "dp": "8", "micro_batch": "1", "global_batch_sequences": "8", "precision": "bf16",
    "tokens_per_s_per_gpu": "6000", "sharding": "fsdp", "notes": "",
}  # fmt: skip
MAXTEXT = {"source": "MaxText", "model": "MaxText 22B", "gpu_type": "TPU v4", "dp": ""}


def table(folder: Path, **changed: str) -> list[PublishedRun]:
    """The changed row, and an ordinary one that must outlive it."""
    names = list(PLAIN | changed)
    rows = [PLAIN | changed, PLAIN]
    lines = [",".join(f'"{row.get(name, "")}"' for name in names) for row in rows]
    (folder / "rows.csv").write_text("\n".join((",".join(names), *lines)) + "\n")
    return read_runs(folder / "rows.csv")


def read(folder: Path, **changed: str) -> PublishedRun:
    return table(folder, **changed)[0]


def stack(folder: Path, **changed: str) -> str:
    return read(folder, **changed).stack


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"tp": "0.5"}, "missing layout: tp of 0.5"),
        ({"seq": "0.5"}, "missing layout: seq of 0.5"),
        ({"global_batch_sequences": "0.5"}, "missing layout: batch_rows of 0.5"),
        ({"tp": "16"}, "missing layout: 16 ranks on 8 devices"),
        ({"gpus": "64", "tp": "8", "pp": "4", "dp": "64"}, "missing layout: 2,048 ranks on 64 devices"),
        ({"layers": "0.5"}, "unknown model: impossible dimensions"),
        ({"heads": "0.0001"}, "unknown model: impossible dimensions"),
        ({"heads": "1e6"}, "unknown model: impossible dimensions"),
        ({"hidden": "7", "layers": "2", "heads": "32"}, "unknown model: impossible dimensions"),
        ({"interleave": "1e6", "hidden": "1.5"}, "unknown model: impossible dimensions"),
        ({"model": "Llama 3 8B cut to 0 layers"}, "unknown model: impossible dimensions"),
        ({"model": "GPT h2304 L0 a24"}, "unknown model: impossible dimensions"),
        ({"model": "Frobnicator", "params": "1e-300"}, "unknown model"),
        ({**MAXTEXT, "model": ""}, "unknown model"),
        ({"seq": "0"}, None),
        ({"mem_gib": "0"}, None),
        ({"step_time_ms": "1e-320", "tokens_per_s_per_gpu": ""}, None),
        ({**MAXTEXT, "gpus": "0", "notes": "v4-1"}, None),
        ({"notes": "12..3 s/it; tokens 15.. T", "tokens_per_s_per_gpu": "", "gpu_hours": "1e6"}, None),
    ],
)
def test_odd_row_is_read_or_skipped_alone_and_the_document_is_json(
    tmp_path: Path, changed: dict[str, str], reason: str | None
) -> None:
    document: dict[str, Any] = validate(table(tmp_path, **changed))
    json.dumps(document, allow_nan=False)
    odd, plain = document["rows"]
    assert plain["predicted_step_time_s"] is not None
    if reason is not None:
        assert odd["skipped_because"].startswith(reason) and odd["predicted_step_time_s"] is None


def test_measured_zero_is_not_a_measurement(tmp_path: Path) -> None:
    run = read(tmp_path, mem_gib="0", tokens_per_s_per_gpu="0", step_time_s="0")
    assert run.actual_allocated_gib is run.actual_reserved_gib is run.actual_step_time_s is None


def test_source_decides_the_stack_and_not_a_passing_word_of_the_notes(tmp_path: Path) -> None:
    for notes in ("faster than Megatron-LM", "DeepSeek-style router", "ported from Megatron"):
        assert stack(tmp_path, source="torchtitan", notes=notes) == "fsdp"
    assert stack(tmp_path, source="OLMo 2 paper", notes="compared to NeMo") == "fsdp"
    assert stack(tmp_path, source="a blog", sharding="", notes="NeMo 24.07") == "megatron"
    assert stack(tmp_path, source="a blog", sharding="", notes="faster than Megatron-LM") == "fsdp"


def test_nemo_counts_flops_as_megatron_bridge_does_whatever_its_source_is_called() -> None:
    shape = catalogue()["Llama 3 8B"][0]
    count = conventions.published_flops_per_token
    bridge = count("Megatron-Bridge docs", "", shape, 8192)
    assert count("NVIDIA NeMo performance summary", "", shape, 8192) == bridge
    assert count("torchtitan", "compared to NeMo", shape, 8192) > bridge


@pytest.mark.parametrize("text", ["disabled", "no recompute", "not used", "off", "no", "Disabled", "none"])
def test_words_for_no_recomputation_are_none(text: str) -> None:
    assert conventions.recompute_of(text, "") == RECOMPUTE.index("none")
    assert conventions.recompute_of("norm,act", "") == RECOMPUTE.index("selective")


@pytest.mark.parametrize("text", ["E4M3", "8bit", "float8", "fp8-hybrid"])
def test_spellings_of_eight_bits_are_fp8(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, precision=text).precision == "fp8"
    assert read(tmp_path, precision="bf16, 8-bit optimizer").precision == "bf16"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("8xH100", "H100"),
        ("8x H100", "H100"),
        ("DGX H100", "H100"),
        ("H100-80G", "H100"),
        ("A100-80G", "A100"),
    ],
)
def test_devices_in_everyday_spelling_are_known(tmp_path: Path, text: str, name: str) -> None:
    assert read(tmp_path, gpu_type=text).device == read(tmp_path, gpu_type=name).device is not None


def test_only_a_row_that_ran_out_of_memory_says_so() -> None:
    for notes in ("no OOM", "avoids OOM", "without running out of memory", "OOM-free", "BLOOM"):
        assert not conventions.out_of_memory(notes), notes
    for notes in ("OOM; ZeRO-1", "ran out of memory", "no overlap: OOM"):
        assert conventions.out_of_memory(notes), notes


def test_numbers_in_notes_need_be_numbers() -> None:
    assert tokens_in("tokens . T") == (None, False) and tokens_in("tokens ~1.5T+") == (1.5e12, True)
    assert tokens_in("tokens " + "9" * 400 + "T") == (None, False)


def test_cell_longer_than_csv_takes_is_refused_with_its_reason(tmp_path: Path) -> None:
    usual = csv.field_size_limit(131_072)  # of the process: readers of sources raise it
    try:
        with pytest.raises(RecipeError, match="cannot read") as caught:
            table(tmp_path, notes="x" * 200_000)
    finally:
        csv.field_size_limit(usual)
    assert caught.value.exit_code == 2 and "131,072" in str(caught.value.wanted)
