"""The decoder against transformers, and its promises about documents, cache and number types."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model import attention_cpu, decoder
from bessemer.model.decoder import Decoder, KeyValueCache
from bessemer.model.init import initialise
from bessemer.model.rotary import rotary_angles, rotate, stretched

SHAPE = ModelShape(
    family="llama",
    layers=2,
    hidden=48,
    heads=4,
    kv_heads=2,
    head_dim=12,
    ffn=80,
    vocab=192,
    context=64,
    tie_embeddings=False,
    qk_norm=False,
)
LINEAR = {"rope_type": "linear", "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie_embeddings": True},
    "one key-value head": {"kv_heads": 1},
    "as many key-value heads": {"kv_heads": 4},
    "wide heads": {"head_dim": 32},
    "other epsilon and theta": {"norm_eps": 1e-2, "rope_theta": 5e5},
    "linear": {"rope_scaling": LINEAR},
    "llama3": {"rope_scaling": LLAMA3},
    "qwen3": {"family": "qwen3", "qk_norm": True},
    "qwen3 tied, wide heads, linear": {
        "family": "qwen3",
        "qk_norm": True,
        "head_dim": 32,
        "tie_embeddings": True,
        "rope_scaling": LINEAR,
    },
}
SHAPES = [pytest.param(replace(SHAPE, **changes), id=name) for name, changes in VARIANTS.items()]


def make_decoder(shape: ModelShape = SHAPE, compute: torch.dtype = torch.float32) -> Decoder:
    with torch.device("meta"):
        model = Decoder(shape, compute)
    initialise(model, shape, seed=1, device="cpu")
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if "norm" in name:  # ones would hide a norm that is not applied
            nn.init.uniform_(weight, 0.5, 1.5, generator=generator)
    return model


def hf_config(shape: ModelShape) -> PreTrainedConfig:
    """Written out, so that the test does not rest on our own translation."""
    settings: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 256,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tie_embeddings,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": shape.rope_theta,
            **(shape.rope_scaling or {}),
        },
    }
    return Qwen3Config(**settings) if shape.qk_norm else LlamaConfig(**settings)


def hf_model(shape: ModelShape, ours: Decoder) -> nn.Module:
    """transformers' model with our weights; the names must match, each of them."""
    config = hf_config(shape)
    theirs = Qwen3ForCausalLM(config) if shape.qk_norm else LlamaForCausalLM(config)
    weights = dict(theirs.named_parameters())
    assert set(weights) == set(ours.state_dict())
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            weights[name].copy_(weight)
    return theirs.eval()


def random_tokens(rows: int, tokens: int, seed: int = 0, low: int = 0, high: int = SHAPE.vocab) -> Tensor:
    return torch.randint(low, high, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def packed(lengths: list[int]) -> Tensor:
    """starts_BT of one row with documents of these lengths."""
    begins = [sum(lengths[:i]) for i in range(len(lengths))]
    return torch.tensor([[b for b, n in zip(begins, lengths, strict=True) for _ in range(n)]])


def gradients(model: Decoder, loss: Tensor) -> dict[str, Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


# Against transformers.


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape: ModelShape) -> None:
    ours, tokens = make_decoder(shape), random_tokens(2, 100)
    with torch.inference_mode():
        theirs = hf_model(shape, ours)(tokens).logits
        got = ours.logits(ours(tokens))
    assert theirs.std() > 0.3  # so that 1e-5 says something
    torch.testing.assert_close(got, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_transformers(shape: ModelShape) -> None:
    ours, tokens = make_decoder(shape), random_tokens(2, 40)
    theirs = hf_model(shape, ours)
    functional.cross_entropy(theirs(tokens).logits.flatten(0, 1), tokens.flatten()).backward()
    got = gradients(ours, functional.cross_entropy(ours.logits(ours(tokens)).flatten(0, 1), tokens.flatten()))
    for name, weight in theirs.named_parameters():
        assert (got[name] - weight.grad).norm() <= 1e-5 * weight.grad.norm(), name


@pytest.mark.parametrize("shape", SHAPES)
def test_state_dict_is_the_tensor_table_under_the_names_of_transformers(shape: ModelShape) -> None:
    state = Decoder(shape, torch.float32).state_dict()
    theirs = Qwen3ForCausalLM if shape.qk_norm else LlamaForCausalLM
    named = {name: tuple(weight.shape) for name, weight in theirs(hf_config(shape)).named_parameters()}
    table = {spec.name: spec.shape for spec in tensor_table(shape)}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == table == named


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3], ids=["none", "linear", "llama3"])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_rotary_frequencies_are_those_of_transformers(scaling: dict[str, Any] | None, theta: float) -> None:
    shape = replace(SHAPE, head_dim=64, rope_theta=theta, rope_scaling=scaling)
    plain = theta ** -(torch.arange(0, 64, 2) / 64)
    config = hf_config(shape)
    if scaling is not None:
        ours = stretched(scaling, plain)
        theirs, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
        assert factor == 1.0
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    positions = torch.randint(0, 200, (2, 50), generator=torch.Generator().manual_seed(0))
    angles = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    for got, want in zip(rotary_angles(shape, positions), angles, strict=True):
        torch.testing.assert_close(got.squeeze(2), want, rtol=0, atol=1e-4)


def test_rotation_is_that_of_transformers() -> None:
    q, k = (torch.randn(2, 9, 4, 12, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    cos, sin = rotary_angles(SHAPE, torch.arange(9).expand(2, 9))
    want_q, want_k = apply_rotary_pos_emb(q, k, cos[:, :, 0], sin[:, :, 0], unsqueeze_dim=2)
    torch.testing.assert_close(rotate(q, (cos, sin)), want_q)
    torch.testing.assert_close(rotate(k, (cos, sin)), want_k)


# Documents.


@pytest.mark.parametrize("lengths", [[17, 1, 30], [1, 1, 46], [48]])
def test_packed_row_equals_its_documents_alone(lengths: list[int]) -> None:
    model, tokens = make_decoder(), random_tokens(1, sum(lengths))
    whole = model(tokens, packed(lengths))
    alone = torch.cat([model(document) for document in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)
    direction = torch.randn(whole.shape, generator=torch.Generator().manual_seed(3))
    got, want = (gradients(model, (model.logits(x) * model.logits(direction)).sum()) for x in (whole, alone))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-3 * float(want[name].std()))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_packed_token_never_sees_another_document(compute: torch.dtype) -> None:
    """Bit for bit, in values and in gradients; the middle document uses tokens of its own."""
    model, starts = make_decoder(replace(SHAPE, head_dim=32), compute), packed([20, 15, 13])
    tokens, others = random_tokens(1, 48, high=96), random_tokens(1, 48, seed=1, high=96)
    tokens[:, 20:35] = others[:, 20:35] = random_tokens(1, 15, low=96)
    hidden, after = model(tokens, starts)[:, 20:35], model(others, starts)[:, 20:35]
    assert torch.equal(hidden, after)
    grad = gradients(model, model.logits(hidden).float().square().sum())["model.embed_tokens.weight"]
    assert not grad[:96].any()
    assert all(grad[token].any() for token in tokens[0, 20:35])


def test_token_never_sees_a_later_one() -> None:
    model, tokens = make_decoder(), random_tokens(2, 40)
    before = model(tokens)
    tokens[:, 25:] = random_tokens(2, 15, seed=1)
    after = model(tokens)
    assert torch.equal(before[:, :25], after[:, :25])
    assert (before[:, 25:] != after[:, 25:]).any()


def test_positions_restart_at_every_document(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spy(shape: ModelShape, positions: Tensor, *, windowed: bool) -> tuple[Tensor, Tensor]:
        seen.append(positions)
        return rotary_angles(shape, positions, windowed=windowed)

    monkeypatch.setattr(decoder, "rotary_angles", spy)
    make_decoder()(random_tokens(1, 9), packed([4, 2, 3]))
    assert seen[0].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2]]


@pytest.mark.parametrize("pieces", [[1] * 24, [10, 1, 13], [24]], ids=["one by one", "pieces", "at once"])
def test_cached_pieces_equal_the_whole_packed_rows(pieces: list[int]) -> None:
    model, tokens = make_decoder(), random_tokens(2, 24)
    starts = torch.cat([packed([9, 15]), packed([24])])
    cache = KeyValueCache(SHAPE, rows=2, size=30, like=torch.empty(0))
    parts = zip(tokens.split(pieces, dim=1), starts.split(pieces, dim=1), strict=True)
    got = torch.cat([model(part, begins, cache) for part, begins in parts], dim=1)
    assert cache.length == 24
    torch.testing.assert_close(got, model(tokens, starts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputed_blocks_change_no_bit_and_run_twice(how: str) -> None:
    model, tokens, starts = make_decoder(), random_tokens(1, 30), packed([10, 20])
    calls: list[str] = []
    model.model.layers["0"].register_forward_pre_hook(lambda *_: calls.append("layer 0"))
    results = []
    for recompute in ("none", how):
        model.model.recompute = recompute
        hidden = model(tokens, starts)
        results.append({"hidden": hidden, **gradients(model, model.logits(hidden).square().sum())})
    assert len(calls) == 3
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


# Number types.


def test_bf16_activations_keep_fp32_weights_and_gradients() -> None:
    model = make_decoder(replace(SHAPE, head_dim=32, family="qwen3", qk_norm=True), torch.bfloat16)
    types: dict[str, torch.dtype] = {}
    for name, module in model.model.named_modules():
        module.register_forward_hook(lambda *call, name=name: types.update({name: call[2].dtype}))
    hidden = model(random_tokens(2, 30), torch.cat([packed([10, 20]), packed([30])]))
    assert types.pop("embed_tokens") == torch.float32
    assert "layers.1.self_attn.q_norm" in types and set(types.values()) == {torch.bfloat16}
    logits = model.logits(hidden)
    assert logits.dtype == torch.bfloat16
    logits.float().square().sum().backward()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert all(
        weight.grad is not None and weight.grad.dtype == torch.float32 for weight in model.parameters()
    )


@pytest.mark.parametrize("kind", ["sdpa", "cpu"])
def test_bf16_logits_and_gradients_are_near_fp32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "cpu" and attention_cpu.available() is not None:
        pytest.skip(str(attention_cpu.available()))
    shape, starts = replace(SHAPE, head_dim=32), torch.cat([packed([40, 25, 35]), packed([3, 97])])
    exact, model, tokens = make_decoder(shape), make_decoder(shape, torch.bfloat16), random_tokens(2, 100)
    results = []
    for each, chosen in ((exact, "sdpa"), (model, kind)):
        monkeypatch.setattr(decoder, "choose", lambda *_, chosen=chosen: chosen)
        logits = each.logits(each(tokens, starts)).float()
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        results.append({"logits": logits, **gradients(each, loss)})
    for name, want in results[0].items():
        assert (results[1][name] - want).norm() <= 0.03 * want.norm(), name
