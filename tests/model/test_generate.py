"""Generation with a cache and padding against decoding one prompt at a time without either."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bessemer.errors import DataError
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder, KeyValueCache
from bessemer.model.generate import generate
from bessemer.model.init import initialise

SHAPE = ModelShape(
    family="llama",
    layers=2,
    hidden=48,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=96,
    vocab=128,
    context=64,
    tie_embeddings=False,
    qk_norm=False,
)
PROMPTS = [[5, 17, 90, 3], [64], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [99, 99]]


def make_decoder(compute: torch.dtype = torch.float32, shape: ModelShape = SHAPE) -> Decoder:
    """Weights large enough that every continuation is another one and keeps changing."""
    with torch.device("meta"):
        model = Decoder(shape, compute)
    initialise(model, shape, seed=1, device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(2.0)
    return model


@torch.no_grad()
def one_by_one(model: Decoder, prompt: list[int], max_tokens: int) -> list[int]:
    """Greedy decoding that reads the whole text again for every token."""
    text = list(prompt)
    for _ in range(max_tokens):
        text.append(int(model.logits(model(torch.tensor([text]))[0, -1]).argmax()))
    return text[len(prompt) :]


def greedy(model: Decoder, prompts: list[list[int]], max_tokens: int = 20) -> list[list[int]]:
    return generate(model, prompts, max_tokens=max_tokens, eos_id=None)


def test_continuation_equals_decoding_without_a_cache() -> None:
    model = make_decoder()
    for prompt in PROMPTS:
        (got,) = greedy(model, [prompt])
        assert got == one_by_one(model, prompt, 20)
        assert len(set(got)) > 8  # a model that repeats one token would prove little


def test_batch_of_unequal_prompts_equals_each_alone() -> None:
    model = make_decoder()
    assert greedy(model, PROMPTS) == [greedy(model, [prompt])[0] for prompt in PROMPTS]


def test_padding_changes_no_logit() -> None:
    """The tokens may agree by luck; what they were chosen from may not differ either."""
    model, prompt = make_decoder(), [5, 17, 90, 3]
    padded = torch.tensor([[0] * 7 + prompt])
    starts = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7]])
    cache = KeyValueCache(SHAPE, 1, 11, torch.empty(0))
    with torch.no_grad():
        alone, hidden = model(torch.tensor([prompt])), model(padded, starts, cache)
    assert hidden.isfinite().all()
    torch.testing.assert_close(hidden[:, 7:], alone, rtol=0, atol=1e-5)


def test_continuation_is_that_of_transformers() -> None:
    model = make_decoder()
    config = LlamaConfig(
        vocab_size=SHAPE.vocab,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.ffn,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        head_dim=SHAPE.head_dim,
        rms_norm_eps=SHAPE.norm_eps,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(model.state_dict())
    longest = max(map(len, PROMPTS))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    out = theirs.generate(tokens, attention_mask=mask, max_new_tokens=20, do_sample=False)
    assert greedy(model, PROMPTS) == out[:, longest:].tolist()


def test_each_continuation_stops_before_its_end_token() -> None:
    model = make_decoder()
    endless = greedy(model, PROMPTS)
    eos = endless[0][5]
    got = generate(model, PROMPTS, max_tokens=20, eos_id=eos)
    assert got == [row[: row.index(eos)] if eos in row else row for row in endless]
    assert len({len(row) for row in got}) > 1


def test_generation_ends_when_all_continuations_have() -> None:
    model, calls = make_decoder(), []
    endless = greedy(model, PROMPTS[:1])
    model.register_forward_hook(lambda *call: calls.append(call))
    (got,) = generate(model, PROMPTS[:1], max_tokens=20, eos_id=endless[0][3])
    assert got == endless[0][:3] and len(calls) == 4


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_every_prompt_has_a_continuation_however_short(max_tokens: int) -> None:
    assert list(map(len, greedy(make_decoder(), PROMPTS, max_tokens))) == [max_tokens] * len(PROMPTS)


def test_sampling_repeats_with_its_seed_and_differs_with_another() -> None:
    model = make_decoder()

    def sampled(seed: int) -> list[list[int]]:
        return generate(model, PROMPTS, max_tokens=20, eos_id=None, temperature=1.0, seed=seed)

    first = sampled(1)
    torch.manual_seed(123)  # torch's own generator has no say
    assert sampled(1) == first
    assert sampled(2) != first and greedy(model, PROMPTS) != first


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_tokens_have_the_probabilities_of_the_model(temperature: float) -> None:
    model, num = make_decoder(), 4000
    rows = generate(model, [[5, 17]] * num, max_tokens=1, eos_id=None, temperature=temperature, seed=3)
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([[5, 17]]))[0, -1])
    shares: Tensor = (logits / temperature).softmax(-1)
    counts = Counter(row[0] for row in rows)
    for token, share in enumerate(shares.tolist()):
        assert abs(counts[token] - num * share) < 5 * (num * share) ** 0.5 + 3, token


def test_bf16_model_generates_from_its_own_logits() -> None:
    """The cache has the compute type; the kernel of whole rows may be another one than that of the cache."""
    model = make_decoder(torch.bfloat16)
    for prompt in PROMPTS:
        (got,) = greedy(model, [prompt], 12)
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([prompt + got]))[0, len(prompt) - 1 : -1]).float()
        lost = logits.max(-1).values - logits.gather(-1, torch.tensor(got)[:, None])[:, 0]
        assert lost.max() <= 0.02 * logits.abs().max()


def test_every_padding_token_sees_at_least_itself() -> None:
    """A softmax over no key at all is NaN in some kernels."""
    model, seen = make_decoder(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    greedy(model, PROMPTS, 2)
    assert seen[0].tolist()[1] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert seen[0].tolist()[3] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert seen[1].tolist() == [[7], [10], [0], [9]]


def test_generation_records_no_graph_and_leaves_the_weights_trainable() -> None:
    model, recorded = make_decoder(), []
    hook = model.register_forward_hook(lambda *call: recorded.append(call[2].requires_grad))
    greedy(model, PROMPTS, 3)
    hook.remove()
    assert recorded == [False] * 3
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(weight.grad is not None for weight in model.model.parameters())


def test_nothing_is_written_beyond_the_original_context_of_longrope() -> None:
    factors = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": 20, **factors}
    model = make_decoder(shape=replace(SHAPE, rope_scaling=scaling))
    found = generate(model, PROMPTS, max_tokens=30, eos_id=None)
    plain = generate(make_decoder(), PROMPTS, max_tokens=30, eos_id=None)
    assert found == [text[: 20 - len(prompt)] for prompt, text in zip(PROMPTS, plain, strict=True)]
    with pytest.raises(DataError, match="too long for this model"):
        generate(model, [PROMPTS[0], [7] * 20], max_tokens=1, eos_id=None)
