"""What `bessemer plan` tells of other layouts: those that were compared, what they take, and why not them."""

from dataclasses import asdict
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.hardware import GIB


def search_document(search: Any, plan: Any, top: int) -> dict[str, Any]:
    """Candidates, front and rejected layouts, in the words of the contract."""
    from bessemer.planner.search.pareto import front
    from bessemer.planner.search.rejected import rejected

    best = search.best
    points = [
        {"layout": layout_words(one.exact), "devices": one.exact.devices, "sentence": one.sentence,
         "predicted": _scaled(plan, one.exact, best)}
        for one in front(search)
    ]  # fmt: skip
    return {
        "candidates": [
            {"layout": layout_words(found), "predicted": _scaled(plan, found, best)}
            for _, found in search.ranked[:top]
        ],
        "front": points,
        "rejected": _reasons(rejected(search)),
        "search": {
            "looked_at": search.looked_at,
            "structures_too_large": search.too_large,
            "preferred": search.question.prefer,
        },
    }


def processes_document(chosen: Any, recipe: Any, plan: Any, facts: Any, top: int) -> dict[str, Any]:
    """The same of layouts of processes on a CPU, each with a prediction of its own."""
    from bessemer.planner.predict import predict
    from bessemer.planner.search.rejected_processes import rejected_processes

    def row(way: Any) -> dict[str, Any]:
        predicted = predict(recipe, plan.shape, way.stage, facts)
        return {
            "layout": _words(way.layout, way.stage.micro_batch, way.stage.recompute),
            "predicted": {name: asdict(estimate) for name, estimate in predicted.items()},
        }

    too_large = {stage.layout for stage in chosen.too_large} - {way.layout for way in chosen.ranked}
    best, *others = chosen.ranked
    rows = [row(way) for way in chosen.ranked[: max(top, 2)]]
    points = [{**rows[0], "devices": 1, "sentence": "chosen"}]
    for fastest in others[:1]:  # a plainer one may have been chosen
        less = 1.0 - fastest.step_s / best.step_s
        if less >= 0.005:
            points.append({**rows[1], "devices": 1, "sentence": f"{less:.0%} less time a step"})
    return {
        "candidates": rows[:top],
        "front": points,
        "rejected": _reasons(rejected_processes(chosen, plan.shape, facts)),
        "search": {
            "looked_at": len(chosen.ranked),
            "structures_too_large": len(too_large),
            "preferred": "time",
        },
    }


def _reasons(rows: Any) -> list[dict[str, Any]]:
    return [
        {
            "layout": None if row.layout is None else _words(row.layout, row.micro_batch, row.recompute),
            "reason": row.reason,
            "candidates": row.count,
        }
        for row in rows
    ]


def place_document(plan: Any, recipe: Any, facts: Any, cluster: Any) -> dict[str, Any] | None:
    """A layout that was given, beside the best one: whether it fits, and how far behind it is.

    None: a layout of one process, or a device that the search does not know.
    """
    from bessemer.errors import UserError
    from bessemer.planner.search.choose import search
    from bessemer.planner.step import costed_by_profile, stage_question

    stage = plan.pretrain
    if stage.layout.world == 1 or not costed_by_profile(cluster, stage.dtype):
        return None
    needed, usable = plan.predicted["memory_gib"].high, cluster.device.memory_gib_usable
    fits = None if usable is None or needed is None else needed <= usable
    told = {"fits": fits, "needed_gib": needed, "usable_gib": usable}
    try:
        found = search(
            stage_question(plan.shape, stage, cluster, recipe.energy.prefer, recipe.pretrain.compile)
        )
    except UserError:  # nothing does fit
        return {**told, "slower_than_best": None, "best": None, "faster_finalists": 0, "finalists": 0}
    step_s, best = plan.predicted["step_time_s"].value, found.best
    return {
        **told,
        "slower_than_best": step_s / best.step_s - 1.0,
        "best": layout_words(best),
        "faster_finalists": sum(one.step_s < step_s * 0.999 for _, one in found.ranked),
        "finalists": len(found.ranked),
    }


def layout_words(found: Any) -> dict[str, Any]:
    return _words(found.layout, found.micro_batch, found.recompute)


def _words(layout: Any, micro_batch: int | None, recompute: str | None) -> dict[str, Any]:
    return {
        **layout.to_json(),
        "micro_batch": micro_batch,
        "schedule": layout.schedule if layout.pipeline > 1 else None,
        "recompute": recompute,
        "words": str(layout),
    }


def _scaled(plan: Any, found: Any, best: Any) -> dict[str, Any]:
    """Estimates of another candidate: those of the plan, by as much as the cost model says it differs."""
    hours, step = found.hours / best.hours, found.step_s / best.step_s
    devices = found.devices / best.devices
    energy = found.kwh / best.kwh if found.kwh and best.kwh else 1.0
    money = found.usd / best.usd if found.usd and best.usd else hours * devices
    factors = {"step_time_s": step, "tokens_per_s": 1 / step, "tflops_per_device": 1 / step / devices,
               "mfu": 1 / step / devices, "hours": hours, "device_hours": hours * devices,
               "usd": money, "kwh": energy, "kg_co2e": energy}  # fmt: skip
    scaled = {name: asdict(plan.predicted[name].times(factor)) for name, factor in factors.items()}
    memory = plan.predicted["memory_gib"]
    fullest = found.memories[found.fullest].total / GIB
    return {"memory_gib": asdict(memory.times(fullest / memory.value) if memory.value else memory), **scaled}


def show_candidates(rows: list[dict[str, Any]]) -> str:
    """The ranked ones, with what each takes."""
    cells = []
    for row in rows:
        figures = (row["predicted"][name] for name in ("step_time_s", "memory_gib", "hours", "usd", "kwh"))
        cells.append([_named(row["layout"]), *map(_value, figures)])
    return "\n".join(text_table(["Candidates", "step s", "GiB", "hours", "usd", "kWh"], cells))


def show_front(points: list[dict[str, Any]]) -> str:
    """What could be had for what; None of it where the chosen layout is best in all."""
    others = points[1:]
    if not others:
        return "No other layout takes less time, money or energy."
    return "\n".join(["Instead:", *(f"  {one['sentence']}: {_named(one['layout'])}" for one in others)])


def show_rejected(rows: list[dict[str, Any]]) -> str:
    lines = ["Not chosen (each stands for so many):"]
    for row in rows:
        words = "" if row["layout"] is None else f"{_named(row['layout'])}: "
        lines.append(f"  {row['candidates']:>7,}  {words}{row['reason']}")
    return "\n".join(lines)


def show_place(place: dict[str, Any]) -> str:
    best, slower = place["best"], place["slower_than_best"]
    words = best and _named(best)
    if place["fits"] is False:
        memory = f"needs {place['needed_gib']:,.1f} GiB of {place['usable_gib']:,.1f} GiB"
        other = f"the best that fits is {words}" if words else "no other layout fits either"
        return f"The layout does not fit ({memory}); {other}."
    if not words:
        return "The search found no layout that fits to compare with."
    if slower < 0.005:
        return f"No layout is faster (the search's best: {words})."
    many = f"{place['faster_finalists']} of the {place['finalists']} that the search compared last are faster"
    return f"{slower:.0%} slower than the best, {words}; {many}."


def _named(layout: dict[str, Any]) -> str:
    """With what it was looked at with; recomputation where there is some."""
    words = str(layout["words"])
    words += f" micro_batch={layout['micro_batch']}" if layout["micro_batch"] else ""
    return words + (f" recompute={layout['recompute']}" if layout["recompute"] not in (None, "none") else "")


def _value(estimate: dict[str, Any]) -> str:
    value = estimate["value"]
    return "unknown" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
