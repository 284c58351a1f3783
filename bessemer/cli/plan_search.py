"""What `bessemer plan` tells of a layout: its step part by part, what else there was, and why not that."""

from typing import Any

from bessemer.cli.columns import text_table
from bessemer.hardware import GIB
from bessemer.units import format_seconds

_PART_NAMES = {
    "matmul_s": "matmuls", "attention_s": "attention", "vector_s": "norms, activations",
    "recompute_s": "recomputation", "tensor_s": "tensor exchanges", "context_s": "context exchanges",
    "expert_s": "expert exchanges", "pipeline_s": "pipeline sends", "bubble_s": "bubble",
    "data_s": "gradients, weights", "optimizer_s": "optimizer", "overhead_s": "overhead, waiting",
}  # fmt: skip
_VALIDATED_DEVICES = 16_384
_HARDLY_ANY = 0.01  # failures in a run


def step_document(plan: Any, facts: Any, cluster: Any) -> dict[str, Any] | None:
    """Seconds of a step by part, each with its band; exchanges as far as they show. None: no cost model, and
    no calibration of this machine."""
    from bessemer.planner.calibrated.step_time import step_seconds
    from bessemer.planner.compiling import as_run
    from bessemer.planner.step import stage_step

    stage = as_run(plan.shape, plan.pretrain, facts)
    step, measured = stage_step(plan.shape, stage, cluster), step_seconds(plan.shape, stage, facts)
    if step is not None:
        whole, seconds, hidden_s = step.estimate, step.parts, step.hidden_s
    elif measured is not None:
        whole, hidden_s = plan.predicted["step_time_s"], 0.0
        seconds = {name: each * whole.value / measured.value for name, each in measured.parts.items()}
    else:
        return None
    assert whole.value is not None, "a step that was costed"
    parts = {name: _vars(whole.times(each / whole.value)) for name, each in seconds.items()}
    return {"parts": parts, "hidden_exchange_s": _vars(whole.times(hidden_s / whole.value))}


def reliability_document(plan: Any, cluster: Any) -> dict[str, Any] | None:
    """Failures to expect, and how often to save. None where hours are not known, and on a CPU."""
    from bessemer.formulas.goodput import daly_interval_s
    from bessemer.planner.machine.cluster import reliability_of
    from bessemer.planner.plan import Estimate

    hours = plan.predicted["hours"]
    if hours.value is None or cluster.device.kind == "cpu":
        return None
    found = reliability_of(plan.params, cluster, asynchronous=plan.pretrain.async_save)
    between_s, save_s = found.between_failures_s, found.save_s
    low_s, high_s = (daly_interval_s(end, between_s) for end in (save_s.low, save_s.high))
    interval = Estimate(
        found.interval_s, min(low_s, found.interval_s), max(high_s, found.interval_s), "assumed"
    )
    return {
        "expected_failures": _vars(hours.times(found.expected_failures(1.0))),
        "checkpoint_interval_s": _vars(interval),
        "saved_every_s": plan.predicted["step_time_s"].times(plan.pretrain.save_every).value,
        "hours_between_failures": between_s / 3600.0,
    }


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
            "predicted": {name: _vars(estimate) for name, estimate in predicted.items()},
        }

    too_large = {stage.layout for stage in chosen.too_large} - {way.layout for way in chosen.ranked}
    best, *others = chosen.ranked
    points = [{**row(best), "devices": 1, "sentence": "chosen"}]
    for fastest in others[:1]:  # a plainer one may have been chosen
        less = 1.0 - fastest.step_s / best.step_s
        if less >= 0.005:
            points.append({**row(fastest), "devices": 1, "sentence": f"{less:.0%} less time a step"})
    return {
        "candidates": [row(way) for way in chosen.ranked[:top]],
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


def caveats(plan: Any, cluster: Any) -> list[str]:
    """Where the prediction stands on nothing that was published."""
    device, notes = cluster.device, []
    if cluster.devices > _VALIDATED_DEVICES:
        notes.append(f"{cluster.devices:,} devices are more than anyone published ({_VALIDATED_DEVICES:,})")
    if device.kind not in ("gpu", "cpu"):
        kind = "an ASIC" if device.kind == "asic" else f"a {device.kind.upper()}"
        notes.append(f"no measured run of our trainer on {kind} such as {device.name}")
    if device.kind != "cpu" and device.memory_gib_usable is None:
        notes.append(f"the memory of {device.name} is not in the catalogue: nothing was left out for it")
    if cluster.devices > cluster.link_domain and cluster.network_gb_per_s is None and device.kind != "cpu":
        notes.append(
            f"the network between domains of {cluster.link_domain} is not known: a slow one is assumed"
        )
    if plan.pretrain.layout.world > 1 and plan.predicted["step_time_s"].basis == "assumed":
        notes.append(f"no published step time of this kind of stack on {device.name}")
    return notes


def remarks(cluster: Any, dtype: str = "bf16") -> list[str]:
    """What of the cluster its reader may have meant otherwise. dtype: that the plan computes in."""
    from bessemer.hardware import catalogue
    from bessemer.planner.machine.cluster import nominal_gib

    device, notes = cluster.device, []
    if device.kind != "cpu" and device.peak_tflops(dtype) is None:
        note = f"{device.name} has no {dtype} in the catalogue, so that MFU is not known"
        if dtype == "bf16" and device.fp32_tflops:
            note += f"; it computes fp32 at up to {device.fp32_tflops:g} TFLOP/s (dtype=fp32), "
            note += "and fp16 is not trained"
        notes.append(note)
    if device.memory_gib_usable is not None and device.memory_gib_usable == nominal_gib(device):
        notes.append(
            f"what an empty {device.name} reports is not in the catalogue: its nominal "
            f"{device.memory_gb_nominal:g} GB of 1e9 bytes are counted ({device.memory_gib_usable:.1f} GiB)"
        )
    if cluster.devices > cluster.per_node and cluster.devices % cluster.per_node:
        notes.append(f"{cluster.devices} devices leave one of the nodes of {cluster.per_node} partly empty")
    for name in ("link_gb_per_s", "network_gb_per_s"):
        most = max(getattr(device, name) or 0.0 for device in catalogue().values())
        given = getattr(cluster, name) or 0.0
        if given > most:
            notes.append(
                f"{name} = {given:g} is more than any device of the catalogue has ({most:g}); "
                "GB are bytes: 400 Gbit/s are 50"
            )
    return notes


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
    scaled = {name: _vars(plan.predicted[name].times(factor)) for name, factor in factors.items()}
    memory = plan.predicted["memory_gib"]
    fullest = found.memories[found.fullest].total / GIB
    return {"memory_gib": _vars(memory.times(fullest / memory.value) if memory.value else memory), **scaled}


def _vars(estimate: Any) -> dict[str, Any]:
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "basis")}


def show_step(step: dict[str, Any]) -> str:
    """The step's parts, the large ones first."""
    rows = sorted(step["parts"].items(), key=lambda pair: -pair[1]["value"])
    whole = sum(row["value"] for _, row in rows)
    table = [
        [_PART_NAMES[name], *(f"{row[end]:.3g}" for end in ("value", "low", "high")),
         f"{row['value'] / whole:.1%}"]
        for name, row in rows if row["value"] > 0.0005 * whole
    ]  # fmt: skip
    lines = text_table(["A step, seconds", "", "low", "high", "share"], table)
    hidden = step["hidden_exchange_s"]["value"]
    if hidden > 0:
        lines.append(f"exchanges as far as they show; {hidden:.3g} s more hide behind compute")
    return "\n".join(lines)


def show_reliability(document: dict[str, Any]) -> str:
    failures, interval = document["expected_failures"], document["checkpoint_interval_s"]
    between_h = document["hours_between_failures"]
    if failures["high"] < _HARDLY_ANY:
        expected = f"hardly any (below {_HARDLY_ANY:g})"
    else:
        expected = f"{failures['value']:.3g} ({failures['low']:.3g} to {failures['high']:.3g})"
    ends = [format_seconds(interval[end]) for end in ("value", "low", "high")]
    best = f"{ends[0]} ({ends[1]} to {ends[2]})"
    if interval["value"] > 3600.0 * failures["value"] * between_h:
        best = "longer than the run"
    text = f"Failures to expect: {expected}, one in {between_h:,.1f} hours. Best checkpoint interval: {best}"
    return f"{text}; this run saves every {format_seconds(document['saved_every_s'])}"


def show_candidates(rows: list[dict[str, Any]]) -> str:
    """The ranked ones, with what each takes."""
    cells = []
    for row in rows:
        layout, predicted = row["layout"], row["predicted"]
        words = f"{layout['words']} micro_batch={layout['micro_batch']}"
        words += "" if layout["recompute"] == "none" else f" recompute={layout['recompute']}"
        cells.append(
            [
                words,
                *(_value(predicted[name]) for name in ("step_time_s", "memory_gib", "hours", "usd", "kwh")),
            ]
        )
    return "\n".join(text_table(["Candidates", "step s", "GiB", "hours", "usd", "kWh"], cells))


def show_front(points: list[dict[str, Any]]) -> str:
    """What could be had for what; None of it where the chosen layout is best in all."""
    others = points[1:]
    if not others:
        return "No other layout takes less time, money or energy."
    lines = ["Instead:"]
    for point in others:
        layout = point["layout"]
        words = f"{layout['words']} micro_batch={layout['micro_batch']} recompute={layout['recompute']}"
        lines.append(f"  {point['sentence']}: {words}")
    return "\n".join(lines)


def show_rejected(rows: list[dict[str, Any]]) -> str:
    lines = ["Not chosen (each stands for so many):"]
    for row in rows:
        layout = row["layout"]
        words = ""
        if layout is not None:
            words = layout["words"]
            words += f" micro_batch={layout['micro_batch']}" if layout["micro_batch"] else ""
            words += f" recompute={layout['recompute']}" if layout["recompute"] not in (None, "none") else ""
            words += ": "
        lines.append(f"  {row['candidates']:>7,}  {words}{row['reason']}")
    return "\n".join(lines)


def show_place(place: dict[str, Any]) -> str:
    best, slower = place["best"], place["slower_than_best"]
    words = best and f"{best['words']} micro_batch={best['micro_batch']} recompute={best['recompute']}"
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


def _value(estimate: dict[str, Any]) -> str:
    value = estimate["value"]
    return "unknown" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
