"""The plan of a recipe that only fine-tunes: the same document as of pre-training, of its second stage.

Which recipe that is: one with [finetune] and without sources to pre-train on. The rows of a task are known
when its data is prepared; until then a thousand are assumed, which decides steps and hours and nothing else.
"""

from dataclasses import replace

from bessemer.formulas.parameters import active_params, total_params
from bessemer.planner.adapter_rules import adapter_of
from bessemer.planner.facts import Facts
from bessemer.planner.plan import Derived, Plan
from bessemer.planner.predict import devices_of, predict
from bessemer.planner.resolve import layout_document, resolve_finetune
from bessemer.planner.shape import resolve_shape
from bessemer.recipe.schema import Recipe

_ROWS = 1000


def only_finetunes(recipe: Recipe) -> bool:
    return recipe.finetune is not None and not recipe.data.source and recipe.data.gather is None


def resolve_task(recipe: Recipe, facts: Facts) -> Plan:
    """Its `pretrain` is the stage that is trained."""
    assert recipe.finetune is not None
    shape, derived = resolve_shape(recipe, facts)
    shape = replace(shape, adapter=adapter_of(recipe.finetune, shape))
    stage, rules = resolve_finetune(recipe, shape, _ROWS, facts)
    rule = "assumed: they are counted when the data is prepared; steps and hours follow from them"
    facts = devices_of(stage.layout, facts)
    return Plan(
        name=recipe.name,
        seed=recipe.seed,
        shape=shape,
        params=total_params(shape),
        params_active=active_params(shape),
        pretrain=stage,
        device=facts.device,
        layout=layout_document(stage),
        predicted=predict(recipe, shape, stage, facts),
        derived=[*derived, Derived("finetune.rows", _ROWS, rule), *rules],
    )
