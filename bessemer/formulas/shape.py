"""The shape of a decoder: the numbers from which every tensor, FLOP and byte follows."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

WORD_HEAD, CLASS_HEAD = HEADS = ("lm_head.weight", "score.weight")  # stored tensors; a model has at most one


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates of frozen matrices, W + scale B A (arXiv:2106.09685): A, B and magnitudes learn."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # names of modules: q_proj, …
    rslora: bool = False
    dora: bool = False
    base: str = "float"  # how the frozen weights are kept: float (the compute type), int8 or nf4

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class ModelShape:
    """A resolved model: nothing in it is optional any more but what the family does not have."""

    family: str  # "llama", "qwen3", …: the Hugging Face family whose names and config it has
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int  # rows of the embedding, padded to a multiple of 64
    context: int  # tokens in a training row
    tie_embeddings: bool
    qk_norm: bool
    norm: str = "rms"  # or "layer"
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    sliding_window: int | None = None
    full_every: int = 0  # with a window, each layer of this number sees all tokens; 0: no layer does
    full_layers: tuple[int, ...] = ()  # the layers that see all, where they have no such rhythm
    local_rope_theta: float | None = None  # of layers with a window, unscaled; None: as all others
    rotary_share: float = 1.0  # of a head that is turned, its first numbers
    query_scalar: float | None = None  # scores are divided by its square root; None: head_dim
    qkv_bias: bool = False  # on queries, keys and values
    gated: bool = True  # SwiGLU, three feed-forward matrices; False: GELU or ReLU², two
    positions: int = 0  # rows of a trained table of positions; 0: none (rotary, ALiBi)
    mtp_layers: int = 0  # further layers that predict later tokens, each with the head again
    other_params: int = 0  # biases and further norms of all layers, where a config says that there are any
    bos_id: int | None = None
    eos_id: int | None = None
    max_positions: int | None = None  # longest row that a loaded model was made for; None: context
    # Mixture of experts; experts = 0 means a dense model.
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    expert_hidden: int = 0  # width in which tokens travel to experts, where that is a smaller one; 0: hidden
    expert_groups: int = 0  # of which a token chooses experts, where they are grouped by node; 0: of any
    shared_ffn: int = 0
    dense_layers: int = 0
    router: str = "softmax"
    # Latent attention (MLA); kv_rank = 0 means ordinary grouped-query attention.
    mla_q_rank: int = 0
    mla_kv_rank: int = 0
    mla_nope_dim: int = 0
    mla_rope_dim: int = 0
    mla_v_dim: int = 0
    # What fine-tuning adds.
    adapter: Adapter | None = None  # then everything else is frozen
    labels: int = 0  # rows of a head of classes (`score.weight`) in place of the vocabulary's; 1: a reward

    @property
    def longest_row(self) -> int:
        """Positions that are computed as its makers do: LongRoPE has other frequencies in longer rows."""
        longest = max(self.context, self.max_positions or 0)
        return longest if self.last_position is None else min(longest, self.last_position)

    @property
    def last_position(self) -> int | None:
        """Of LongRoPE's original context: beyond it all frequencies are others. None: there is no end."""
        scaling = self.rope_scaling or {}
        if scaling.get("rope_type") != "longrope":
            return None
        return int(scaling["original_max_position_embeddings"])

    @property
    def rotary_dim(self) -> int:
        """Numbers of a head that are turned."""
        return int(self.head_dim * self.rotary_share)

    def window_of(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees, itself among them; None: all."""
        is_full = layer in self.full_layers or (self.full_every and (layer + 1) % self.full_every == 0)
        return None if is_full else self.sliding_window

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "ModelShape":
        known = {field.name for field in fields(ModelShape)}
        given = {name: value for name, value in values.items() if name in known}
        if adapter := given.get("adapter"):
            given["adapter"] = Adapter(**{**adapter, "targets": tuple(adapter["targets"])})
        given["full_layers"] = tuple(given.get("full_layers") or ())
        return ModelShape(**given)
