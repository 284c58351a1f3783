"""Frozen matrices in 4 and 8 bits, against bitsandbytes, the paper's definition and float weights."""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from making_peers import ask
from making_runs import SHAPE, TinyRows, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from bessemer.data.loader import micro_batch
from bessemer.formulas.quantized import is_packed, row_bytes
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model.decoder import Decoder
from bessemer.model.frozen import matrix_of
from bessemer.model.layers import Linear
from bessemer.model.pieces import packings
from bessemer.model.quantized import NF4, Packing, dequantise, quantise
from bessemer.parallel.engine import summed_loss

KINDS = ("nf4", "int8")
# SHA-256 of codes, scales and values of `weights(96, 256)`, as bitsandbytes 0.50.2 has them on a CPU.
RECORDED = {
    torch.float32: (
        "87330d0aafb76a7b03d76a7c3770ce8979910be83b2f16395f341d8608c25c96",
        "5cb2b76e0d6fef7621ba105ed2649e329412bf9e483136c3b5b0b7fdc519b8b6",
        "6785ed2488cafe371d6725ff675e3a7cb179d76783cac37d103684513f599f59",
    ),
    torch.bfloat16: (
        "4350dc9a36f49aaff9bb78222eab3365676f6533d413a43bd5eeca1e9ed07232",
        "9678174dcfb419a46224aeb92272f8250956482bea40e09e9de06a41c31153e7",
        "0cea087daa77ca7f8135c165f2fb8b6178e1d7ec226b9fa53e6265c60211bcd4",
    ),
}


def whole_rows(kind: str, columns: int) -> Packing:
    """Of a process that has all columns."""
    return Packing(kind, columns, 0, columns)


def weights(rows: int, columns: int, scale: float = 0.02) -> Tensor:
    values = np.random.default_rng(11).standard_normal((rows, columns), dtype=np.float32)
    return torch.from_numpy(values) * scale


def split(packed: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """(codes, scales) of nf4."""
    return packed[:, : columns // 2].contiguous(), packed[:, columns // 2 :].contiguous().view(torch.float32)


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", RECORDED)
def test_nf4_is_bit_for_bit_what_bitsandbytes_packs_and_unpacks(dtype: torch.dtype) -> None:
    weight = weights(96, 256).to(dtype)
    packing = whole_rows("nf4", 256)
    packed = quantise(weight, packing)
    codes, scales = split(packed, 256)
    assert codes.flatten()[:8].tolist() == [135, 186, 163, 55, 86, 109, 151, 86] or dtype != torch.float32
    assert (digest(codes), digest(scales), digest(dequantise(packed, packing, dtype))) == RECORDED[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [3e-5, 0.02, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_what_the_installed_bitsandbytes_makes(
    tmp_path: Path, scale: float, dtype: torch.dtype
) -> None:
    weight = weights(512, 1024, scale).to(dtype)
    weight[3] = 0.0
    save_file({"weight": weight}, tmp_path / "weight.safetensors")
    ask("finetune", Path(__file__).with_name("asking_bitsandbytes.py"), *(
        tmp_path / name for name in ("weight.safetensors", "answer.safetensors")
    ))  # fmt: skip
    wanted, packing = load_file(tmp_path / "answer.safetensors"), whole_rows("nf4", 1024)
    packed = quantise(weight, packing)
    codes, scales = split(packed, 1024)
    assert torch.equal(codes.flatten(), wanted["codes"].flatten())
    assert torch.equal(scales.flatten(), wanted["scales"])
    assert torch.equal(dequantise(packed, packing, dtype), wanted["values"])


def test_an_nf4_weight_is_the_nearest_of_the_sixteen_values_of_its_block() -> None:
    weight = weights(8, 128)
    blocks = weight.view(8, 2, 64)
    most = blocks.abs().amax(-1, keepdim=True)
    distances = (blocks.unsqueeze(-1) / most.unsqueeze(-1) - torch.tensor(NF4)).abs()
    nearest = torch.tensor(NF4)[distances.argmin(-1)] * most
    packing = whole_rows("nf4", 128)
    found = dequantise(quantise(weight, packing), packing, torch.float32)
    torch.testing.assert_close(found, nearest.view(8, 128), rtol=1e-6, atol=1e-9)


def test_an_int8_weight_is_off_by_half_a_step_of_its_row_at_most() -> None:
    weight, packing = weights(16, 100), whole_rows("int8", 100)
    step = weight.abs().amax(1, keepdim=True) / 127
    found = dequantise(quantise(weight, packing), packing, torch.float32)
    torch.testing.assert_close(found, (weight / step).round() * step, rtol=1e-6, atol=1e-9)
    assert float(((found - weight).abs() / step).max()) <= 0.5 + 1e-5


@pytest.mark.parametrize(("kind", "bytes_per_weight"), [("nf4", 0.5 + 4 / 64), ("int8", 1 + 4 / 4096)])
def test_a_packed_weight_takes_the_bytes_that_the_formula_says(kind: str, bytes_per_weight: float) -> None:
    packed = quantise(weights(4, 4096), whole_rows(kind, 4096))
    assert packed.dtype == torch.uint8
    assert packed.nbytes == 4 * row_bytes(kind, 4096) == 4 * 4096 * bytes_per_weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [64, 100, 7])
def test_zeros_stay_zeros_and_any_number_of_columns_is_packed(kind: str, columns: int) -> None:
    weight, packing = weights(5, columns), whole_rows(kind, columns)
    weight[2] = 0.0
    found = dequantise(quantise(weight, packing), packing, torch.float32)
    assert found.shape == weight.shape
    assert torch.equal(found[2], torch.zeros(columns))
    widest = (NF4[1] - NF4[0]) / 2 + 1e-6  # half of the largest gap between two of the values
    assert float((found - weight).abs().max()) < widest * float(weight.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [(0, 128, 256), (0, 100, 200, 256), (0, 7, 64, 65, 256)])
def test_columns_of_a_tensor_rank_are_the_numbers_of_the_whole(kind: str, parts: tuple[int, ...]) -> None:
    weight, whole = weights(6, 256), whole_rows(kind, 256)
    wanted = dequantise(quantise(weight, whole), whole, torch.bfloat16)
    found = []
    for begin, end in pairwise(parts):
        packing = Packing(kind, 256, begin, end)
        found.append(dequantise(quantise(weight, packing), packing, torch.bfloat16))
    assert torch.equal(torch.cat(found, 1), wanted)


def quantised_shape(base: str) -> ModelShape:
    return ModelShape(**{**vars(SHAPE), "adapter": Adapter(4, 8.0, ("q_proj", "down_proj"), base=base)})


@pytest.mark.parametrize("base", KINDS)
def test_a_packed_model_computes_what_the_same_values_in_float_do(base: str) -> None:
    part = micro_batch(TinyRows(4), range(4))
    packed, plain = tiny_model(quantised_shape(base)), tiny_model(quantised_shape("float"))
    modules = dict(plain.named_modules())
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, Linear) and module.lora_B is not None:
                module.lora_B.weight.normal_(generator=torch.Generator().manual_seed(3))
                modules[name].lora_B.weight.copy_(module.lora_B.weight)
            if isinstance(module, Linear) and module.packing is not None:
                modules[name].weight.copy_(matrix_of(module.weight, module.packing, torch.float32))
    wanted, found = summed_loss(plain, part), summed_loss(packed, part)
    assert torch.equal(found, wanted)
    wanted.backward()
    found.backward()
    others = dict(plain.named_parameters())
    trained = [name for name, weight in packed.named_parameters() if weight.grad is not None]
    assert trained and all(".lora_" in name for name in trained)
    for name, weight in packed.named_parameters():
        assert (weight.grad is None) == (others[name].grad is None), name
        assert weight.grad is None or torch.equal(weight.grad, others[name].grad), name


@pytest.mark.parametrize("base", KINDS)
def test_no_copy_of_a_packed_weight_is_kept_for_the_backward_pass(base: str) -> None:
    model, part = tiny_model(quantised_shape(base)), micro_batch(TinyRows(3), range(3))
    linear = model.model.layers["0"].self_attn.o_proj
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        summed_loss(model, part)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    others = [tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in own]
    matrices = {(spec.shape[0], spec.shape[1]) for spec in tensor_table(SHAPE) if is_packed(spec)}
    assert linear.packing is not None
    assert linear.weight.untyped_storage().data_ptr() in {t.untyped_storage().data_ptr() for t in kept}
    assert not [tensor.shape for tensor in others if tuple(tensor.shape) in matrices]


@pytest.mark.parametrize("base", KINDS)
def test_only_matrices_of_blocks_are_packed(base: str) -> None:
    with torch.device("meta"):
        model = Decoder(quantised_shape(base), torch.float32)
    packed = set(packings(model))
    assert packed == {spec.name for spec in tensor_table(SHAPE) if is_packed(spec)}
    assert len(packed) == 7 * SHAPE.layers
    floats = [name for name, weight in model.named_parameters() if weight.dtype != torch.uint8]
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= set(floats)
