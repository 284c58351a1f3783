"""The families of decoders: one row each, from which config reader, tensor table and model take what differs.

A row has two halves. `Family`: what a config class of transformers takes where a key of config.json is
missing. `Traits`: what every model of a family has, whatever its config says; the decoder, the tensor table
and the counts read it from here. Families without `architecture` can be planned, not trained.
Source: transformers 5, the config and modelling file of each class.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traits:
    """Defaults: Llama."""

    gate: str = "silu"  # of the feed-forward layer; "gelu": its tanh form
    sandwiched: bool = False  # attention and feed-forward layer have a norm behind them too
    centred: bool = False  # a norm multiplies by one plus its weight, which begins at zero
    scaled_embedding: bool = False  # times sqrt(hidden), rounded to the compute type
    joined: bool = False  # query, key and value are stored as one tensor; gate and up too


_PLAIN = Traits()
_TRAITS = {
    "gemma3": Traits(gate="gelu", sandwiched=True, centred=True, scaled_embedding=True),
    "phi3": Traits(joined=True),
}


def traits_of(family: str) -> Traits:
    return _TRAITS.get(family, _PLAIN)


@dataclass(frozen=True)
class Family:
    """Defaults of a config class, for keys that a config.json leaves out."""

    name: str  # ours; Mistral computes what Llama does, and may have a window
    architecture: str | None  # that our decoder computes exactly
    kv_heads: int | None = None  # None: as many as query heads
    positions: int = 2048
    head_dim: int | None = None  # None: hidden / heads
    norm_eps: float = 1e-6
    theta: float = 10000.0
    rotary_share: float = 1.0  # of a head that is turned
    activation_key: str = "hidden_act"
    activations: tuple[str, ...] = ("silu", "swish")  # the first is the default
    tied: bool = False
    qk_norm: bool | None = False  # None: as `use_qk_norm` says
    # "none": its class has no window; "always": wherever the key is there; "switch": where
    # `use_sliding_window` is true. kinds: whether `layer_types` is read.
    window: str = "none"
    window_tokens: int | None = None  # where the key is missing; None: no window
    kinds: bool = False
    # Biases of one layer: of attention where `attention_bias` asks for them, or always.
    biased: bool = False
    output_bias: bool = True
    expert_key: str | None = None
    experts: int = 0
    per_token: int = 0
    expert_ffn_key: str = "moe_intermediate_size"
    expert_ffn: int | None = None
    first_dense: int = 0


FAMILIES = {  # by model_type
    "llama": Family("llama", "LlamaForCausalLM"),
    "mistral": Family("llama", "MistralForCausalLM", 8, 131072, window="always", window_tokens=4096),
    "qwen2": Family(
        "qwen2", "Qwen2ForCausalLM", 32, 32768, window="switch", window_tokens=4096, kinds=True,
        biased=True, output_bias=False,
    ),
    "qwen3": Family(
        "qwen3", "Qwen3ForCausalLM", 32, 32768, head_dim=128, qk_norm=True, window="switch",
        window_tokens=4096, kinds=True,
    ),
    "qwen3_moe": Family(
        "qwen3-moe", "Qwen3MoeForCausalLM", 4, 32768, qk_norm=True, window="switch", window_tokens=4096,
        expert_key="num_experts", experts=128, per_token=8, expert_ffn=768,
    ),
    "mixtral": Family(
        "mixtral", "MixtralForCausalLM", 8, 131072, norm_eps=1e-5, theta=1e6, window="always",
        expert_key="num_local_experts", experts=8, per_token=2, expert_ffn_key="intermediate_size",
        expert_ffn=14336,
    ),
    "glm4_moe": Family(
        "glm4-moe", "Glm4MoeForCausalLM", 8, 131072, norm_eps=1e-5, rotary_share=0.5, qk_norm=None,
        output_bias=False, expert_key="n_routed_experts", experts=128, per_token=8, expert_ffn=1408,
        first_dense=1,
    ),
    "gemma3_text": Family(
        "gemma3", "Gemma3ForCausalLM", 4, 131072, head_dim=256, theta=1e6, tied=True, qk_norm=True,
        activation_key="hidden_activation", activations=("gelu_pytorch_tanh",), window="always",
        window_tokens=4096, kinds=True,
    ),
    "phi3": Family("phi3", "Phi3ForCausalLM", None, 4096, norm_eps=1e-5, window="always"),
    "deepseek_v2": Family("deepseek-v2", None, expert_key="n_routed_experts", experts=64),
    "deepseek_v3": Family(
        "deepseek-v3", None, None, 4096, expert_key="n_routed_experts", experts=256, per_token=8,
        first_dense=3,
    ),
}  # fmt: skip
READABLE = {family.architecture: kind for kind, family in FAMILIES.items() if family.architecture}
TRAINABLE = tuple(dict.fromkeys(family.name for family in FAMILIES.values() if family.architecture))
NORMED_QUERIES = tuple(family.name for family in FAMILIES.values() if family.qk_norm)
BIASED = tuple(family.name for family in FAMILIES.values() if family.biased)
GEMMA_PATTERN = 6  # every sixth layer of Gemma 3 sees the whole row
GEMMA_LOCAL_THETA = 10000.0  # rotary base of its other layers


def model_type_of(family: str, *, windowed: bool) -> str:
    """The class that a shape of this family is written as: Llama with a window is Mistral."""
    kinds = [kind for kind, each in FAMILIES.items() if each.name == family]
    return next((kind for kind in kinds if FAMILIES[kind].window != "none" or not windowed), kinds[0])
