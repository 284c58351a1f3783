"""[budget] in `bessemer plan`: of each limit that is set, the share that the run would take."""

from typing import Any

from bessemer.cli.columns import text_table
from bessemer.units import format_short


def budget_document(recipe: Any, plan: Any, facts: Any, *, only_finetunes: bool) -> dict[str, Any]:
    """`budget`, the fullest limit first, `budget_reserve` (the share of the limit that decided length or size
    which is left unplanned; null: none did) and `budget_warning`. None of it is known where no speed is."""
    from dataclasses import replace

    from bessemer.planner.sizing.budget import comparison_after, finetuning_after, uses, warning

    left = plan.predicted
    if only_finetunes:  # its rows are assumed: there may be one
        left = {name: replace(estimate, low=0.0) for name, estimate in left.items()}
        later = comparison_after(recipe, plan.predicted)
    else:
        later = finetuning_after(recipe, plan.pretrain, plan.predicted)
    found = uses(recipe, facts, left, later=later)
    reserve = next((row.value for row in plan.derived if row.key == "budget.reserve"), None)
    budget = [use.to_json() for use in found]
    return {"budget": budget, "budget_reserve": reserve, "budget_warning": warning(found)}


def show_budget(document: dict[str, Any]) -> str:
    from bessemer.energy.accounting.limits import in_unit

    rows = []
    for row in document["budget"]:
        takes, share = row["takes"], row["share"]
        figures = ["unknown" if takes[end] is None else format_short(takes[end]) for end in _ENDS]
        shares = "" if share["value"] is None else f"{format_short(100 * share['value'])} %"
        rows.append([in_unit(format_short(row["limit"]), row["name"]), *figures, shares])
    lines = text_table(["Budget", "takes", "low", "high", "share"], rows)
    after = document["budget"][0]["finetuning"]
    if after:
        lines.append("fine-tuning is in it, as if the task had a thousand rows")
    if document["budget_reserve"] is not None:
        lines.append(f"planned with {100 * document['budget_reserve']:.1f} % of the budget in reserve")
    if document["budget_warning"]:
        lines.append(document["budget_warning"])
    return "\n".join(lines)


_ENDS = ("value", "low", "high")
