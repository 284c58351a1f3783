"""The plan of a recipe that only fine-tunes: the same document as of pre-training, of its second stage.

Which recipe that is: one with [finetune] and without sources to pre-train on. The rows of a task are known
when its data is prepared; until then a thousand are assumed, which decides steps and hours and nothing else.
So are the labels of a classification where the recipe does not name them, and the length of prompts where
the answers are the model's own: it decides how many answers a row holds; and the size of a teacher.
"""

from dataclasses import replace
from typing import Any

from bessemer.formulas.parameters import total_params
from bessemer.planner.finetuning import finetune_context, resolve_finetune
from bessemer.planner.layout import WHERE
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import Derived, Plan
from bessemer.planner.predict import devices_of
from bessemer.planner.resolve import plan_of
from bessemer.planner.rules.adapter import adapter_of
from bessemer.planner.rules.objective import objective_of, with_head
from bessemer.planner.rules.rollout import is_sampled
from bessemer.planner.shape import resolve_shape
from bessemer.planner.sizing.budget import TASK_ROWS
from bessemer.recipe.schema import Finetune, Recipe

_LABELS = ("0", "1")


def only_finetunes(recipe: Recipe) -> bool:
    return recipe.finetune is not None and not recipe.data.source and recipe.data.gather is None


def resolve_task(recipe: Recipe, facts: Facts, layout_from: str = WHERE) -> Plan:
    """Its `pretrain` is the stage that is trained. layout_from: as in `resolve`."""
    section = recipe.finetune
    assert section is not None
    shape, derived = resolve_shape(recipe, facts)
    shape = replace(shape, adapter=adapter_of(section, shape))
    manifest, assumed = _assumed_labels(section)
    objective = objective_of(section, manifest)
    shape = with_head(shape, objective)
    if objective.asks_origin or section.method == "distill":
        objective = replace(objective, asked=replace(shape, adapter=None))
    prompts: list[int] = []
    if is_sampled(section):
        prompts = [_prompt_tokens(section, finetune_context(section, shape))] * TASK_ROWS
        rule = "assumed: prompts as long as the answers, where they leave room for them"
        assumed.append(Derived("finetune.prompt_tokens", prompts[0], rule))
    if section.method == "distill":
        rule = "assumed: as large as the model; it is read when training begins"
        assumed.append(Derived("finetune.teacher_params", total_params(shape), rule))
    stage, rules = resolve_finetune(
        recipe, shape, TASK_ROWS, facts, objective=objective, prompts=prompts, layout_from=layout_from
    )
    rows = "finetune.prompts" if prompts else "finetune.rows"
    rule = "assumed: they are counted when the data is prepared; steps and hours follow from them"
    derived = [*derived, Derived(rows, TASK_ROWS, rule), *assumed, *rules]
    return plan_of(recipe, shape, stage, devices_of(stage.layout, facts), derived)


def _assumed_labels(section: Finetune) -> tuple[dict[str, Any], list[Derived]]:
    """A manifest with the labels that the recipe names, else two, all as frequent; and that it is assumed."""
    if section.method != "classify":
        return {}, []
    labels = list(section.data.labels or ()) if section.data is not None else []
    if labels:
        return _labelled(labels), []
    weighed = section.class_weights if isinstance(section.class_weights, dict) else {}
    labels = [*weighed, *_LABELS[len(weighed) :]]
    rule = "assumed: they are read when the data is prepared; the size of the head follows from them"
    return _labelled(labels), [Derived("finetune.data.labels", len(labels), rule)]


def _labelled(labels: list[str]) -> dict[str, Any]:
    return {"labels": labels, "label_counts": {"train": [TASK_ROWS] * len(labels)}}


def _prompt_tokens(section: Finetune, context: int) -> int:
    return max(1, min(section.answer_tokens, context - section.answer_tokens))
