import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bessemer.errors import RecipeError
from bessemer.hardware import machine
from bessemer.measure import ceiling, facts
from bessemer.recipe.load import parse

CPU = torch.device("cpu")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128,
    "vocab_size": 256, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure small things for a short time, and leave the user's cache alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ceiling, "_SIZES", (256,))
    monkeypatch.setattr(ceiling, "_MATMUL_S", 0.01)
    monkeypatch.setattr(ceiling, "_COPY_BYTES", {"cpu": 2**24})
    monkeypatch.setattr(ceiling, "_busy_share", lambda: 0.0)  # whatever else this machine does


def test_ceilings_are_measured_once_and_read_then(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ceiling.ceilings(CPU)
    assert 0.0001 < first.matmul_fp32_tflops < 1000 and 0.1 < first.copy_gb_per_s < 10_000
    assert first.torch == torch.__version__ and first.threads == torch.get_num_threads()
    monkeypatch.setattr(ceiling, "_matmul_tflops", lambda *_: pytest.fail("measured again"))
    assert ceiling.ceilings(CPU) == first


def test_ceilings_are_measured_anew_on_request_and_with_another_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ceiling.ceilings(CPU)
    monkeypatch.setattr(ceiling, "_matmul_tflops", lambda *_: 7.0)
    assert ceiling.ceilings(CPU).matmul_fp32_tflops != 7.0
    assert ceiling.ceilings(CPU, fresh=True).matmul_fp32_tflops == 7.0
    monkeypatch.setattr(torch, "__version__", "another")
    monkeypatch.setattr(ceiling, "_matmul_tflops", lambda *_: 8.0)
    assert ceiling.ceilings(CPU).matmul_fp32_tflops == 8.0


def test_measurement_on_busy_cores_is_repeated_and_the_better_one_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for busy, tflops, kept in ((0.5, 7.0, 7.0), (0.5, 5.0, 7.0), (0.0, 6.0, 7.0), (0.0, 9.0, 7.0)):
        monkeypatch.setattr(ceiling, "_busy_share", lambda busy=busy: busy)
        monkeypatch.setattr(ceiling, "_matmul_tflops", lambda *_, tflops=tflops: tflops)
        assert ceiling.ceilings(CPU).matmul_fp32_tflops == kept


def test_calibrating_on_busy_cores_lowers_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    for busy, tflops, kept in ((0.0, 9.0, 9.0), (0.5, 5.0, 9.0), (0.0, 6.0, 6.0)):
        monkeypatch.setattr(ceiling, "_busy_share", lambda busy=busy: busy)
        monkeypatch.setattr(ceiling, "_matmul_tflops", lambda *_, tflops=tflops: tflops)
        assert ceiling.ceilings(CPU, fresh=True).matmul_fp32_tflops == kept
        monkeypatch.setattr(ceiling, "_matmul_tflops", lambda *_: pytest.fail("measured again"))
        assert ceiling.ceilings(CPU).matmul_fp32_tflops == kept  # as good as before: nothing to repeat


def test_cache_that_cannot_be_written_leaves_the_measurement_unsaved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # closed to root as well
    assert ceiling.ceilings(CPU).matmul_fp32_tflops > 0
    monkeypatch.setattr(ceiling, "_matmul_tflops", lambda *_: 7.0)
    assert ceiling.ceilings(CPU).matmul_fp32_tflops == 7.0


def test_facts_have_the_accelerators_of_this_machine_and_none_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = parse('name = "a"\n[pretrain]\nsteps = 1\n', "r.toml", [])
    assert facts.gather(recipe, Path(), CPU).local_devices is None
    for name, value in (("device_name", "H100"), ("memory_available", 2**30), ("ceilings", None)):
        monkeypatch.setattr(facts, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    assert facts.gather(recipe, Path(), torch.device("cuda")).local_devices == 3


def test_memory_that_this_process_keeps_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    before = facts.memory_available(CPU)
    kept = torch.ones(2**28, dtype=torch.uint8)  # freed or not: the kernel sees the same
    after = facts.memory_available(CPU)
    assert before is not None and after is not None and kept.all()
    assert after - machine().memory_available_bytes > 2**28
    monkeypatch.setattr(facts, "process_bytes", lambda: 2**60)
    assert facts.memory_available(CPU) == machine().memory_bytes


def test_torchs_cache_of_an_accelerator_is_emptied_before_memory_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: calls.append("empty"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: calls.append("ask") or (5, 9))
    assert facts.memory_available(torch.device("cuda")) == 5 and calls == ["empty", "ask"]
    assert facts.memory_available(torch.device("mps")) is None  # which does not tell


def test_meter_is_named_by_the_uuid_of_the_device_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    uuids = ["4a1b-0", "9c2d-1"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    assert facts.meter_name(torch.device("cuda", 0)) == "GPU-4a1b-0"
    assert facts.meter_name(torch.device("cuda")) == "GPU-9c2d-1"
    assert facts.meter_name(torch.device("xpu", 0)) == "xpu:0"  # no UUID of NVML's


def test_facts_of_this_machine_are_complete(tmp_path: Path) -> None:
    found = facts.gather(
        parse('name = "a"', "r", []), tmp_path, CPU, train_tokens=10, vocab=300, special_ids=(1, 2)
    )
    assert found.kind == "cpu" and found.cores >= 1 and found.memory_bytes and found.ceilings
    assert (found.train_tokens, found.vocab, found.bos_id, found.eos_id) == (10, 300, 1, 2)
    assert found.source_shape is None


def test_shape_is_read_from_a_directory_or_its_config(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(CONFIG))
    for reference in ("hf", "hf/config.json"):
        shape = facts.source_shape(parse('name = "a"', "r", [f"model.from={reference}"]), tmp_path)
        assert shape is not None and (shape.layers, shape.context) == (2, 512)
    shorter = parse('name = "a"', "r", ["model.from=hf", "model.context=128"])
    shape = facts.source_shape(shorter, tmp_path)
    assert shape is not None and shape.context == 128


def test_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        facts.source_shape(parse('name = "a"', "r", ["model.from=nowhere"]), tmp_path)
