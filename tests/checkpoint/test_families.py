"""Every family that we read, against transformers: logits, gradients, packed rows, pieces of a rank."""

from dataclasses import replace

import pytest
import torch
from making_families import CONFIGS, VOCAB, imported, trusted
from torch import Tensor
from transformers import PreTrainedModel

from bessemer.checkpoint.huggingface import load_into, read_parts, read_shape
from bessemer.formulas.parameters import total_params
from bessemer.formulas.tensors import count_params, tensor_table
from bessemer.model.decoder import Decoder

TOKENS = torch.randint(3, VOCAB, (2, 120), generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers")


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, tmp_path_factory) -> tuple[PreTrainedModel, Decoder]:
    model, folder = trusted(request.param), tmp_path_factory.mktemp("folder")
    model.save_pretrained(folder)
    return model, imported(folder)


@torch.no_grad()
def logits(model: Decoder, tokens: Tensor, starts: Tensor | None = None) -> Tensor:
    return model.logits(model(tokens, starts))


def test_imported_model_has_the_logits_of_transformers(both):
    theirs, ours = both
    with torch.no_grad():
        wanted = theirs(TOKENS).logits
    assert wanted.abs().max() > 1.0
    torch.testing.assert_close(logits(ours, TOKENS), wanted, rtol=0, atol=2e-5)


def test_it_has_as_many_weights_as_transformers_and_the_formula_say(both):
    theirs, ours = both
    weights = sum(weight.numel() for weight in theirs.parameters())
    assert count_params(ours.shape) == total_params(ours.shape) == weights


def test_gradients_of_the_loss_are_those_of_transformers(both):
    theirs, ours = both
    theirs.zero_grad()
    theirs(TOKENS, labels=TOKENS).loss.backward()
    ours.zero_grad()
    predicted = ours.logits(ours(TOKENS))[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(predicted, TOKENS[:, 1:].flatten()).backward()
    named = dict(theirs.named_parameters())
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.1.self_attn.o_proj.weight",
                 "model.layers.2.self_attn.k_proj.bias", "model.layers.0.post_feedforward_layernorm.weight",
                 "model.layers.0.self_attn.q_norm.weight"):  # fmt: skip
        if name in named:
            wanted = named[name].grad
            torch.testing.assert_close(ours.get_parameter(name).grad, wanted, rtol=0, atol=1e-5)


def test_documents_in_one_row_are_computed_as_alone(both):
    ours, lengths = both[1], [50, 7, 63]
    row = TOKENS[:1]
    starts = torch.tensor([[sum(lengths[:n]) for n, length in enumerate(lengths) for _ in range(length)]])
    alone = torch.cat([logits(ours, part) for part in row.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(logits(ours, row, starts), alone, rtol=0, atol=2e-5)


def test_windows_are_seen_in_the_logits(both):
    ours = both[1]
    if ours.shape.sliding_window is not None:
        blind = Decoder(replace(ours.shape, sliding_window=None), torch.float32)
        blind.load_state_dict(ours.state_dict())
        assert (logits(blind, TOKENS) - logits(ours, TOKENS)).abs().max() > 1e-2


def test_what_is_stored_joined_is_cut_without_a_change(tmp_path):
    model = trusted("phi3")
    model.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    parts = dict(read_parts(tmp_path, shape))
    assert parts.keys() == {spec.name for spec in tensor_table(shape)}
    for layer, block in enumerate(model.model.layers):
        names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkv"]
        assert torch.equal(torch.cat([parts[name] for name in names]), block.self_attn.qkv_proj.weight)
        gate, up = (parts[f"model.layers.{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up"))
        assert torch.equal(torch.cat([gate, up]), block.mlp.gate_up_proj.weight)


def test_gemma_scales_its_embedding_by_the_rounded_factor_that_transformers_takes(tmp_path):
    model = trusted("gemma3")
    model.save_pretrained(tmp_path)
    ours = Decoder(read_shape(tmp_path), torch.bfloat16)
    load_into(ours, tmp_path)
    seen: list[Tensor] = []
    ours.model.layers["0"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        ours(TOKENS)
        assert torch.equal(seen[0], model.to(torch.bfloat16).model.embed_tokens(TOKENS))


@pytest.mark.parametrize("name", ["glm4-moe", "phi4 mini", "gemma3"])
def test_every_setting_of_rotary_positions_is_seen_in_the_logits(name: str, tmp_path):
    trusted(name).save_pretrained(tmp_path)
    ours = imported(tmp_path)
    other = {"glm4-moe": {"rotary_share": 1.0}, "phi4 mini": {"rope_scaling": None},
             "gemma3": {"local_rope_theta": None}}[name]  # fmt: skip
    changed = Decoder(replace(ours.shape, **other), torch.float32)
    changed.load_state_dict(ours.state_dict())
    assert (logits(changed, TOKENS) - logits(ours, TOKENS)).abs().max() > 1e-3
