"""Memory in `bessemer plan`: of the rank at each place of the pipeline, part by part."""

from dataclasses import asdict
from itertools import groupby
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.formulas.layout import ONE_PROCESS
from bessemer.units import format_bytes

_MOST_LINES = 8  # of ranks that differ


def rank_documents(plan: Any, facts: Any, cluster: Any) -> list[dict[str, Any]]:
    """Of a rank at each place in the pipeline. parts: the trainer's words; memory: the plan's."""
    from bessemer.formulas.layout import layers_of_stages
    from bessemer.planner.compiling import as_run
    from bessemer.planner.predict import rank_memories
    from bessemer.planner.step import stage_room

    layout = plan.pretrain.layout
    stages = [list(stage) for stage in layers_of_stages(plan.shape, layout)]
    stage = as_run(plan.shape, plan.pretrain, facts)
    memories = rank_memories(plan.shape, stage, facts, compiled=stage.compile is not False)
    room = stage_room(plan.shape, stage, cluster)
    return [
        {
            "pipeline_rank": rank,
            "layers": [layer for stage in layout.stages_of(rank) for layer in stages[stage]],
            "total": memory.total,
            "memory": room.named(memory),
            "parts": asdict(memory),
        }
        for rank, memory in enumerate(memories)
    ]


def show_memory(document: dict[str, Any]) -> str:
    ranks = document["memory_by_pipeline_rank"]
    what = (
        "Memory of a device"
        if document["training"]["layout"] == ONE_PROCESS.to_json()
        else "Memory of a rank"
    )
    parts = [[name, format_bytes(value)] for name, value in document["memory"].items() if value]
    lines = text_table([what if len(ranks) == 1 else f"{what}, the fullest", ""], parts)
    if document["memory"]["allocator"]:
        lines.append(_together(document))
    if len(ranks) > 1:
        lines += ["", *text_table(["Pipeline rank", "layers", "memory"], _rank_rows(ranks))]
    return "\n".join(lines)


def _together(document: dict[str, Any]) -> str:
    """Why the table is more than `memory_gib`: what of the allocator's part that has."""
    total, base = sum(document["memory"].values()), document["memory_parts"]["base"]
    return (
        f"together {format_bytes(total)}; memory_gib has {format_bytes(base)} of the allocator's part, "
        "and its high end the most that it was seen to take"
    )


def _rank_rows(ranks: list[dict[str, Any]]) -> list[list[str]]:
    """Neighbours that are alike on one line; of a long pipeline its two ends."""
    rows = []
    cells = [(str(len(row["layers"])), format_bytes(row["total"])) for row in ranks]
    for (layers, memory), group in groupby(range(len(ranks)), key=lambda rank: cells[rank]):
        places = list(group)
        rows.append([str(places[0]) + (f" to {places[-1]}" if len(places) > 1 else ""), layers, memory])
    if len(rows) <= _MOST_LINES:
        return rows
    half = _MOST_LINES // 2
    return [*rows[:half], ["…", "", ""], *rows[-half:]]
