"""From [model] to a complete shape: the dial, the shape itself, or a Hugging Face directory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.families import BIASED, GEMMA_LOCAL_THETA, GEMMA_PATTERN, NORMED_QUERIES
from bessemer.formulas.huggingface.plan import unlisted_params
from bessemer.formulas.parameters import total_params
from bessemer.formulas.scaling import sizing
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Derived, Estimate
from bessemer.planner.rules.shape import MLA_KEYS, MOE_KEYS, check_model_keys, check_shape
from bessemer.planner.sizing.sized import ShapeOf, Sized
from bessemer.recipe.schema import SHAPE_KEYS, Model, Recipe
from bessemer.units import format_count, parse_count

_DEFAULT_SIZE = "30M"
_TIED_FAMILIES = ("gpt2", "gemma3")
# A size may miss its target where the vocabulary alone is nearly as large; beyond this it is an error.
_MAX_SIZE_MISS = 0.5


def resolve_shape(recipe: Recipe, facts: Facts) -> tuple[ModelShape, list[Derived]]:
    """The shape, and the values in it that the recipe left open."""
    model = recipe.model
    if model.from_ is not None:
        return _from_source(recipe, facts)
    check_model_keys(model)
    base = _base(recipe, facts)
    explicit = [name for name in SHAPE_KEYS if getattr(model, name) is not None]
    shape, derived = _explicit(model, base) if explicit else _sized(model, base)
    check_shape(shape)
    return _completed(shape), [_vocab_rule(recipe, facts, shape), *derived]


def sized_shape(
    recipe: Recipe, facts: Facts, size: Callable[[ShapeOf], Sized]
) -> tuple[ModelShape, list[Derived], Estimate]:
    """As `resolve_shape` for a size that follows from the budget; and the loss that it is chosen for.

    size: is given what makes a shape of a size.
    """
    model = recipe.model
    check_model_keys(model)
    base = _base(recipe, facts)
    _check_dial(model, base)

    def shape_of(params: float) -> ModelShape:
        return sizing.shape_of_size(round(params), _tied(model, base, round(params))[0])

    sized = size(shape_of)
    shape, rules = _tied(model, base, sized.params)
    shape = sizing.shape_of_size(sized.params, shape)
    check_shape(shape)
    told = [replace(row, value=_summary(shape)) if row.key == "model.size" else row for row in sized.derived]
    return _completed(shape), [_vocab_rule(recipe, facts, shape), *told, *rules], sized.loss


def _completed(shape: ModelShape) -> ModelShape:
    """With the weights that the family has beside those that the keys describe."""
    return replace(shape, other_params=unlisted_params(shape))


def _from_source(recipe: Recipe, facts: Facts) -> tuple[ModelShape, list[Derived]]:
    given = set(recipe.model.model_fields_set) - {"from_", "context", "family"}
    if given:
        raise RecipeError(
            f"model.{min(given)} has no effect beside model.from",
            found=f"model.from and model.{min(given)}",
            wanted="the shape from one place",
            fix=f"remove model.{min(given)}, or remove model.from and write the whole shape",
        )
    source = facts.source_shape
    assert source is not None, "the caller reads model.from before it resolves"
    if "family" in recipe.model.model_fields_set and recipe.model.family != source.family:
        raise RecipeError(
            "model.family differs from that of model.from",
            found=f"{recipe.model.family}, but {recipe.model.from_} is {source.family}",
            wanted=f'family = "{source.family}", or none',
            fix="remove model.family",
        )
    if facts.vocab is not None and facts.vocab > source.vocab:
        raise RecipeError(
            "the tokenizer has more words than the model that is continued",
            found=f"{facts.vocab} words, {source.vocab} rows in the embedding",
            wanted="the tokenizer that belongs to the model",
            fix=f'set tokenizer.path = "{recipe.model.from_}/tokenizer.json"',
        )
    return source, [Derived("model", _summary(source), f"the shape of {recipe.model.from_}")]


def _base(recipe: Recipe, facts: Facts) -> ModelShape:
    """Everything that does not depend on the size; the size fields are filled in later."""
    model = recipe.model
    windowed_gemma = model.family == "gemma3" and model.sliding_window is not None
    experts: dict[str, Any] = {name: getattr(model, name) or 0 for name in (*MOE_KEYS, *MLA_KEYS)}
    return ModelShape(
        family=model.family,
        layers=1,
        hidden=1,
        heads=1,
        kv_heads=1,
        head_dim=1,
        ffn=1,
        vocab=sizing.pad_vocab(facts.vocab or recipe.tokenizer.vocab),
        context=model.context,
        tie_embeddings=model.tie_embeddings is True,
        qk_norm=model.family in NORMED_QUERIES if model.qk_norm == "auto" else model.qk_norm,
        norm=("layer" if model.family == "gpt2" else "rms") if model.norm == "auto" else model.norm,
        norm_eps=model.norm_eps,
        rope_theta=model.rope_theta,
        rope_scaling=_scaling(model),
        sliding_window=model.sliding_window,
        full_every=GEMMA_PATTERN if windowed_gemma else 0,
        local_rope_theta=GEMMA_LOCAL_THETA if windowed_gemma else None,
        qkv_bias=model.family in BIASED,
        gated=model.family != "gpt2",
        positions=model.context if model.family == "gpt2" else 0,
        bos_id=facts.bos_id,
        eos_id=facts.eos_id,
        router=model.router,
        **experts,
    )


def _sized(model: Model, base: ModelShape) -> tuple[ModelShape, list[Derived]]:
    text = model.size if model.size not in (None, "auto") else _DEFAULT_SIZE
    assert text is not None
    _check_dial(model, base)
    params = parse_count(text)
    base, derived = _tied(model, base, params)
    shape = sizing.shape_of_size(params, base)
    count = total_params(shape)
    if abs(count / params - 1.0) > _MAX_SIZE_MISS:
        raise RecipeError(
            f"no model of {text} parameters has this vocabulary",
            found=f"the nearest has {format_count(count)}; its vocabulary has {shape.vocab} rows",
            wanted="a size that leaves room for the blocks",
            fix=f"set model.size={format_count(count)}, or a smaller tokenizer.vocab",
        )
    rule = f"{text}, as there is no limit in [budget] that could size it: " if model.size == "auto" else ""
    rule += (
        f"the nearest to {text} ({format_count(count)} with embeddings): head_dim 64, width over depth near "
    )
    rule += f"{sizing.usual_ratio(shape.hidden):.0f}, ffn 8/3 hidden"
    return shape, [Derived("model.size", _summary(shape), rule), *derived]


def _check_dial(model: Model, base: ModelShape) -> None:
    if base.experts or base.mla_kv_rank:
        raise RecipeError(
            "the size dial makes dense models",
            found=f"model.size = {model.size or _DEFAULT_SIZE} with experts or latent attention",
            wanted="layers, hidden and heads written out",
            fix="begin with a copy of a shipped one: `bessemer recipes copy qwen-moe-30b-a3b .`",
        )


def _explicit(model: Model, base: ModelShape) -> tuple[ModelShape, list[Derived]]:
    missing = [name for name in ("layers", "hidden", "heads") if getattr(model, name) is None]
    if missing:
        raise RecipeError(
            f"model.{missing[0]} is missing",
            found="a shape with " + ", ".join(name for name in SHAPE_KEYS if getattr(model, name)),
            wanted="layers, hidden and heads together, or model.size alone",
            fix=f"add {' and '.join(missing)} to [model]",
        )
    layers, hidden, heads = model.layers, model.hidden, model.heads
    assert layers is not None and hidden is not None and heads is not None
    derived = []
    head_dim = model.head_dim or _head_dim(model, hidden, heads)
    if model.head_dim is None:
        derived.append(
            Derived(
                "model.head_dim", head_dim, "of latent attention" if base.mla_kv_rank else "hidden / heads"
            )
        )
    if model.kv_heads is None:
        derived.append(Derived("model.kv_heads", heads, "as many as query heads"))
    usual = sizing.ffn_width(hidden) if base.gated else 4 * hidden
    ffn = model.ffn or (base.expert_ffn if base.experts and not base.dense_layers else usual)
    if model.ffn is None and not base.experts:
        derived.append(
            Derived("model.ffn", ffn, "8/3 hidden, a multiple of 64" if base.gated else "4 hidden")
        )
    sizes = {"layers": layers, "hidden": hidden, "heads": heads, "head_dim": head_dim, "ffn": ffn}
    shape = ModelShape(**{**base.to_json(), **sizes, "kv_heads": model.kv_heads or heads})
    tied, rules = _tied(model, shape, total_params(shape))
    return tied, [*derived, *rules]


def _head_dim(model: Model, hidden: int, heads: int) -> int:
    if model.mla_kv_rank:
        return (model.mla_nope_dim or 0) + (model.mla_rope_dim or 0)
    pairs = 2 * heads  # rotary positions turn pairs of a head's numbers
    if hidden % heads:
        raise RecipeError(
            "model.hidden does not divide by model.heads",
            found=f"hidden = {hidden}, heads = {heads}",
            wanted="hidden a multiple of heads, or model.head_dim given",
            fix=f"set model.hidden={max(1, round(hidden / pairs)) * pairs}, or another number of heads",
        )
    return hidden // heads


def _tied(model: Model, shape: ModelShape, params: int) -> tuple[ModelShape, list[Derived]]:
    if model.tie_embeddings != "auto":
        return shape, []
    tied = shape.family in _TIED_FAMILIES or sizing.tie_embeddings_for(params)
    rule = "one matrix for embedding and head under 1B parameters"
    if shape.family in _TIED_FAMILIES:
        rule = "as the family has it"
    return ModelShape(**{**shape.to_json(), "tie_embeddings": tied}), [
        Derived("model.tie_embeddings", tied, rule)
    ]


def _scaling(model: Model) -> dict[str, Any] | None:
    if model.rope_scaling is None:
        return None
    values = model.rope_scaling.model_dump()
    llama3_only = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if model.rope_scaling.rope_type == "linear":
        return {name: value for name, value in values.items() if name not in llama3_only}
    return values


def _vocab_rule(recipe: Recipe, facts: Facts, shape: ModelShape) -> Derived:
    words = facts.vocab or recipe.tokenizer.vocab
    return Derived("model.vocab", shape.vocab, f"{words} words, rows padded to a multiple of 64")


def _summary(shape: ModelShape) -> str:
    return (
        f"{shape.layers} layers, {shape.hidden} wide, {shape.heads} heads ({shape.kv_heads} for keys), "
        f"ffn {shape.ffn}"
    )
