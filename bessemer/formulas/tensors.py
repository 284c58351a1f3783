"""The tensor table: every weight of a model, from its shape alone.

One source for the model, the initial values, the split over ranks, the Hugging Face names, the
checkpoint, the optimizer groups and the parameter count. Names are those of Hugging Face's
classes (formulas/families.py; `LlamaForCausalLM`, `DeepseekV3ForCausalLM`, …). Where one parameter holds many
of these tensors: model/pieces.py.
Q, K and V stay separate tensors: a concatenated one breaks under sharding. Phi-3's files have them joined:
formulas/stored.py.

Initial values: "small init", std = sqrt(2 / (5 hidden)) (arXiv:1910.05895); matrices that write into
the residual stream are divided by sqrt(2 layers) so that its variance does not grow with depth
(GPT-2); norms are one; biases, and norms that multiply by one plus their weight, zero.
"""

import math
from collections.abc import Iterator

from bessemer.formulas.adapters import with_adapters
from bessemer.formulas.families import traits_of
from bessemer.formulas.shape import CLASS_HEAD, WORD_HEAD, ModelShape
from bessemer.formulas.tensor_spec import TensorSpec


def tensor_table(shape: ModelShape) -> list[TensorSpec]:
    """Every weight, in the order of the forward pass."""
    std = math.sqrt(2.0 / (5.0 * shape.hidden))
    table = [_matrix("model.embed_tokens.weight", (shape.vocab, shape.hidden), std, 0)]
    if shape.positions:
        table.append(_matrix("model.embed_positions.weight", (shape.positions, shape.hidden), std, None))
    for layer in range(shape.layers):
        table += _block(shape, layer, std)
    table.append(_norm(shape, "model.norm.weight", shape.hidden))
    if shape.labels:
        # Whole on every rank of the tensor axis: a few rows, and one label has nothing to split.
        table.append(_matrix(CLASS_HEAD, (shape.labels, shape.hidden), std, None))
    elif not shape.tie_embeddings:
        table.append(_matrix(WORD_HEAD, (shape.vocab, shape.hidden), std, 0))
    return table if shape.adapter is None else list(with_adapters(table, shape.adapter))


def count_params(shape: ModelShape) -> int:
    """All trained weights. A tied embedding counts once."""
    return sum(spec.numel for spec in tensor_table(shape) if spec.trained)


def count_active_params(shape: ModelShape) -> int:
    """Weights that take part in one token's forward pass: experts count as often as they are chosen."""
    idle = sum(spec.numel for spec in tensor_table(shape) if spec.expert is not None)
    share = shape.experts_per_token / shape.experts if shape.experts else 0.0
    return count_params(shape) - idle + round(idle * share)


def _block(shape: ModelShape, layer: int, std: float) -> Iterator[TensorSpec]:
    prefix = f"model.layers.{layer}."
    out_std = std / math.sqrt(2.0 * shape.layers)
    sandwiched = traits_of(shape.family).sandwiched
    yield _norm(shape, prefix + "input_layernorm.weight", shape.hidden)
    attention = _latent_attention if shape.mla_kv_rank else _attention
    yield from attention(shape, prefix + "self_attn.", std, out_std)
    yield _norm(shape, prefix + "post_attention_layernorm.weight", shape.hidden)
    if sandwiched:
        yield _norm(shape, prefix + "pre_feedforward_layernorm.weight", shape.hidden)
    if shape.experts and layer >= shape.dense_layers:
        yield from _experts(shape, prefix + _moe_room(shape), std, out_std)
    else:
        yield from _feed_forward(shape, prefix + "mlp.", shape.ffn, std, out_std)
    if sandwiched:
        yield _norm(shape, prefix + "post_feedforward_layernorm.weight", shape.hidden)


def _attention(shape: ModelShape, prefix: str, std: float, out_std: float) -> Iterator[TensorSpec]:
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield _matrix(prefix + "q_proj.weight", (queries, hidden), std, 0)
    yield _matrix(prefix + "k_proj.weight", (keys, hidden), std, 0)
    yield _matrix(prefix + "v_proj.weight", (keys, hidden), std, 0)
    yield _matrix(prefix + "o_proj.weight", (hidden, queries), out_std, 1)
    if shape.qkv_bias:
        for name, size in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield TensorSpec(f"{prefix}{name}.bias", (size,), 0.0, decay=False, tensor_dim=0)
    if shape.qk_norm:
        yield _norm(shape, prefix + "q_norm.weight", shape.head_dim)
        yield _norm(shape, prefix + "k_norm.weight", shape.head_dim)


def _latent_attention(shape: ModelShape, prefix: str, std: float, out_std: float) -> Iterator[TensorSpec]:
    """Queries and keys through low-rank latents, as in arXiv:2405.04434 section 2.1."""
    hidden, heads = shape.hidden, shape.heads
    query_dim = heads * (shape.mla_nope_dim + shape.mla_rope_dim)
    if shape.mla_q_rank:
        yield _matrix(prefix + "q_a_proj.weight", (shape.mla_q_rank, hidden), std, None)
        yield _norm(shape, prefix + "q_a_layernorm.weight", shape.mla_q_rank)
        yield _matrix(prefix + "q_b_proj.weight", (query_dim, shape.mla_q_rank), std, 0)
    else:
        yield _matrix(prefix + "q_proj.weight", (query_dim, hidden), std, 0)
    latent = shape.mla_kv_rank + shape.mla_rope_dim
    yield _matrix(prefix + "kv_a_proj_with_mqa.weight", (latent, hidden), std, None)
    yield _norm(shape, prefix + "kv_a_layernorm.weight", shape.mla_kv_rank)
    keys_and_values = heads * (shape.mla_nope_dim + shape.mla_v_dim)
    yield _matrix(prefix + "kv_b_proj.weight", (keys_and_values, shape.mla_kv_rank), std, 0)
    yield _matrix(prefix + "o_proj.weight", (hidden, heads * shape.mla_v_dim), out_std, 1)


def _experts(shape: ModelShape, prefix: str, std: float, out_std: float) -> Iterator[TensorSpec]:
    yield _matrix(prefix + "gate.weight", (shape.experts, shape.hidden), std, None)
    if shape.router == "sigmoid_bias":
        bias = prefix + "gate.e_score_correction_bias"
        yield TensorSpec(bias, (shape.experts,), 0.0, decay=False, trained=False)
    for expert in range(shape.experts):
        room = f"{prefix}experts.{expert}."
        yield from _feed_forward(shape, room, shape.expert_ffn, std, out_std, expert)
    if shape.shared_ffn:
        yield from _feed_forward(shape, prefix + "shared_experts.", shape.shared_ffn, std, out_std)


def _feed_forward(
    shape: ModelShape, prefix: str, ffn: int, std: float, out_std: float, expert: int | None = None
) -> Iterator[TensorSpec]:
    gate, up, down = ("gate_proj", "up_proj", "down_proj")
    if expert is not None and shape.family == "mixtral":
        gate, up, down = ("w1", "w3", "w2")
    for name in (gate, up) if shape.gated else (up,):
        yield _matrix(f"{prefix}{name}.weight", (ffn, shape.hidden), std, 0, expert)
    yield _matrix(f"{prefix}{down}.weight", (shape.hidden, ffn), out_std, 1, expert)


def _moe_room(shape: ModelShape) -> str:
    return "block_sparse_moe." if shape.family == "mixtral" else "mlp."


def _matrix(
    name: str, shape: tuple[int, int], std: float, tensor_dim: int | None, expert: int | None = None
) -> TensorSpec:
    return TensorSpec(name, shape, std, decay=True, tensor_dim=tensor_dim, expert=expert)


def _norm(shape: ModelShape, name: str, size: int) -> TensorSpec:
    return TensorSpec(name, (size,), 0.0 if traits_of(shape.family).centred else None, decay=False)
