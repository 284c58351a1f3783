"""The formula against what autograd really keeps in the real model."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from bessemer.formulas.memory.parts import (
    Workload,
    activation_bytes,
    all_matrices,
    device_memory,
    ends_per_token,
    kept_per_token,
    layer_bytes_per_token,
)
from bessemer.formulas.parameters import matmul_params, total_params
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise

SHAPE = ModelShape("llama", 4, 128, 4, 2, 32, 320, 512, 64, tie_embeddings=True, qk_norm=False)
GEMMA = replace(SHAPE, family="gemma3", qk_norm=True, sliding_window=16, full_every=2, query_scalar=24.0)
ROWS = 3


def kept_bytes(model: nn.Module) -> int:
    """Storages that the forward pass keeps for the backward pass, the weights themselves left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    held = []  # so that no address is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    tokens = torch.zeros(ROWS, SHAPE.context, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(tokens)
    return sum(kept.values())


@pytest.mark.parametrize("shape", [SHAPE, GEMMA], ids=["llama", "gemma"])
@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_activations_are_what_autograd_keeps(
    name: str, dtype: torch.dtype, shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bessemer.model.decoder.choose", lambda *_: "sdpa")  # the same on every machine
    with torch.device("meta"):
        model = Decoder(shape, dtype)
    initialise(model, shape, 0, "cpu")
    work = Workload(ROWS * shape.context, name, "none", compiled=False)
    memory = device_memory(shape, work)
    head = (2 if name == "bf16" else 0) * shape.vocab * shape.hidden  # cast in the loss, not here
    predicted = activation_bytes(shape, work) + memory.casts - head
    assert predicted == pytest.approx(kept_bytes(model), rel=0.03)


def test_static_part_is_sixteen_bytes_a_parameter() -> None:
    memory = device_memory(SHAPE, Workload(64, "fp32", "none", compiled=True))
    assert memory.weights + memory.gradients + memory.optimizer == 16 * total_params(SHAPE)
    assert memory.total > 16 * total_params(SHAPE)


def test_recomputation_and_compilation_save_activations_and_fp32_doubles_them() -> None:
    def activations(dtype: str = "bf16", recompute: str = "none", compiled: bool = True) -> int:
        return activation_bytes(SHAPE, Workload(4096, dtype, recompute, compiled))

    assert activations(recompute="full") < 0.5 * activations()
    assert activations() < activations(compiled=False)
    assert 1.8 < activations("fp32") / activations() < 2.0


def test_cast_copies_of_a_mixture_include_the_experts_that_a_token_does_not_meet() -> None:
    routed = ModelShape(
        "mixtral", 2, 64, 2, 2, 32, 128, 256, 64, tie_embeddings=False, qk_norm=False,
        experts=4, experts_per_token=2, expert_ffn=128,
    )  # fmt: skip
    assert all_matrices(routed) == matmul_params(routed) + 2 * 2 * 3 * 64 * 128


def test_feed_forward_of_two_matrices_keeps_what_its_activation_is_given_and_gives() -> None:
    narrow, wide = (replace(SHAPE, gated=False, ffn=ffn) for ffn in (256, 512))
    inputs, kept = torch.zeros(1, 64, device="meta", requires_grad=True), 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * 4 * (tensor.shape[-1] == 512)
        return tensor

    up, down = nn.Linear(64, 512, device="meta"), nn.Linear(512, 64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        down(nn.functional.gelu(up(inputs), approximate="tanh"))
    kept -= 4 * 512 * 64  # the second matrix itself
    bytes_of = [layer_bytes_per_token(shape, 4, compiled=False, routed=False) for shape in (narrow, wide)]
    assert 2 * (bytes_of[1] - bytes_of[0]) == kept


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_selective_recomputation_keeps_the_inputs_of_blocks_and_the_results_of_matmuls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bessemer.model.decoder.choose", lambda *_: "sdpa")
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    with torch.device("meta"):
        model = Decoder(SHAPE, dtype)
    initialise(model, SHAPE, 0, "cpu")
    model.model.recompute = "selective"
    before = living_storages()
    hidden = model(torch.zeros(ROWS, SHAPE.context, dtype=torch.long))
    kept = sum(size for where, size in living_storages().items() if where not in before)
    assert hidden.requires_grad
    work = Workload(ROWS * SHAPE.context, name, "selective", compiled=False)
    predicted = kept_per_token(SHAPE, work, range(SHAPE.layers)) * work.tokens
    # Beside the blocks: hidden states in and out of the last norm, angles, mask, indices.
    assert predicted < kept < predicted + work.tokens * (2 * ends_per_token(SHAPE))


def living_storages() -> dict[int, int]:
    """Bytes by address, of tensors that Python knows of: those that a selective checkpoint keeps are."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
