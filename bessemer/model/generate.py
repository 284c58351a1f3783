"""Sampling from a decoder, with a key-value cache, many prompts at once.

Prompts of unequal length are padded on the left; `starts` hides the padding and moves the positions,
so that a prompt's tokens see exactly what they would see alone. A row that has ended leaves the batch once
half of the rows have: 64 answers of 1 to 64 tokens take 0.55 of the time (6M model, one core).
A token is drawn by inverting the distribution at one uniform number, instead of by torch.multinomial, which
draws one number for each word of the vocabulary (18 % of the time at 4096 words). Who gives the numbers
(`uniform_BT`) gets the same answer to a prompt in whatever batch it is in.
Dims: B prompts, T tokens at most, R rows that go on, V vocabulary, D hidden.
"""

import sys

import torch
from torch import Tensor

from bessemer.errors import DataError
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder, KeyValueCache


def generate(
    model: Decoder,
    prompts: list[list[int]],
    *,
    max_tokens: int,
    eos_id: int | None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Continuations of the prompts, without the prompts and without the end token.

    temperature 0 takes the likeliest token. Every prompt must have at least one token. Where LongRoPE's
    original context ends, so does a continuation (`room_of`); DataError for a prompt that is as long.
    """
    rooms = [room_of(model.shape, prompt) for prompt in prompts]
    max_tokens = min(max_tokens, max(rooms, default=max_tokens))
    uniform_BT = None
    if temperature > 0.0:
        random = torch.Generator().manual_seed(seed)
        uniform_BT = torch.rand((len(prompts), max_tokens), generator=random, dtype=torch.float64)
    produced = sample(
        model, prompts, max_tokens=max_tokens, eos_id=eos_id, temperature=temperature, uniform_BT=uniform_BT
    )
    produced = [tokens[:room] for tokens, room in zip(produced, rooms, strict=True)]
    return [tokens[:-1] if tokens and tokens[-1] == eos_id else tokens for tokens in produced]


def room_of(shape: ModelShape, prompt: list[int]) -> int:
    """Tokens that the model can go on with. DataError: none, as LongRoPE has other frequencies there."""
    end = sys.maxsize if shape.last_position is None else shape.last_position
    if len(prompt) >= end:
        raise DataError(
            "the text is too long for this model",
            found=f"{len(prompt):,} tokens, and LongRoPE that has other frequencies from {end:,} on",
            wanted=f"fewer than {end:,} tokens: only its original context is computed as its makers do",
            fix="give a shorter text; in a chat, begin a new one",
        )
    return end - len(prompt)


@torch.inference_mode()
def sample(
    model: Decoder,
    prompts: list[list[int]],
    *,
    max_tokens: int,
    eos_id: int | None,
    temperature: float,
    uniform_BT: Tensor | None,
) -> list[list[int]]:
    """Continuations with their end token, where they have come to it.

    uniform_BT: numbers in [0, 1), one for each token, fp64; None: the likeliest token.
    """
    # Every token is another length: code compiled for training rows would be compiled anew for each.
    with torch.compiler.set_stance("force_eager"):
        return _sample(model, prompts, max_tokens, eos_id, temperature, uniform_BT)


def _sample(
    model: Decoder,
    prompts: list[list[int]],
    max_tokens: int,
    eos_id: int | None,
    temperature: float,
    uniform_BT: Tensor | None,
) -> list[list[int]]:
    device = model.head_weight.device
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]
    tokens_RT = torch.tensor(rows, device=device)
    first_R1 = torch.tensor(padding, device=device)[:, None]
    # A padding token sees itself only: its softmax must not be empty, or its NaN would spread.
    starts_RT = torch.minimum(torch.arange(longest, device=device)[None], first_R1)
    like = model.head_weight.new_empty(0, dtype=model.compute)
    cache = KeyValueCache(model.shape, len(prompts), longest + max_tokens, like)
    uniform_BT = None if uniform_BT is None else uniform_BT.to(device)
    produced_BT = torch.full((len(prompts), max_tokens), -1, device=device)
    place_R = torch.arange(len(prompts), device=device)  # in the batch, of the rows that go on
    going_R = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for number in range(max_tokens):
        hidden_RTD = model(tokens_RT, starts_RT, cache)
        uniform_R1 = None if uniform_BT is None else uniform_BT[place_R, number, None]
        token_R1 = _pick(model.logits(hidden_RTD[:, -1]).float(), temperature, uniform_R1)
        produced_BT[place_R, number] = torch.where(going_R, token_R1[:, 0], -1)
        tokens_RT, starts_RT = token_R1, first_R1
        if eos_id is None:
            continue
        going_R = going_R & (token_R1[:, 0] != eos_id)
        left = int(going_R.sum())
        if left == 0:
            break
        if 2 * left <= len(going_R):
            kept_R = going_R.nonzero()[:, 0]
            cache.keep(kept_R)
            place_R, first_R1, tokens_RT = place_R[kept_R], first_R1[kept_R], tokens_RT[kept_R]
            starts_RT, going_R = first_R1, going_R[kept_R]
    return [[token for token in row if token >= 0] for row in produced_BT.tolist()]


def _pick(logits_RV: Tensor, temperature: float, uniform_R1: Tensor | None) -> Tensor:
    if uniform_R1 is None:
        return logits_RV.argmax(-1, keepdim=True)
    # fp64: over a large vocabulary rounding of the sum would reach the size of a word's probability.
    sums_RV = (logits_RV / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
    # right: a word of probability 0 is never the first to go beyond.
    picked_R1 = torch.searchsorted(sums_RV, uniform_R1 * sums_RV[:, -1:], right=True)
    return picked_R1.clamp_max(logits_RV.shape[-1] - 1)
