import json
from pathlib import Path

import pytest
import torch

from bessemer.errors import DataError
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
    with pytest.raises(DataError, match="nowhere"):
        facts.source_shape(parse('name = "a"', "r", ["model.from=nowhere"]), tmp_path)
