"""The document of `bessemer plan RECIPE`, as `--json` has it and `show` reads it."""

from dataclasses import asdict
from typing import Any

from bessemer.cli.plan_memory import rank_documents
from bessemer.cli.plan_notes import caveats, remarks
from bessemer.cli.plan_rates import rates_document
from bessemer.cli.plan_search import place_document, processes_document, search_document
from bessemer.cli.plan_step import reliability_document, step_document
from bessemer.errors import RefusedError
from bessemer.formulas.flops import CONVENTION, train_flops_per_token
from bessemer.hardware import GIB
from bessemer.planner.limits import check_start, untrainable
from bessemer.planner.programme import programme
from bessemer.planner.search.processes import ChosenProcesses
from bessemer.planner.task import only_finetunes


def plan_document(recipe: Any, plan: Any, facts: Any, cluster: Any) -> dict[str, Any]:
    """What is predicted, what from, and what was derived. Without other layouts: `layouts_document`."""
    values, known = plan.to_json(), cluster.devices == plan.pretrain.layout.world or cluster.devices == 1
    per_token = train_flops_per_token(plan.shape, plan.pretrain.context)
    tokens = plan.pretrain.steps * plan.pretrain.batch_tokens
    memories = rank_documents(plan, facts, cluster) if known else []
    fullest = max(memories, key=lambda row: row["total"]) if memories else None
    return {
        "name": plan.name,
        "model": {"params": plan.params, "params_active": plan.params_active, **values["shape"]},
        "cluster": {
            "device": facts.device,
            "devices": cluster.devices,
            "memory_gib": facts.memory_bytes / GIB if facts.memory_bytes else None,
            "ceilings": asdict(facts.ceilings) if facts.ceilings else None,
        },
        "layout": {**values["layout"], "words": str(plan.pretrain.layout)} if known else None,
        "training": {**values["pretrain"], "batch_tokens": plan.pretrain.batch_tokens, "tokens": tokens},
        "flops": {"per_token": per_token, "total": per_token * tokens, "convention": CONVENTION},
        "predicted": values["predicted"],
        "programme": programme(plan.predicted, cluster.device.kind),
        "counted_with": rates_document(recipe, facts, cluster.devices),
        "step": step_document(plan, facts, cluster),
        "reliability": reliability_document(plan, cluster),
        "memory": fullest["memory"] if fullest else None,
        "memory_parts": fullest["parts"] if fullest else None,
        "memory_by_pipeline_rank": memories,
        "derived": values["derived"],
        "caveats": caveats(plan, cluster),
        "remarks": remarks(cluster, plan.pretrain.dtype),
        "refused_because": _refusal(recipe, plan, facts),
    }


def layouts_document(
    recipe: Any, plan: Any, facts: Any, cluster: Any, chosen: Any, top: int
) -> dict[str, Any]:
    """What else there was. A layout that the recipe gives is set beside the search's best."""
    if isinstance(chosen, ChosenProcesses):
        return {**processes_document(chosen, recipe, plan, facts, top), "place": None}
    if chosen is not None:
        return {**search_document(chosen.search, plan, top), "place": None}
    own = {"layout": {**plan.to_json()["layout"], "words": str(plan.pretrain.layout)}}
    several = cluster.devices > 1 and plan.pretrain.layout.world == 1
    why = "layouts of CPUs that are not here, and of devices that the catalogue does not know, are not "
    why += f'searched: give one, such as --layout "shard={cluster.devices}"'
    return {
        "candidates": [] if several else [{**own, "predicted": plan.to_json()["predicted"]}],
        "front": [],
        "rejected": [{"layout": None, "reason": why, "candidates": 0}] if several else [],
        "search": None,
        "place": place_document(plan, recipe, facts, cluster),
    }


def _refusal(recipe: Any, plan: Any, facts: Any) -> str | None:
    """Why `bessemer pretrain` would not begin; None when it would, or when it is for another machine."""
    refusal = untrainable(recipe, plan.shape)
    if refusal is not None:
        return f"{refusal[0]} cannot be trained in this version yet (wanted: {refusal[1]})"
    if facts.devices > 1 and plan.pretrain.layout.world == 1:
        return "training on several devices needs a layout"
    try:
        name = "finetune" if only_finetunes(recipe) else "pretrain"
        check_start(recipe, plan.shape, plan.pretrain, facts, name=name)
    except RefusedError as error:
        return f"{error.problem}: {error.found}; {error.fix}"
    return None
