"""What adapters cost: parameters, FLOPs, memory and traffic, against the model itself."""

from dataclasses import replace

import pytest
import torch
from making_layouts import CONTEXT, SHAPES
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bessemer.formulas.adapters import adapter_params, trained_params
from bessemer.formulas.flops import hardware_flops_per_token, train_flops_per_token
from bessemer.formulas.layout import ONE_PROCESS
from bessemer.formulas.memory.parts import Workload, activation_bytes, device_memory
from bessemer.formulas.memory.rank import rank_memory
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.formulas.tensors import count_params
from bessemer.formulas.traffic.step import step_traffic
from bessemer.measure.rehearse import rehearse
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise
from bessemer.model.loss import next_token_loss
from bessemer.planner.layout import parse_layout

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = Adapter(8, 16.0, LINEAR)
SHAPE = ModelShape("llama", 4, 128, 4, 2, 32, 320, 512, 64, tie_embeddings=False, qk_norm=False, adapter=LORA)
KINDS = {
    "lora": SHAPE,
    "dora": replace(SHAPE, adapter=replace(LORA, dora=True)),
    "attention": replace(SHAPE, adapter=replace(LORA, targets=LINEAR[:4])),
    "qwen3": replace(SHAPE, family="qwen3", qk_norm=True),
    "gemma3": replace(SHAPE, family="gemma3", qk_norm=True, query_scalar=32.0, tie_embeddings=True),
}
ROWS = 3


def made(shape: ModelShape, dtype: torch.dtype = torch.float32) -> Decoder:
    with torch.device("meta"):
        model = Decoder(shape, dtype)
    initialise(model, shape, 0, "cpu")
    return model


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.adapter])
def test_trained_parameters_are_those_of_the_tensor_table_and_the_model(name: str) -> None:
    shape = SHAPES[name]
    learning = sum(weight.numel() for weight in made(shape).parameters() if weight.requires_grad)
    assert (
        trained_params(shape, total_params(shape)) == adapter_params(shape) == count_params(shape) == learning
    )
    labels = replace(shape, labels=3, tie_embeddings=False)
    assert trained_params(labels, total_params(labels)) == count_params(labels)


def test_flops_are_those_that_torch_counts() -> None:
    model, shape, tokens = made(SHAPE), SHAPE, torch.zeros(ROWS, 64, dtype=torch.long)
    in_place = {torch.ops.aten.addmm_: _product}  # which torch leaves out
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        hidden_ND = model(tokens).flatten(0, 1)
        next_token_loss(hidden_ND, model.head_weight, tokens.flatten()).backward()
    counted = sum(
        flops
        for operator, flops in counter.get_flop_counts()["Global"].items()
        if "mm" in str(operator) and "bmm" not in str(operator)
    )
    without_attention = train_flops_per_token(shape, 64, mean_keys=0.0) * tokens.numel()
    # The first input of all has no gradient, and the formula does not take it off.
    first = 2 * tokens.numel() * (shape.hidden * (4 + 2 * 2) * 32 + 3 * LORA.rank * shape.hidden)
    assert counted == without_attention - first


def _product(added: list[int], one: list[int], other: list[int], **_: object) -> int:
    return 2 * one[0] * one[1] * other[1]


def test_frozen_matrices_save_a_third_and_recomputation_adds_the_blocks_forward_pass() -> None:
    plain = replace(SHAPE, adapter=None)
    tiny = replace(SHAPE, adapter=replace(LORA, rank=1, targets=("q_proj",)))
    ratio = train_flops_per_token(tiny, 64, 0.0) / train_flops_per_token(plain, 64, 0.0)
    assert ratio == pytest.approx(2 / 3, abs=0.01)
    more = hardware_flops_per_token(tiny, 64, "full") - train_flops_per_token(tiny, 64)
    full = hardware_flops_per_token(plain, 64, "full") - train_flops_per_token(plain, 64)
    assert more == pytest.approx(full, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_activations_beside_adapters_are_what_autograd_keeps(
    kind: str, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bessemer.model.decoder.choose", lambda *_: "sdpa")
    shape = KINDS[kind]
    work = Workload(ROWS * shape.context, name, "none", compiled=False)
    assert activation_bytes(shape, work) == pytest.approx(kept_bytes(made(shape, dtype)), rel=0.05)


def kept_bytes(model: nn.Module) -> int:
    """Storages that the forward pass keeps for the backward pass, the weights themselves left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    held = []  # so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(torch.zeros(ROWS, SHAPE.context, dtype=torch.long))
    return sum(kept.values())


def test_frozen_weights_take_the_compute_type_and_nothing_else() -> None:
    plain = device_memory(replace(SHAPE, adapter=None), Workload(64, "bf16", "none", compiled=False))
    found = device_memory(SHAPE, Workload(64, "bf16", "none", compiled=False))
    learned, total = adapter_params(SHAPE), total_params(SHAPE)
    assert found.weights == 2 * total + 4 * learned
    assert (found.gradients, found.optimizer, found.casts) == (4 * learned, 8 * learned, 0)
    assert found.total < plain.total - 12 * (total - learned)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("lora", "pipeline=2"),
        pytest.param("lora", "shard=4", marks=pytest.mark.slow),
        pytest.param("dora", "shard=2,tensor=2", marks=pytest.mark.slow),
    ],
)
def test_memory_of_a_rank_with_adapters_is_that_of_a_rehearsed_one(kind: str, layout: str) -> None:
    shape, words = KINDS[kind], parse_layout(layout)
    work = Workload(16 * 64, "bf16", "none", compiled=False, micro_batches=2)
    memory = rank_memory(shape, work, words, words.pipeline - 1)
    found = rehearse(shape, work, words, words.world - 1, context=64)
    assert memory.total - memory.base == pytest.approx(found.peak_bytes, rel=0.08)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ("dora", "shard=2,tensor=2"),
        pytest.param("lora", "shard=2", marks=pytest.mark.slow),
        pytest.param("dora", "replicate=2", marks=pytest.mark.slow),
        pytest.param("moe lora", "replicate=2,shard=2,expert=2", marks=pytest.mark.slow),
        pytest.param("dora", "shard=2,pipeline=2,schedule=zbv", marks=pytest.mark.slow),
        pytest.param("glm dora", "shard=2,tensor=2,expert=2", marks=pytest.mark.slow),
        pytest.param("dora", "tensor=2,pipeline=2", marks=pytest.mark.slow),
    ],
)
def test_traffic_of_adapters_is_that_of_a_rehearsed_rank(shape: str, layout: str) -> None:
    words = parse_layout(layout)
    work = Workload(2 * CONTEXT, "bf16", "none", compiled=False, micro_batches=3)
    found = rehearse(SHAPES[shape], work, words, words.world - 1, context=CONTEXT).exchanges
    assert step_traffic(SHAPES[shape], work, words, words.world - 1, context=CONTEXT) == found
    assert words != ONE_PROCESS
