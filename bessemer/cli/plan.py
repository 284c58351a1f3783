"""`bessemer plan RECIPE`: what a run would take, before anything is built."""

import argparse
import gc
from pathlib import Path
from typing import Any

from bessemer.cli.columns import for_terminal, text_table
from bessemer.errors import RecipeError
from bessemer.formulas.layout import Layout
from bessemer.units import format_count, format_seconds

_TOP = 5  # candidates
HELP = "predict memory, time, energy and money of a recipe, with the rule behind each derived value"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a file or the name of a shipped recipe")
    parser.add_argument("rows", nargs="?", metavar="ROWS.csv", help=argparse.SUPPRESS)
    parser.add_argument("--cluster", metavar="64xH100", help="plan for these devices; default: the recipe's")
    parser.add_argument("--layout", help='degrees, e.g. "shard=2,tensor=2"; default: the recipe\'s')
    parser.add_argument("--top", type=int, metavar="K", help=f"candidates to list; default: {_TOP}")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="also run a step of one rank here, without its hardware: exchanges, their bytes, peak memory",
    )
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="which rank to rehearse")


def run(args: argparse.Namespace) -> dict[str, Any]:
    # A plan makes half a million small objects, hardly any of them in circles, and looking for these takes a
    # seventh of its time.
    looked_for = gc.isenabled()
    gc.disable()
    try:
        return _planned(args)
    finally:
        if looked_for:
            gc.enable()


def _planned(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.cli.plan_budget import budget_document
    from bessemer.cli.plan_data import KnownData
    from bessemer.cli.plan_document import layouts_document, plan_document
    from bessemer.cli.rehearsal import rehearsed
    from bessemer.planner.layout import WHERE
    from bessemer.planner.machine.facts import planned_facts
    from bessemer.planner.machine.planned import cluster_of
    from bessemer.planner.predict import devices_of
    from bessemer.planner.resolve import check_recipe, resolve_searched
    from bessemer.planner.task import only_finetunes, resolve_task
    from bessemer.recipe.load import load
    from bessemer.recipe.schema import Parallel

    _refuse_contradictions(args)
    if _is_validation(args):
        from bessemer.cli.plan_validate import validated

        return validated(args)
    loaded = load(args.recipe, args.set)
    recipe, layout_from = loaded.recipe, WHERE
    if args.layout is not None:
        recipe = recipe.model_copy(update={"parallel": Parallel(layout=args.layout)})
        layout_from = "--layout"
    recipe, planned = planned_facts(args.cluster, recipe, loaded.base)
    devices = 1 if planned is None else planned.devices
    check_recipe(recipe, layout_from=layout_from, devices=devices)  # before the machine is measured
    facts = _facts(recipe, loaded.base, planned)
    data = KnownData(recipe, loaded.base, getattr(args, "store", Path("data")))
    facts = data.known(facts)
    if only_finetunes(recipe):
        plan, chosen = resolve_task(recipe, facts, layout_from), None
    else:
        plan, chosen = resolve_searched(recipe, facts, layout_from=layout_from)
    cluster = cluster_of(recipe, devices_of(plan.pretrain.layout, facts))
    document = plan_document(recipe, plan, facts, cluster)
    document |= {"data": data.told(plan), "data_missing": data.missing()}
    document |= layouts_document(recipe, plan, facts, cluster, chosen, args.top or _TOP)
    document |= budget_document(recipe, plan, facts, only_finetunes=only_finetunes(recipe))
    if only_finetunes(recipe):  # both are of pre-training
        document |= {"place": None, "programme": None}
    return {**document, "rehearsal": rehearsed(plan, facts, args.rank)} if args.rehearse else document


def show(document: dict[str, Any]) -> str:
    if "groups" in document:
        from bessemer.cli.plan_validate import show_validation

        return for_terminal(show_validation(document))
    parts = [_model(document), _training(document), _predicted(document)]
    if document["budget"]:
        from bessemer.cli.plan_budget import show_budget

        parts.append(show_budget(document))
    if document["data"]:
        from bessemer.cli.plan_data import show_data

        parts.append(show_data(document["data"]))
    elif document["data_missing"]:
        from bessemer.cli.plan_data import show_missing

        parts.append(show_missing(document["data_missing"]))
    parts += _of_the_layout(document)
    if document["derived"]:
        parts.append(_derived(document))
    notes = [f"Outside what was validated, so the band is wide: {text}" for text in document["caveats"]]
    notes += [f"Note: {text}" for text in document["remarks"]]
    if document.get("rehearsal"):
        from bessemer.cli.rehearsal import show_rehearsal

        parts.append(show_rehearsal(document["rehearsal"]))
    if document["refused_because"]:
        notes.append(f"Training would be refused: {document['refused_because']}")
    return for_terminal("\n\n".join([*parts, *notes]))


def _of_the_layout(document: dict[str, Any]) -> list[str]:
    """Step, memory, and what else there was."""
    from bessemer.cli import plan_search, plan_step
    from bessemer.cli.plan_memory import show_memory

    parts = []
    if document["step"]:
        parts.append(plan_step.show_step(document["step"]))
    if document["memory"]:
        parts.append(show_memory(document))
    if document["reliability"]:
        parts.append(plan_step.show_reliability(document["reliability"]))
    if document["place"]:
        parts.append(plan_search.show_place(document["place"]))
    if document["search"]:
        parts.append(plan_search.show_candidates(document["candidates"]))
        if document["search"]["looked_at"] > 1:
            parts.append(plan_search.show_front(document["front"]))
    if document["rejected"] and document["search"]:
        parts.append(plan_search.show_rejected(document["rejected"]))
    elif document["rejected"]:  # of several devices, of which nothing is known without a layout
        parts.append(f"Nothing of a step is predicted: {document['rejected'][0]['reason']}")
    return parts


def _is_validation(args: argparse.Namespace) -> bool:
    """Whether it is `plan validate ROWS.csv`; a recipe of that name in this folder is a recipe."""
    return args.recipe == "validate" and not Path("validate").is_file()


def _refuse_contradictions(args: argparse.Namespace) -> None:
    if args.rank and not args.rehearse:
        raise RecipeError(
            "--rank has no effect", found=f"--rank {args.rank}", wanted="--rehearse", fix="add it"
        )
    if args.top is not None and args.top < 1:
        raise RecipeError("--top lists nothing", found=f"--top {args.top}", wanted="1 or more", fix="--top 5")
    if args.rows and not _is_validation(args):
        raise RecipeError("one recipe at a time", found=args.rows, wanted="RECIPE", fix=f"remove {args.rows}")


def _facts(recipe: Any, base: Path, planned: Any) -> Any:
    """The facts to plan with: those of the cluster that is planned for, or of this machine."""
    from bessemer.planner.source import with_files

    if planned is not None:
        return with_files(planned, recipe, base)
    from bessemer.measure.facts import gather
    from bessemer.model.device import this_device

    alone = recipe.model_copy(update={"model": recipe.model.model_copy(update={"from_": None})})
    return with_files(gather(alone, base, this_device()), recipe, base)


def _model(document: dict[str, Any]) -> str:
    model, cluster = document["model"], document["cluster"]
    count = format_count(model["params"])
    if model["params_active"] != model["params"]:
        count += f" ({format_count(model['params_active'])} active)"
    layout = Layout.from_json(document["training"]["layout"])
    split = f", {layout.world} ranks: {layout}" if layout.world > 1 else ""
    heads = f"{model['heads']} heads" + ("" if model["mla_kv_rank"] else f" ({model['kv_heads']} for keys)")
    return "\n".join(
        [
            f"{document['name']}: {count} parameters, {model['family']}, {model['layers']} layers, "
            f"{model['hidden']} wide, {heads}, vocabulary {model['vocab']}",
            f"on {cluster['devices']} x {cluster['device']}{split}",
        ]
    )


def _training(document: dict[str, Any]) -> str:
    stage, flops = document["training"], document["flops"]
    return (
        f"{stage['steps']:,} steps of {format_count(stage['batch_tokens'])} tokens: "
        f"{format_count(stage['tokens'])} tokens, {flops['total']:.2e} FLOPs "
        f"({flops['per_token']:.2e} a token; {flops['convention']})"
    )


def _predicted(document: dict[str, Any]) -> str:
    from bessemer.cli.plan_rates import show_rates

    rows = []
    for name, row in document["predicted"].items():
        if row["value"] is None:
            rows.append([name, "unknown", "", "", ""])
        else:
            rows.append([name, *(_figure(name, row[end]) for end in ("value", "low", "high")), row["basis"]])
    lines = text_table(["Predicted", "", "low", "high", "basis"], rows)
    hours = document["predicted"]["hours"]["value"]
    if hours:
        days = f"{hours / 24:,.1f} days" if hours >= 48 else format_seconds(hours * 3600)
        lines.append(f"that is {days}")
    if document["programme"]:
        lines.append(_programme(document["programme"]))
    return "\n".join([*lines, show_rates(document["counted_with"])])


def _programme(row: dict[str, Any]) -> str:
    times, hours = row["over_training"], row["device_hours"]
    low, middle, high = (f"{hours[end]:,.0f}" for end in ("low", "value", "high"))
    return (
        f"whole programmes report more device-hours than their training is predicted: of {row['published']} "
        f"published ones half {times['value']:.1f} times as many or more, eight tenths "
        f"{times['low']:.1f} to {times['high']:.1f} times; here {middle} ({low} to {high})"
    )


def _derived(document: dict[str, Any]) -> str:
    rows = [[row["key"], str(row["value"]), row["rule"]] for row in document["derived"]]
    return "\n".join(text_table(["Derived", "value", "rule"], rows, left=3))


def _figure(name: str, value: float) -> str:
    if name in ("mfu", "goodput"):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
