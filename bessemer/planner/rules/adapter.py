"""From [finetune] to the adapters of its model: whether there are any, where, and of what size.

`method` lora or qlora, or `adapter` beside another method. Targets are names of modules: those of `linear`
(attention and feed-forward) and `attention`, or listed. What cannot have an adapter is refused with its
reason, what does not exist with the nearest name.
"""

from difflib import get_close_matches

from bessemer.errors import RecipeError
from bessemer.formulas.adapters import ATTENTION, FEED_FORWARD, layer_adapter_params, matrices
from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.parameters import num_dense_layers
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.recipe.schema import Finetune

_ALPHA_PER_RANK = 2.0
_LR_FACTOR = 10.0
_LR_ALONE = 2e-4
_REFUSED = {
    "lm_head": "the head learns with all weights only",
    "embed_tokens": "the embedding learns with all weights only",
    "gate": "an adapter on the router would send tokens to other experts than it was made for",
    **dict.fromkeys(("experts", "w1", "w2", "w3"), "routed experts have none: they are stacked"),
}


def adapter_kind(section: Finetune) -> str:
    """none, lora or qlora."""
    by_method = section.method if section.method in ("lora", "qlora") else "none"
    return by_method if section.adapter == "auto" else section.adapter


def adapter_of(section: Finetune, shape: ModelShape) -> Adapter | None:
    """The adapters of a model of this shape; None: all weights learn."""
    check_adapter_keys(section)
    kind = adapter_kind(section)
    if kind == "none":
        return None
    settings = section.lora
    alpha = _ALPHA_PER_RANK * settings.rank if settings.alpha == "auto" else settings.alpha
    return Adapter(
        rank=settings.rank,
        alpha=alpha,
        targets=_targets(settings.targets, shape),
        rslora=settings.rslora,
        dora=settings.dora,
        base=settings.base if kind == "qlora" else "float",
    )


def check_adapter_keys(section: Finetune) -> None:
    """Keys that contradict each other, or would have no effect."""
    kind, given = adapter_kind(section), section.model_fields_set
    checks = [
        (section.method in ("lora", "qlora") and kind != section.method,
         f'finetune.method = "{section.method}" and finetune.adapter = "{section.adapter}"',
         "one of them", "remove finetune.adapter"),
        (section.method == "full" and kind != "none",
         f'finetune.method = "full" and finetune.adapter = "{section.adapter}"',
         "one of them", f'set finetune.method = "{kind}" and remove finetune.adapter'),
        (kind == "none" and "lora" in given, "[finetune.lora] without adapters",
         "settings that have an effect", 'set finetune.method = "lora", or remove [finetune.lora]'),
        (kind == "lora" and "base" in section.lora.model_fields_set, "finetune.lora.base without qlora",
         "settings that have an effect", 'set finetune.method = "qlora", or remove finetune.lora.base'),
        (section.lora.targets == [], "finetune.lora.targets = []", "at least one name",
         'set finetune.lora.targets = "linear"'),
    ]  # fmt: skip
    for wrong, found, wanted, fix in checks:
        if wrong:
            raise RecipeError("[finetune] contradicts itself", found=found, wanted=wanted, fix=fix)


def adapter_lr(full: float, *, alone: bool) -> tuple[float, str]:
    """Peak rate of adapters, and its rule. full: that of learning all weights; alone: so is its rule."""
    if alone:
        return _LR_ALONE, "usual for adapters of a model that was made elsewhere (arXiv:2305.14314)"
    return float(f"{_LR_FACTOR * full:.1e}"), "adapters: ten times that of learning all weights"


def check_adapter_stages(shape: ModelShape, layout: Layout) -> None:
    """Every rank of a pipeline needs something that learns."""
    if shape.adapter is None or layout.pipeline == 1:
        return
    dense, table = num_dense_layers(shape), layers_of_stages(shape, layout)
    for place in range(layout.pipeline):
        layers = [layer for stage in layout.stages_of(place) for layer in table[stage]]
        if not any(layer_adapter_params(shape, routed=layer >= dense) for layer in layers):
            raise RecipeError(
                "a rank of the pipeline would have nothing to learn",
                found=f"layers {layers} without an adapter: targets are {', '.join(shape.adapter.targets)}",
                wanted="a target in some layer of every rank",
                fix='set finetune.lora.targets = "linear", or a layout without pipeline',
            )


def full_lr(lr: float) -> float:
    """The rate of learning all weights that a rate of adapters stands for."""
    return lr / _LR_FACTOR


def _targets(given: list[str] | str, shape: ModelShape) -> tuple[str, ...]:
    there = _there(shape)
    if given == "linear":
        return tuple(name for name in (*ATTENTION, *FEED_FORWARD) if name in there)
    if given == "attention":
        return ATTENTION
    for name in given:
        if name not in there:
            raise _unknown(name, there, shape)
    return tuple(dict.fromkeys(given))


def _there(shape: ModelShape) -> set[str]:
    """Modules that some layer has."""
    dense = num_dense_layers(shape)
    kinds = ([False] if dense else []) + ([True] if dense < shape.layers else [])
    return {name for routed in kinds for name in matrices(shape, routed=routed)}


def _unknown(name: str, there: set[str], shape: ModelShape) -> RecipeError:
    reason = _REFUSED.get(name)
    if reason is None and name in FEED_FORWARD and shape.experts:
        reason = _REFUSED["experts"]
    near = get_close_matches(name, sorted(there), n=1)
    known = ", ".join(part for part in (*ATTENTION, *FEED_FORWARD) if part in there)
    return RecipeError(
        "this module cannot have an adapter" if reason else "the model has no such module",
        found=f'finetune.lora.targets with "{name}"' + (f": {reason}" if reason else ""),
        wanted=f"linear, attention, or names of {known}",
        fix=f'write "{near[0]}"' if near and not reason else f'remove "{name}"',
    )
