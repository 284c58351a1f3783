"""What is refused before a run starts: what this version cannot train yet, and what does not fit.

`bessemer plan` shows plans beyond these limits; the training verbs call `check_trainable` and
`check_start` first, before anything is allocated.
"""

from dataclasses import replace

from bessemer.errors import RecipeError, RefusedError
from bessemer.formulas.families import FAMILIES, TRAINABLE, model_type_of
from bessemer.formulas.huggingface import rope, window
from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import device_bytes, needed_bytes
from bessemer.planner.rules.adapter import adapter_kind
from bessemer.planner.rules.layout import allows
from bessemer.planner.rules.lever import check_levers
from bessemer.recipe.schema import Optimization, Recipe
from bessemer.units import format_bytes

# Of a CPU's memory; the rest is for other programs and for what the formula leaves out. On an accelerator the
# plan has room for that (planner/cost/memory.py), and what it chooses may take all that there is.
_USABLE_SHARE = 0.95

Refusal = tuple[str, str, str]  # found, wanted, fix

BUILT_METHODS = (
    "distill",
    "grpo",
    "full",
    "lora",
    "qlora",
    "dpo",
    "ipo",
    "orpo",
    "simpo",
    "reward",
    "classify",
)
BUILT_ADAPTERS = ("none", "lora", "qlora")


def untrainable(recipe: Recipe, shape: ModelShape) -> Refusal | None:
    """The first thing in a recipe or shape that this version does not train; None when it trains all."""
    return next(iter(_shape_refusals(shape) + _recipe_refusals(recipe)), None)


def untrainable_shape(shape: ModelShape) -> Refusal | None:
    """The same of the model alone."""
    return next(iter(_shape_refusals(shape)), None)


def check_trainable(recipe: Recipe, shape: ModelShape) -> None:
    refusal = untrainable(recipe, shape)
    if refusal is not None:
        found, wanted, fix = refusal
        raise RecipeError("this cannot be trained in this version yet", found=found, wanted=wanted, fix=fix)


def check_start(
    recipe: Recipe,
    shape: ModelShape,
    stage: StagePlan,
    facts: Facts,
    world: int | None = None,
    name: str = "pretrain",
) -> None:
    """RefusedError when devices or memory will not do.

    world: processes that were started, on whichever machines; None: all ranks are started on this one.
    name: of the stage's section.
    """
    _check_source(facts)
    _check_deterministic(recipe, facts)
    if world is None:
        _check_devices(recipe, stage.layout, facts)
    check_levers(recipe, stage.layout, facts, world)
    _check_memory(shape, stage, facts, name)


def _check_source(facts: Facts) -> None:
    if facts.source_refused is not None:
        raise RefusedError(
            "this Hugging Face model can be planned but not trained",
            found=facts.source_refused,
            wanted="a model that our decoder computes exactly",
            fix="choose a model without it, or describe the shape in [model] and train from scratch",
        )


def _check_deterministic(recipe: Recipe, facts: Facts) -> None:
    """On a CPU every run is bitwise repeatable, so there the key has nothing to add."""
    if recipe.deterministic and facts.kind != "cpu":
        raise RefusedError(
            "deterministic training on an accelerator is not built yet in this version",
            found=f"deterministic = true on {facts.device}",
            wanted="a CPU, or a resume that may differ in the last bits",
            fix="remove deterministic",
        )


def _check_devices(recipe: Recipe, layout: Layout, facts: Facts) -> None:
    """Each rank wants an accelerator of its own; ranks on a CPU share its cores."""
    local = facts.local_devices
    if facts.kind == "cpu" or local is None or layout.world <= local:
        return
    kept = recipe.parallel.layout == "auto"
    smaller = Layout(shard=local)
    raise RefusedError(
        "the layout wants more devices than this machine has",
        found=f'"{layout}"{", which this run was trained with so far" if kept else ""}: '
        f"{layout.world} ranks, on {local} x {facts.device}",
        wanted=f"at most {local} rank{'s' * (local > 1)}, or processes on more machines",
        fix=f'start {layout.world} processes with torchrun or srun, or set parallel.layout="{smaller}"',
    )


def fits(shape: ModelShape, stage: StagePlan, facts: Facts) -> bool:
    """Whether the predicted memory is there; also where it is not known how much there is."""
    return facts.memory_bytes is None or needed_bytes(shape, stage, facts) <= usable_bytes(facts)


def usable_bytes(facts: Facts) -> int:
    """Of a device's memory."""
    assert facts.memory_bytes is not None
    return round(_USABLE_SHARE * facts.memory_bytes) if facts.kind == "cpu" else facts.memory_bytes


def _check_memory(shape: ModelShape, stage: StagePlan, facts: Facts, name: str) -> None:
    if not fits(shape, stage, facts):
        assert facts.memory_bytes is not None
        usable, predicted = usable_bytes(facts), device_bytes(shape, stage, facts)
        needed = needed_bytes(shape, stage, facts)
        room = "" if facts.kind == "cpu" else f", {format_bytes(needed)} with room for fragments"
        raise RefusedError(
            "the run does not fit in memory",
            found=f"{format_bytes(predicted)} predicted{_for_ranks(stage, facts)}{room}, "
            f"{format_bytes(facts.memory_bytes)} on {facts.device}",
            wanted=f"at most {format_bytes(usable)}",
            fix=_cheapest_fix(shape, stage, facts, usable, name),
        )


def _for_ranks(stage: StagePlan, facts: Facts) -> str:
    if stage.layout.world == 1:
        return ""
    on_one = stage.layout.world // facts.devices
    return f" for {on_one} ranks" if facts.kind == "cpu" else " for a rank"


def _cheapest_fix(shape: ModelShape, stage: StagePlan, facts: Facts, usable: int, name: str) -> str:
    """The first of these that fits, as `--set` takes it: smaller micro-batches cost little, shards in place
    of whole copies some exchanges, recomputation a third more time."""
    sizes = [rows for rows in (2**power for power in range(12, -1, -1)) if rows < stage.micro_batch]
    options = [(f"{name}.async_save=false", replace(stage, async_save=False))] if stage.async_save else []
    options += [(f"{name}.micro_batch={rows}", replace(stage, micro_batch=rows)) for rows in sizes]
    layout, words = stage.layout, ""
    if layout.replicate > 1:
        layout = replace(layout, replicate=1, shard=layout.replicate * layout.shard)
        stage, words = replace(stage, layout=layout), f'parallel.layout="{layout}"'
        options.append((words, stage))
        words += " and "
        options += [(f"{words}{name}.micro_batch={rows}", replace(stage, micro_batch=rows)) for rows in sizes]
    for rows in [stage.micro_batch, *sizes]:
        changed = replace(stage, recompute="full", recompute_layers=None, micro_batch=rows)
        options.append((f"{words}{name}.recompute=full and {name}.micro_batch={rows}", changed))
    for text, option in options:
        if not allows(option.layout, option.micro_batches):
            continue
        needed = needed_bytes(shape, option, facts)
        if needed <= usable:
            return f"set {text}: {format_bytes(needed)}"
    least = needed_bytes(shape, options[-1][1], facts)
    needs = f"{format_bytes(least)} is its least on one device"
    return f"take a smaller model ({needs}), or a device with more memory"


def _shape_refusals(shape: ModelShape) -> list[Refusal]:
    scaling = (shape.rope_scaling or {}).get("rope_type")
    known = shape.family in TRAINABLE
    checks = [
        (not known, f'model.family = "{shape.family}"', "family " + " or ".join(TRAINABLE),
         _nearest_family(shape)),
        (shape.mla_kv_rank > 0, "latent attention", "grouped-query attention", "remove the mla_ keys"),
        (shape.norm != "rms", f'model.norm = "{shape.norm}"', 'norm = "rms"', "remove model.norm"),
        (known and not _has_windows(shape),
         f'model.sliding_window = {shape.sliding_window} with family = "{shape.family}"',
         "a family that has windows in these layers, such as llama", "remove model.sliding_window"),
        (known and not rope.is_written(shape),
         f'rope_scaling of type "{scaling}" with family = "{shape.family}"',
         "none, or one that the family has", "change model.rope_scaling"),
    ]  # fmt: skip
    return [(found, wanted, fix) for wrong, found, wanted, fix in checks if wrong]


def _has_windows(shape: ModelShape) -> bool:
    kind = model_type_of(shape.family, windowed=shape.sliding_window is not None)
    return window.is_written(shape, FAMILIES[kind])


def _nearest_family(shape: ModelShape) -> str:
    if shape.experts:
        return 'set model.family="glm4-moe", which has DeepSeek-V3\'s experts, and remove the mla_ keys'
    return 'set model.family="llama" and a dense shape'


def _recipe_refusals(recipe: Recipe) -> list[Refusal]:
    refusals = []
    sections: list[tuple[str, Optimization]] = [("pretrain", recipe.pretrain)]
    if recipe.finetune is not None:
        sections.append(("finetune", recipe.finetune))
        if recipe.finetune.method not in BUILT_METHODS:
            method = f'finetune.method = "{recipe.finetune.method}"'
            refusals.append((method, "one of " + ", ".join(BUILT_METHODS), "remove finetune.method"))
        if adapter_kind(recipe.finetune) not in BUILT_ADAPTERS:
            adapter = f'finetune.adapter = "{adapter_kind(recipe.finetune)}"'
            refusals.append((adapter, "one of " + ", ".join(BUILT_ADAPTERS), 'set finetune.adapter = "lora"'))
    for name, section in sections:
        if section.optimizer != "adamw":
            found = f'{name}.optimizer = "{section.optimizer}"'
            refusals.append((found, 'optimizer = "adamw"', f"remove {name}.optimizer"))
    return refusals
