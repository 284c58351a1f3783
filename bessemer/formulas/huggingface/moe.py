"""The part of a `config.json` that is about experts, read and written.

Three classes: `Qwen3MoeForCausalLM` and `MixtralForCausalLM` choose by softmax; `Glm4MoeForCausalLM` is
the one that has grouped-query attention with DeepSeek-V3's router: sigmoids and a bias that balances,
shared experts, dense first layers. Values that we do not compute are refused, as in huggingface.py.
Source: transformers 5 `Qwen3MoeConfig`, `MixtralConfig`, `Glm4MoeConfig`.
"""

from typing import Any

from bessemer.formulas.families import Family
from bessemer.formulas.huggingface.keys import count, get, unsupported
from bessemer.formulas.shape import ModelShape

# Of each family: key, default when it is missing, the only value that we compute, and why another is refused.
_REQUIRED: dict[str, tuple[tuple[str, Any, Any, str], ...]] = {
    "qwen3-moe": (
        ("norm_topk_prob", False, True, "our routers renormalise the weights of the chosen experts"),
        ("decoder_sparse_step", 1, 1, "every layer after the dense ones has experts"),
    ),
    "mixtral": (("router_jitter_noise", 0.0, 0.0, "training here has no noise in the router"),),
    "glm4-moe": (
        ("norm_topk_prob", True, True, "our routers renormalise the weights of the chosen experts"),
        ("n_group", 1, 1, "our routers choose among all experts"),
        ("topk_group", 1, 1, "our routers choose among all experts"),
        ("routed_scaling_factor", 1.0, 1.0, "our routers do not scale what they choose"),
    ),
}
_COUNTS = ("num_experts", "num_local_experts")  # one key, in files of different versions


def expert_count(config: dict[str, Any], family: Family) -> int:
    """Routed experts of a layer, under whichever name a file has them."""
    assert family.expert_key is not None, family
    names = [family.expert_key, *(name for name in _COUNTS if name != family.expert_key)]
    there = next((name for name in names if config.get(name) is not None), family.expert_key)
    return count(config, there, family.experts)


def read_experts(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """The fields of ModelShape about experts; none for a dense family."""
    if family.expert_key is None:
        return {}
    for key, default, value, reason in _REQUIRED[family.name]:
        if get(config, key, default) != value:
            raise unsupported(
                key, get(config, key, f"missing, which means {default}"), f"{value!r}: {reason}"
            )
    experts = expert_count(config, family)
    per_token = count(config, "num_experts_per_tok", family.per_token)
    if per_token > experts:
        raise unsupported("num_experts_per_tok", per_token, f"at most the {experts} experts that there are")
    expert_ffn = count(config, family.expert_ffn_key, family.expert_ffn)
    fields = {"experts": experts, "experts_per_token": per_token, "expert_ffn": expert_ffn}
    if family.name == "qwen3-moe":
        return {**fields, "dense_layers": _dense_layers(config)}
    if family.name == "glm4-moe":
        shared = count(config, "n_shared_experts", 1) * expert_ffn
        dense = int(get(config, "first_k_dense_replace", 1))
        return {**fields, "dense_layers": dense, "shared_ffn": shared, "router": "sigmoid_bias"}
    return fields


def write_experts(shape: ModelShape, family: Family) -> dict[str, Any]:
    """The keys of `config.json` about experts; none for a dense family."""
    if family.expert_key is None:
        return {}
    written = {
        family.expert_key: shape.experts,
        "num_experts_per_tok": shape.experts_per_token,
        family.expert_ffn_key: shape.expert_ffn,
        "output_router_logits": False,
        **{key: value for key, _, value, _ in _REQUIRED[family.name]},
    }
    if shape.family == "qwen3-moe":
        written["mlp_only_layers"] = list(range(shape.dense_layers))
    if shape.family == "glm4-moe":
        written |= {
            "first_k_dense_replace": shape.dense_layers,
            "n_shared_experts": shape.shared_ffn // shape.expert_ffn,
            "num_nextn_predict_layers": 0,
            "use_qk_norm": shape.qk_norm,
        }
    return written


def expert_conditions(shape: ModelShape) -> list[tuple[bool, str, Any, str]]:
    """What the family's class asks of a shape: (fulfilled, key, its value, wanted)."""
    family, shared = shape.family, shape.shared_ffn
    routers = {"glm4-moe": "sigmoid_bias"}
    whole = bool(shared) and shape.expert_ffn > 0 and shared % shape.expert_ffn == 0
    return [
        (bool(shape.experts) == (family in _REQUIRED), "experts", shape.experts,
         f"a dense model, or a family of {', '.join(_REQUIRED)}"),
        (shape.router == routers.get(family, "softmax"), "router", shape.router,
         f'"{routers.get(family, "softmax")}" in family {family}'),
        (whole if family == "glm4-moe" else not shared, "shared_ffn", shared,
         "a multiple of expert_ffn in family glm4-moe, and none in others"),
        (family in ("qwen3-moe", "glm4-moe") or not shape.dense_layers, "dense_layers", shape.dense_layers,
         f"none in family {family}"),
    ]  # fmt: skip


def _dense_layers(config: dict[str, Any]) -> int:
    """`mlp_only_layers` when they are the first ones."""
    listed = sorted(set(get(config, "mlp_only_layers", [])))
    if listed != list(range(len(listed))):
        raise unsupported("mlp_only_layers", listed, "the first layers, without a gap: 0, 1, …")
    return len(listed)
