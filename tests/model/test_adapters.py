"""Adapters against PEFT on transformers' model with the same weights, and their promises on frozen ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model.adapter import begin_magnitudes
from bessemer.model.decoder import Decoder
from bessemer.model.deferred import Deferral, set_deferring
from bessemer.model.init import initialise
from bessemer.model.layers import Linear
from bessemer.model.loss import next_token_loss

SHAPE = ModelShape(
    "llama", 2, 48, heads=4, kv_heads=2, head_dim=12, ffn=80, vocab=192, context=32,
    tie_embeddings=False, qk_norm=False,
)  # fmt: skip
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = {
    "lora": Adapter(4, 8.0, ALL),
    "rslora": Adapter(4, 8.0, ALL, rslora=True),
    "dora": Adapter(4, 8.0, ALL, dora=True),
    "rsdora of some": Adapter(3, 5.0, ("q_proj", "v_proj", "down_proj"), rslora=True, dora=True),
}
# peft 0.21 asks transformers 5.24 by a name that it gives up in 6.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
TOKENS = torch.randint(0, 192, (2, 33), generator=torch.Generator().manual_seed(5))


def make(adapter: Adapter | None, compute: torch.dtype = torch.float32, *, moved: bool = True) -> Decoder:
    """moved: as after some training, when every part of an adapter counts."""
    shape = replace(SHAPE, adapter=adapter)
    with torch.device("meta"):
        model = Decoder(shape, compute)
    initialise(model, shape, seed=1, device="cpu")
    begin_magnitudes(model, compute)
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if moved and "lora_" in name:
            with torch.no_grad():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def peft_twin(model: Decoder) -> PeftModel:
    adapter, shape = model.shape.adapter, model.shape
    assert adapter is not None
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.ffn, rms_norm_eps=1e-5,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=False,
    )  # fmt: skip
    twin = LlamaForCausalLM(config)
    weights = dict(model.named_parameters())
    twin.load_state_dict({name: value for name, value in weights.items() if "lora_" not in name})
    settings = {"lora_alpha": adapter.alpha, "use_rslora": adapter.rslora, "use_dora": adapter.dora}
    found = get_peft_model(twin, LoraConfig(r=adapter.rank, target_modules=list(adapter.targets), **settings))
    with torch.no_grad():
        for name, value in found.named_parameters():
            if "lora_" in name:
                value.copy_(weights[our_name(name)])
    return found


def our_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".default", "")


def loss_of(model: Decoder) -> Tensor:
    hidden_ND = model(TOKENS[:, :-1]).flatten(0, 1)
    return next_token_loss(hidden_ND, model.head_weight, TOKENS[:, 1:].flatten()) / TOKENS[:, 1:].numel()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_gradients_are_those_of_peft(kind: str) -> None:
    model = make(KINDS[kind])
    twin = peft_twin(model)
    inputs: dict[str, Any] = {"input_ids": TOKENS[:, :-1]}
    theirs = twin(**inputs)
    loss = torch.nn.functional.cross_entropy(theirs.logits.flatten(0, 1), TOKENS[:, 1:].flatten())
    loss.backward()
    ours = loss_of(model)
    ours.backward()
    torch.testing.assert_close(model.logits(model(TOKENS[:, :-1])), theirs.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=0.0)
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    wanted = {our_name(name): value.grad for name, value in twin.named_parameters() if value.requires_grad}
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-5, atol=1e-5 * float(wanted[name].abs().max())
        )


@pytest.mark.parametrize("kind", KINDS)
def test_stored_names_and_shapes_are_those_of_peft(kind: str) -> None:
    model = make(KINDS[kind])
    learning = {
        spec.name.replace("vector.weight", "vector"): spec.shape
        for spec in tensor_table(model.shape)
        if spec.trained
    }
    files = get_peft_model_state_dict(peft_twin(model))
    assert learning == {our_name(name): tuple(value.shape) for name, value in files.items()}


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fresh_adapters_change_nothing(kind: str, compute: torch.dtype) -> None:
    plain, adapted = make(None, compute), make(KINDS[kind], compute, moved=False)
    found, wanted = adapted(TOKENS), plain(TOKENS)
    if kind == "lora" and compute == torch.bfloat16:
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 if compute == torch.float32 else 0.05)


def test_frozen_weights_are_kept_in_the_compute_type_and_have_no_gradient() -> None:
    model = make(KINDS["dora"], torch.bfloat16)
    loss_of(model).backward()
    for name, weight in model.named_parameters():
        learns = "lora_" in name
        assert weight.requires_grad == learns
        assert (weight.grad is not None) == learns
        is_fp32 = learns or "norm" in name
        assert weight.dtype == (torch.float32 if is_fp32 else torch.bfloat16), name


def test_weight_gradients_wait_and_are_the_same() -> None:
    wanted, found = make(KINDS["dora"]), make(KINDS["dora"])
    loss_of(wanted).backward()
    set_deferring(True)
    try:
        loss, deferral = loss_of(found), Deferral()
        with deferral:
            loss.backward()
    finally:
        set_deferring(False)
    waiting = {
        name for name, weight in found.named_parameters() if weight.requires_grad and weight.grad is None
    }
    assert waiting == {name for name, _ in found.named_parameters() if "lora_A" in name or "lora_B" in name}
    deferral.run()
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputed_blocks_give_the_same_gradients(recompute: str) -> None:
    wanted, found = make(KINDS["dora"]), make(KINDS["dora"])
    found.model.recompute = recompute
    loss_of(wanted).backward()
    loss_of(found).backward()
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-7, msg=name)


def test_what_is_kept_for_the_backward_pass_is_the_input_once_and_no_copy_of_a_weight() -> None:
    layer = Linear(64, 96)
    layer.weight = torch.nn.Parameter(torch.randn(96, 64), requires_grad=False)
    x, kept = torch.randn(8, 64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        layer(x).sum()
    assert [tensor.data_ptr() for tensor in kept] == [layer.weight.data_ptr()]
