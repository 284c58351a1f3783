"""Which keys of [model] go together, and what attention asks of the shape that they make.

Each rule is a row: whether it is broken, what was found, what was wanted, how to mend it. The first broken
one is told; rows of what must be there at all stand before those of its values.
"""

from collections.abc import Iterator

from bessemer.errors import RecipeError
from bessemer.formulas.families import NORMED_QUERIES
from bessemer.formulas.shape import ModelShape
from bessemer.recipe.schema import SHAPE_KEYS, Model

MOE_KEYS = ("experts", "experts_per_token", "expert_ffn", "shared_ffn", "dense_layers")
MLA_KEYS = ("mla_q_rank", "mla_kv_rank", "mla_nope_dim", "mla_rope_dim", "mla_v_dim")
_MOE_FAMILIES = ("qwen3-moe", "mixtral", "glm4-moe", "deepseek-v3")
_BIASED_FAMILIES = ("glm4-moe", "deepseek-v3")  # those that have a router with a bias, and shared experts
_UNNORMED_FAMILIES = ("llama", "qwen2", "phi3")  # those of Llama's build whose class has no such norms

_Rows = Iterator[tuple[object, str, str, str]]  # broken if true, found, wanted, fix


def check_model_keys(model: Model) -> None:
    """RecipeError for keys that exclude each other, or that need one another."""
    for rows in (_present(model), _experts(model), _norms(model)):
        for broken, found, wanted, fix in rows:
            if broken:
                raise RecipeError("[model] contradicts itself", found=found, wanted=wanted, fix=fix)


def check_shape(shape: ModelShape) -> None:
    """RecipeError for a shape that attention cannot have."""
    if shape.heads % shape.kv_heads:
        divisors = [count for count in range(1, shape.heads + 1) if shape.heads % count == 0]
        near = min(divisors, key=lambda count: abs(count - shape.kv_heads))
        raise RecipeError(
            "model.kv_heads does not divide model.heads",
            found=f"heads = {shape.heads}, kv_heads = {shape.kv_heads}",
            wanted="one of " + ", ".join(map(str, divisors)),
            fix=f"set model.kv_heads={near}",
        )
    if shape.head_dim % 2:
        raise RecipeError(
            "model.head_dim is odd",
            found=f"head_dim = {shape.head_dim}",
            wanted="an even number: rotary positions turn pairs",
            fix=f"set model.head_dim={shape.head_dim + 1}, or another number of heads",
        )


def _present(model: Model) -> _Rows:
    """Keys that are there without others, or beside others, or under a family that has none of it."""
    family, is_moe = model.family, model.family in _MOE_FAMILIES
    explicit = [name for name in SHAPE_KEYS if getattr(model, name) is not None]
    routed = [name for name in (*MOE_KEYS, "router") if name in model.model_fields_set]
    latent = [name for name in MLA_KEYS if getattr(model, name) is not None]
    unlatent = [name for name in MLA_KEYS[1:] if getattr(model, name) is None]
    needed = _missing_of_experts(model)
    yield (explicit and model.size is not None, f"model.size and model.{(explicit or [''])[0]}",
           "either the dial or the shape itself", "remove one of them")  # fmt: skip
    yield (routed and not is_moe, f'model.{(routed or [""])[0]} with family = "{family}"',
           "a family with experts: " + ", ".join(_MOE_FAMILIES),
           "change model.family, or remove the key")  # fmt: skip
    yield (is_moe and needed, f'family = "{family}" without {", ".join(needed)}',
           "experts, experts_per_token and expert_ffn", "add them to [model]")  # fmt: skip
    yield (latent and family != "deepseek-v3", f'model.{(latent or [""])[0]} with family = "{family}"',
           'family = "deepseek-v3"', "change model.family, or remove the key")  # fmt: skip
    yield (latent and unlatent, f"latent attention without {', '.join(unlatent)}",
           "kv_rank, nope_dim, rope_dim and v_dim together", "add them to [model]")  # fmt: skip


def _experts(model: Model) -> _Rows:
    family, is_moe, is_whole = model.family, model.family in _MOE_FAMILIES, not _missing_of_experts(model)
    yield (is_moe and is_whole and (model.experts_per_token or 0) > (model.experts or 0),
           f"experts_per_token = {model.experts_per_token}, experts = {model.experts}",
           "no more experts for a token than there are", "lower model.experts_per_token")  # fmt: skip
    yield (model.router == "sigmoid_bias" and family not in _BIASED_FAMILIES,
           f'router = "sigmoid_bias" with family = "{family}"', "router softmax",
           "remove model.router")  # fmt: skip
    yield (family == "glm4-moe" and model.router == "softmax", 'family = "glm4-moe" with router = "softmax"',
           'router = "sigmoid_bias"', 'set model.router="sigmoid_bias"')  # fmt: skip
    yield (bool(model.shared_ffn) and family not in _BIASED_FAMILIES,
           f'shared_ffn = {model.shared_ffn} with family = "{family}"',
           "a family with shared experts: " + ", ".join(_BIASED_FAMILIES),
           "remove model.shared_ffn")  # fmt: skip
    yield (family == "glm4-moe" and is_whole and (model.shared_ffn or 1) % (model.expert_ffn or 1) != 0,
           f'family = "glm4-moe" with shared_ffn = {model.shared_ffn}, expert_ffn = {model.expert_ffn}',
           "shared_ffn a multiple of expert_ffn", f"set model.shared_ffn={model.expert_ffn}")  # fmt: skip
    yield (family == "mixtral" and model.dense_layers > 0,
           f'dense_layers = {model.dense_layers} with family = "mixtral"', "experts in every layer",
           "remove model.dense_layers, or change model.family")  # fmt: skip
    yield (is_moe and model.layers is not None and model.dense_layers >= model.layers,
           f"dense_layers = {model.dense_layers}, layers = {model.layers}", "a layer with experts",
           "lower model.dense_layers")  # fmt: skip


def _norms(model: Model) -> _Rows:
    """Of queries and keys."""
    family = model.family
    yield (model.qk_norm is True and family in _UNNORMED_FAMILIES, f'qk_norm = true with family = "{family}"',
           'family = "qwen3", which is Llama with it', 'set model.family = "qwen3"')  # fmt: skip
    yield (model.qk_norm is True and family == "mixtral", 'qk_norm = true with family = "mixtral"',
           'family = "qwen3-moe", which has it', 'set model.family = "qwen3-moe"')  # fmt: skip
    yield (model.qk_norm is False and family in NORMED_QUERIES, f'qk_norm = false with family = "{family}"',
           'family = "llama", which is Qwen3 without it', 'set model.family = "llama"')  # fmt: skip


def _missing_of_experts(model: Model) -> list[str]:
    return [name for name in ("experts", "experts_per_token", "expert_ffn") if getattr(model, name) is None]
