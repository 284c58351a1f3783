"""Parameters in closed form: all, those active for one token, and those in matrix products.

Independent of the tensor table (formulas/tensors.py), which lists every weight; tests hold the two
equal on every shipped recipe. FLOPs need the third count, which no list of tensors gives.
Source: the layer definitions themselves; latent attention: arXiv:2405.04434 section 2.1.
Not counted anywhere: the router's balancing bias (it is a state, not a weight).
"""

from bessemer.formulas.shape import ModelShape


def total_params(shape: ModelShape) -> int:
    """All trained weights; a tied embedding counts once."""
    head = 0 if shape.tie_embeddings else shape.vocab * shape.hidden
    return shape.vocab * shape.hidden + head + shape.hidden + _blocks(shape, shape.experts)


def active_params(shape: ModelShape) -> int:
    """Weights that one token meets: each expert layer with the experts that it chooses."""
    return total_params(shape) - _blocks(shape, shape.experts) + _blocks(shape, shape.experts_per_token)


def matmul_params(shape: ModelShape) -> int:
    """Active weights that are multiplied with each token: the head yes, the embedding and norms no.

    This is the N of 6 N FLOPs per token.
    """
    norms = shape.layers * _norms(shape)
    return shape.vocab * shape.hidden + _blocks(shape, shape.experts_per_token) - norms


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


def _blocks(shape: ModelShape, num_experts: int) -> int:
    """Every layer, with `num_experts` experts in each layer that has any."""
    dense = num_dense_layers(shape)
    feed_forward = dense * 3 * shape.hidden * shape.ffn
    if shape.experts:
        width = num_experts * shape.expert_ffn + shape.shared_ffn
        router = shape.hidden * shape.experts
        feed_forward += (shape.layers - dense) * (3 * shape.hidden * width + router)
    return shape.layers * (attention_params(shape) + _norms(shape)) + feed_forward


def _norms(shape: ModelShape) -> int:
    """Norm weights of one layer."""
    norms = 2 * shape.hidden + (2 * shape.head_dim if shape.qk_norm else 0)
    return norms + (shape.mla_q_rank + shape.mla_kv_rank if shape.mla_kv_rank else 0)
