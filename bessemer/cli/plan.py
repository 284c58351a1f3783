"""`bessemer plan RECIPE`: what a run would take, before anything is built."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.errors import RecipeError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.units import format_bytes, format_count, format_seconds

HELP = "predict memory, time, energy and money of a recipe, with the rule behind each derived value"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a file or the name of a shipped recipe")
    parser.add_argument("rows", nargs="?", metavar="ROWS.csv", help=argparse.SUPPRESS)
    parser.add_argument("--cluster", metavar="64xH100", help="plan for these devices; default: the recipe's")
    parser.add_argument("--layout", help='degrees, e.g. "shard=2,tensor=2"; default: the recipe\'s')
    parser.add_argument("--top", type=int, default=5, metavar="K", help="candidates to list")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="also run a step of one rank here, without its hardware: exchanges, their bytes, peak memory",
    )
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="which rank to rehearse")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.cli.plan_data import KnownData
    from bessemer.cli.rehearsal import rehearsed
    from bessemer.planner.layout import WHERE
    from bessemer.planner.resolve import check_recipe, resolve
    from bessemer.recipe.load import load
    from bessemer.recipe.schema import Parallel

    _refuse_what_is_not_built(args)
    loaded = load(args.recipe, args.set)
    recipe, layout_from = loaded.recipe, WHERE
    if args.layout is not None:
        recipe = recipe.model_copy(update={"parallel": Parallel(layout=args.layout)})
        layout_from = "--layout"
    check_recipe(recipe, layout_from=layout_from)  # before the machine is measured
    facts = _facts(args, recipe, loaded.base)
    data = KnownData(recipe, loaded.base, getattr(args, "store", Path("data")))
    facts = data.known(facts)
    plan = resolve(recipe, facts, layout_from=layout_from)
    document = {**_document(recipe, plan, facts, args.top), "data": data.told(plan)}
    return {**document, "rehearsal": rehearsed(plan, facts, args.rank)} if args.rehearse else document


def show(document: dict[str, Any]) -> str:
    parts = [_model(document), _training(document), _predicted(document)]
    if document["data"]:
        from bessemer.cli.plan_data import show_data

        parts.append(show_data(document["data"]))
    if document["memory_parts"]:
        parts.append(_memory(document))
    if document["derived"]:
        parts.append(_derived(document))
    notes = [f"Layouts: {row['reason']}" for row in document["rejected"]]
    if document.get("rehearsal"):
        from bessemer.cli.rehearsal import show_rehearsal

        parts.append(show_rehearsal(document["rehearsal"]))
    if document["refused_because"]:
        notes.append(f"Training would be refused: {document['refused_because']}")
    return "\n\n".join([*parts, *notes])


def _refuse_what_is_not_built(args: argparse.Namespace) -> None:
    validate = args.recipe == "validate" and not Path("validate").is_file()
    if args.rank and not args.rehearse:
        raise RecipeError(
            "--rank has no effect", found=f"--rank {args.rank}", wanted="--rehearse", fix="add it"
        )
    if not (validate or args.rows or args.top < 1):
        return
    if args.top < 1:
        raise RecipeError("--top lists nothing", found=f"--top {args.top}", wanted="1 or more", fix="--top 5")
    if args.rows and not validate:
        raise RecipeError("one recipe at a time", found=args.rows, wanted="RECIPE", fix=f"remove {args.rows}")
    raise RecipeError(
        "`bessemer plan validate` is not built yet in this version",
        found="plan validate",
        wanted="`bessemer plan RECIPE`",
        fix="plan one device, or the ideal time of a cluster with --cluster 64xH100",
    )


def _facts(args: argparse.Namespace, recipe: Any, base: Path) -> Any:
    from dataclasses import replace

    from bessemer.planner.facts import cluster_facts, parse_cluster, planned_cluster

    planned = cluster_facts(*parse_cluster(args.cluster)) if args.cluster else planned_cluster(recipe.cluster)
    if planned is not None and recipe.model.from_ is None:
        return planned
    from bessemer.measure.facts import gather, source_shape
    from bessemer.model.device import this_device

    if planned is not None:
        return replace(planned, source_shape=source_shape(recipe, base))
    return gather(recipe, base, this_device())


def _document(recipe: Any, plan: Any, facts: Any, top: int) -> dict[str, Any]:
    from bessemer.formulas.flops import CONVENTION, train_flops_per_token
    from bessemer.hardware import GIB

    values, known = plan.to_json(), facts.devices == 1 or plan.pretrain.layout.world > 1
    layout = values["layout"] if known else None
    per_token = train_flops_per_token(plan.shape, plan.pretrain.context)
    tokens = plan.pretrain.steps * plan.pretrain.batch_tokens
    several = "the best layout over several devices is not searched yet in this version; time and money "
    several += "are those of a typical share of the peak, memory needs a layout"
    memories = _memories(plan, facts) if known else []
    return {
        "name": plan.name,
        "model": {"params": plan.params, "params_active": plan.params_active, **values["shape"]},
        "cluster": {
            "device": facts.device,
            "devices": facts.devices,
            "memory_gib": facts.memory_bytes / GIB if facts.memory_bytes else None,
            "ceilings": asdict(facts.ceilings) if facts.ceilings else None,
        },
        "layout": layout,
        "training": {**values["pretrain"], "batch_tokens": plan.pretrain.batch_tokens, "tokens": tokens},
        "flops": {"per_token": per_token, "total": per_token * tokens, "convention": CONVENTION},
        "predicted": values["predicted"],
        "memory_parts": max(memories, key=lambda row: row["total"])["parts"] if memories else None,
        "memory_by_pipeline_rank": memories,
        "derived": values["derived"],
        "candidates": [{"layout": layout, "predicted": values["predicted"]}][:top] if known else [],
        "rejected": [] if known else [{"layout": None, "reason": several}],
        "refused_because": _refusal(recipe, plan, facts),
    }


def _memories(plan: Any, facts: Any) -> list[dict[str, Any]]:
    """Of a rank at each place in the pipeline."""
    from bessemer.formulas.layout import layers_of_stages
    from bessemer.planner.predict import rank_memories

    layout = plan.pretrain.layout
    stages = [list(stage) for stage in layers_of_stages(plan.shape, layout)]
    memories = rank_memories(plan.shape, plan.pretrain, facts, compiled=plan.pretrain.compile is not False)
    return [
        {
            "pipeline_rank": rank,
            "layers": [layer for stage in layout.stages_of(rank) for layer in stages[stage]],
            "total": memory.total,
            "parts": asdict(memory),
        }
        for rank, memory in enumerate(memories)
    ]


def _refusal(recipe: Any, plan: Any, facts: Any) -> str | None:
    """Why `bessemer pretrain` would not begin; None when it would, or when it is for another machine."""
    from bessemer.errors import RefusedError
    from bessemer.planner.limits import check_start, untrainable

    refusal = untrainable(recipe, plan.shape)
    if refusal is not None:
        return f"{refusal[0]} cannot be trained in this version yet (wanted: {refusal[1]})"
    if facts.devices > 1 and plan.pretrain.layout.world == 1:
        return "training on several devices needs a layout"
    try:
        check_start(recipe, plan.shape, plan.pretrain, facts, plan.predicted["hours"].low)
    except RefusedError as error:
        return f"{error.problem}: {error.found}; {error.fix}"
    return None


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
    return "\n".join(lines)


def _memory(document: dict[str, Any]) -> str:
    ranks = document["memory_by_pipeline_rank"]
    what = (
        "Memory of a device"
        if document["training"]["layout"] == ONE_PROCESS.to_json()
        else "Memory of a rank"
    )
    parts = [[name, format_bytes(value)] for name, value in document["memory_parts"].items() if value]
    lines = text_table([what if len(ranks) == 1 else f"{what}, the fullest", ""], parts)
    if len(ranks) > 1:
        rows = [
            [str(row["pipeline_rank"]), str(len(row["layers"])), format_bytes(row["total"])] for row in ranks
        ]
        lines += ["", *text_table(["Pipeline rank", "layers", "memory"], rows)]
    return "\n".join(lines)


def _derived(document: dict[str, Any]) -> str:
    rows = [[row["key"], str(row["value"]), row["rule"]] for row in document["derived"]]
    return "\n".join(text_table(["Derived", "value", "rule"], rows, left=3))


def _figure(name: str, value: float) -> str:
    if name in ("mfu", "goodput"):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
