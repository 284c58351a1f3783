"""Parameters in closed form: all, those active for one token, and those in matrix products.

Independent of the tensor table (formulas/tensors.py), which lists every weight; tests hold the two
equal on every shipped recipe. FLOPs need the third count, which no list of tensors gives.
Source: the layer definitions themselves; latent attention: arXiv:2405.04434 section 2.1.
Not counted anywhere: the router's balancing bias (it is a state, not a weight); and biases but those of
queries, keys and values (0.1 % of a GPT-2, less of larger ones) unless `other_params` of the shape says how
many.
"""

from bessemer.formulas.families import traits_of
from bessemer.formulas.shape import ModelShape


def total_params(shape: ModelShape) -> int:
    """All trained weights; a tied embedding counts once."""
    head = 0 if shape.tie_embeddings else head_rows(shape) * shape.hidden
    table = (shape.vocab + shape.positions) * shape.hidden
    return table + head + shape.hidden + _blocks(shape, shape.experts) + shape.other_params


def head_rows(shape: ModelShape) -> int:
    """What the last matmul makes of a token: a score for each word, or for each label."""
    return shape.labels or shape.vocab


def active_params(shape: ModelShape) -> int:
    """Weights that one token meets: each expert layer with the experts that it chooses."""
    return total_params(shape) - _blocks(shape, shape.experts) + _blocks(shape, shape.experts_per_token)


def matmul_params(shape: ModelShape) -> int:
    """Active weights that are multiplied with each token: the head yes, the embedding and norms no.

    This is the N of 6 N FLOPs per token.
    """
    vectors = (shape.layers + shape.mtp_layers) * _vectors(shape) + 2 * shape.mtp_layers * shape.hidden
    heads = (1 + shape.mtp_layers) * head_rows(shape) * shape.hidden
    return heads + _blocks(shape, shape.experts_per_token) - vectors


def attention_params(shape: ModelShape) -> int:
    """Matrices of one attention layer."""
    hidden, heads = shape.hidden, shape.heads
    if not shape.mla_kv_rank:
        queries, keys = heads * shape.head_dim, shape.kv_heads * shape.head_dim
        return 2 * hidden * queries + 2 * hidden * keys
    query_dim = heads * (shape.mla_nope_dim + shape.mla_rope_dim)
    rank = shape.mla_q_rank
    query = rank * (hidden + query_dim) if rank else hidden * query_dim
    latent = hidden * (shape.mla_kv_rank + shape.mla_rope_dim)
    expand = shape.mla_kv_rank * heads * (shape.mla_nope_dim + shape.mla_v_dim)
    return query + latent + expand + heads * shape.mla_v_dim * hidden


def num_dense_layers(shape: ModelShape) -> int:
    return shape.dense_layers if shape.experts else shape.layers


def ffn_matrices(shape: ModelShape) -> int:
    """Matrices of hidden x width in a feed-forward block."""
    return 3 if shape.gated else 2


def _blocks(shape: ModelShape, num_experts: int) -> int:
    """Every layer, with `num_experts` experts in each layer that has any."""
    dense, routed = num_dense_layers(shape), shape.layers - num_dense_layers(shape)
    attention = (shape.layers + shape.mtp_layers) * (attention_params(shape) + _vectors(shape))
    feed_forward = dense * ffn_matrices(shape) * shape.hidden * shape.ffn
    if shape.experts:
        feed_forward += (routed + shape.mtp_layers) * _routed(shape, num_experts)
    else:
        feed_forward += shape.mtp_layers * ffn_matrices(shape) * shape.hidden * shape.ffn
    return attention + feed_forward + shape.mtp_layers * _joins(shape)


def _routed(shape: ModelShape, num_experts: int) -> int:
    """Router and experts of one layer."""
    width = num_experts * shape.expert_ffn + shape.shared_ffn
    return ffn_matrices(shape) * shape.hidden * width + shape.hidden * shape.experts


def _joins(shape: ModelShape) -> int:
    """What joins a later token's embedding to the hidden state: two norms and a matrix (2412.19437, 2.2)."""
    return 2 * shape.hidden * shape.hidden + 2 * shape.hidden


def _vectors(shape: ModelShape) -> int:
    """Norm weights of one layer, and the biases of its queries, keys and values."""
    norms = (4 if traits_of(shape.family).sandwiched else 2) * shape.hidden
    norms += 2 * shape.head_dim if shape.qk_norm else 0
    biases = (shape.heads + 2 * shape.kv_heads) * shape.head_dim if shape.qkv_bias else 0
    return norms + biases + (shape.mla_q_rank + shape.mla_kv_rank if shape.mla_kv_rank else 0)
