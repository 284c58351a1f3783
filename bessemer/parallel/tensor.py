"""The tensor axis: heads, feed-forward width and vocabulary are split; between them, the sequence is.

The split of each weight is `tensor_dim` of the tensor table. What follows from it is hooked on from
outside, so that the model knows nothing of it (arXiv:1909.08053; sequence parallelism: arXiv:2205.05198):

    embedding               own rows of the vocabulary  -> scattered along the sequence
    attention               gathered sequence, own heads -> scattered along the sequence
    feed-forward, experts   gathered sequence, own width -> scattered along the sequence
    final norm              own part of the sequence     -> gathered
    loss                    own rows of the vocabulary (parallel/vocabulary.py)

Weights that are not split (norms, router, one factor of an adapter) see a part of the sequence or of the
heads, so their gradients are partial: parallel/gradients.py sums them over the axis. Rows of DoRA's matrices
whose columns are split have their lengths summed over the axis.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bessemer.formulas.layout import split_evenly
from bessemer.model.decoder import Block, Decoder
from bessemer.model.layers import Linear
from bessemer.model.moe import MoE
from bessemer.parallel.collectives import all_reduce, gather_dim, scatter_dim
from bessemer.parallel.mesh import Group, Mesh

_SEQUENCE = 1  # dim of [B, T, D]


def split_over_tensor(model: Decoder, mesh: Mesh, context: int) -> None:
    """Hook the exchanges on, and tell the layers their own sizes. context: tokens in a whole row."""
    group = mesh.group("tensor")
    if group is None:
        return
    tokens = context // mesh.degree["context"]
    trunk = model.model
    if model.part.first:
        assert trunk.embed_tokens is not None
        own = split_evenly(model.shape.vocab, mesh.degree["tensor"])[mesh.place("tensor")]
        _split_embedding(trunk.embed_tokens, own, model.compute, group)
    for block in trunk.layers.values():
        assert isinstance(block, Block)
        block.self_attn.heads //= mesh.degree["tensor"]
        block.self_attn.kv_heads //= mesh.degree["tensor"]
        for layer in (block.self_attn, block.feed_forward):
            layer.register_forward_pre_hook(_gathered_input(tokens, group))
            layer.register_forward_hook(_scattered_output(group))
        for name, module in block.named_modules():
            if name.endswith(("o_proj", "down_proj")) and isinstance(module, Linear):
                module.summed = True
                module.over_columns = partial(all_reduce, operation="sum", group=group)
        if isinstance(block.feed_forward, MoE):
            block.feed_forward.share = 1.0 / mesh.degree["tensor"]
    if trunk.norm is not None:
        trunk.norm.register_forward_hook(_gathered_output(tokens, group))


def _split_embedding(embedding: nn.Embedding, own: range, compute: torch.dtype, group: Group) -> None:
    def forward(tokens_BT: Tensor) -> Tensor:
        is_own_BT1 = ((tokens_BT >= own.start) & (tokens_BT < own.stop)).unsqueeze(-1)
        local_BT = (tokens_BT - own.start).clamp(0, len(own) - 1)
        local_BTD = nn.functional.embedding(local_BT, embedding.weight).to(compute)
        return scatter_dim(torch.where(is_own_BT1, local_BTD, 0.0), _SEQUENCE, group)

    embedding.forward = forward  # type: ignore[method-assign, assignment]


def _gathered_input(tokens: int, group: Group) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return gather_dim(inputs[0], _SEQUENCE, tokens, group), *inputs[1:]

    return hook


def _scattered_output(group: Group) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return scatter_dim(output, _SEQUENCE, group)

    return hook


def _gathered_output(tokens: int, group: Group) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return gather_dim(output, _SEQUENCE, tokens, group)

    return hook
