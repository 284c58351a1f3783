"""Sliding windows: every kernel, cached generation, and a window as a rise of the documents' starts."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from bessemer.formulas.shape import ModelShape
from bessemer.model import attention as module
from bessemer.model import attention_cpu
from bessemer.model.attention import Kind, attention, make_mask, window_starts
from bessemer.model.decoder import Decoder
from bessemer.model.generate import generate
from bessemer.model.init import initialise

_why_not = attention_cpu.available()
KINDS = [
    "sdpa",
    pytest.param("cpu", marks=pytest.mark.skipif(_why_not is not None, reason=str(_why_not))),
    pytest.param("flex", marks=pytest.mark.filterwarnings("ignore:flex_attention called without")),
]
TOKENS = 150
STARTS = torch.tensor([[0] * TOKENS, [0] * 41 + [41] * 3 + [44] * 106])
SHAPE = ModelShape(
    "gemma3", 4, 48, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=128, context=64, tie_embeddings=True,
    qk_norm=True, sliding_window=5, full_every=2, local_rope_theta=100.0, query_scalar=20.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def flex_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_flex", flex_attention)


def reference(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Five lines: a key counts when it is in the document, not later, and less than `window` back."""
    at = torch.arange(TOKENS)
    back = at[:, None] - at
    seen = (back >= 0) & (back < window) & (at >= STARTS[:, :, None])
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2).float() for x in (k, v))
    scores = torch.einsum("bthk,bshk->bhts", q.float(), k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshk->bthk", weights, v)


@pytest.mark.parametrize("window", [1, 7, 64, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_query_sees_its_window_inside_its_document(kind: Kind, window: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, TOKENS, heads, 32, generator=generator).bfloat16() for heads in (4, 2, 2))
    inputs = [x.requires_grad_(kind != "flex") for x in (q, k, v)]
    seen = window_starts(STARTS, torch.arange(TOKENS), window)
    out, wanted = attention(kind, q, k, v, make_mask(kind, seen)), reference(q, k, v, window)
    torch.testing.assert_close(out.float(), wanted, rtol=0, atol=2e-2)
    if kind != "flex":  # on a CPU it has no backward pass
        gradient = torch.randn(out.shape, generator=generator)
        theirs = torch.autograd.grad(wanted, inputs, gradient)
        ours = torch.autograd.grad(out, inputs, gradient.bfloat16())
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.float(), other.float(), rtol=0, atol=8e-2)


def test_generation_with_a_cache_equals_reading_the_text_again() -> None:
    with torch.device("meta"):
        model = Decoder(SHAPE, torch.float32)
    initialise(model, SHAPE, seed=1, device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)
        prompts, together = [[5, 17, 90, 3, 8, 8, 1, 2], [64]], []
        for prompt in prompts:
            text = list(prompt)
            for _ in range(14):
                text.append(int(model.logits(model(torch.tensor([text]))[0, -1]).argmax()))
            together.append(text[len(prompt) :])
    assert generate(model, prompts, max_tokens=14, eos_id=None) == together


def test_fresh_norms_of_gemma_multiply_by_one() -> None:
    with torch.device("meta"):
        model = Decoder(SHAPE, torch.float32)
    initialise(model, SHAPE, seed=1, device="cpu")
    norm = model.model.norm
    assert norm is not None and not norm.weight.any()
    x = torch.randn(3, SHAPE.hidden)
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(3), rtol=1e-3, atol=0)
