"""The shape of a decoder: the numbers from which every tensor, FLOP and byte follows."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any


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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "ModelShape":
        known = {field.name for field in fields(ModelShape)}
        given = {name: value for name, value in values.items() if name in known}
        if adapter := given.get("adapter"):
            given["adapter"] = Adapter(**{**adapter, "targets": tuple(adapter["targets"])})
        return ModelShape(**given)
