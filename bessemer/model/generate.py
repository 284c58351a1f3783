"""Sampling from a decoder, with a key-value cache, many prompts at once.

Prompts of unequal length are padded on the left; `starts` hides the padding and moves the positions,
so that a prompt's tokens see exactly what they would see alone.
"""

import torch
from torch import Tensor

from bessemer.model.decoder import Decoder, KeyValueCache


@torch.inference_mode()
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

    temperature 0 takes the likeliest token. Every prompt must have at least one token.
    """
    # Every token is another length: code compiled for training rows would be compiled anew for each.
    with torch.compiler.set_stance("force_eager"):
        return _generate(model, prompts, max_tokens, eos_id, temperature, seed)


def _generate(
    model: Decoder,
    prompts: list[list[int]],
    max_tokens: int,
    eos_id: int | None,
    temperature: float,
    seed: int,
) -> list[list[int]]:
    device = model.head_weight.device
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]
    tokens_BT = torch.tensor(rows, device=device)
    first_B1 = torch.tensor(padding, device=device)[:, None]
    # A padding token sees itself only: its softmax must not be empty, or its NaN would spread.
    starts_BT = torch.minimum(torch.arange(longest, device=device)[None], first_B1)
    cache = KeyValueCache(
        model.shape, len(prompts), longest + max_tokens, model.head_weight.new_empty(0, dtype=model.compute)
    )
    random = torch.Generator(device).manual_seed(seed)
    produced: list[Tensor] = []
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for _ in range(max_tokens):
        hidden_BTD = model(tokens_BT, starts_BT, cache)
        token_B1 = _pick(model.logits(hidden_BTD[:, -1]).float(), temperature, random)
        produced.append(token_B1)
        if eos_id is not None:
            finished |= token_B1[:, 0] == eos_id
            if bool(finished.all()):
                break
        tokens_BT, starts_BT = token_B1, first_B1
    if not produced:
        return [[] for _ in prompts]
    return [_until_end(row, eos_id) for row in torch.cat(produced, dim=1).tolist()]


def _pick(logits_BV: Tensor, temperature: float, random: torch.Generator) -> Tensor:
    if temperature == 0.0:
        return logits_BV.argmax(-1, keepdim=True)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=random)


def _until_end(tokens: list[int], eos_id: int | None) -> list[int]:
    return tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens
