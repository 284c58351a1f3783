"""`bessemer plan --rehearse`: a step of one rank of the planned layout, run here without its hardware."""

import math
from dataclasses import asdict, replace
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.errors import RecipeError
from bessemer.units import format_bytes, format_count


def rehearsed(plan: Any, facts: Any, rank: int) -> dict[str, Any]:
    """One rank's step, run with fake tensors in a fake process group."""
    from bessemer.formulas.traffic.step import step_traffic
    from bessemer.measure.rehearse import rehearse
    from bessemer.planner.limits import untrainable_shape
    from bessemer.planner.predict import workload

    stage, refusal = plan.pretrain, untrainable_shape(plan.shape)
    if refusal is not None:
        raise RecipeError(
            "this cannot be rehearsed, as it cannot be trained in this version yet",
            found=refusal[0],
            wanted=refusal[1],
            fix=refusal[2],
        )
    if not 0 <= rank < stage.layout.world:
        raise RecipeError(
            "--rank is not of this layout",
            found=f"--rank {rank}, layout of {stage.layout.world} ranks",
            wanted=f"0 to {stage.layout.world - 1}",
            fix="choose one of these",
        )
    work = workload(stage, facts, compiled=False)
    # Losses of pairs, of teachers and of sampled answers are not rehearsed; all else of their steps is.
    loss = "classify" if plan.shape.labels else "next_token"
    # Beyond these, one micro-batch does what the one before did, and memory has been at its peak.
    few = min(work.micro_batches, 2 * stage.layout.num_stages)
    found = rehearse(plan.shape, replace(work, micro_batches=few), stage.layout, rank, context=stage.context)
    whole = step_traffic(plan.shape, work, stage.layout, rank, context=stage.context)
    return {
        "rank": rank,
        "of": stage.layout.world,
        "micro_batches": few,
        "micro_batches_of_a_step": work.micro_batches,
        "objective": stage.objective.kind,
        "loss": loss,
        **found.to_json(),
        "exchanges_of_a_step": {kind: asdict(exchange) for kind, exchange in whole.items()},
    }


def show_rehearsal(rehearsal: dict[str, Any]) -> str:
    whole = rehearsal["exchanges_of_a_step"]
    rows = [
        [kind, *_figures(row), *_figures(whole[kind]), format_bytes(whole[kind]["sent_bytes"])]
        for kind, row in sorted(rehearsal["exchanges"].items())
    ]
    title = f"Rehearsed: rank {rehearsal['rank']} of {rehearsal['of']:,}"
    few, every = rehearsal["micro_batches"], rehearsal["micro_batches_of_a_step"]
    heads = [title, f"{few} micro-batches", "about", f"a step of {every}", "about", "sent"]
    held = sum(math.prod(size) for size in rehearsal["parameters"].values())
    memory = format_bytes(rehearsal["peak_bytes"])
    last = f"it holds {format_count(held)} parameters; its tensors took {memory} at the most"
    if rehearsal["loss"] != rehearsal["objective"]:
        last += f"; with the loss of {rehearsal['loss']} in place of {rehearsal['objective']}"
    return "\n".join([*text_table(heads, rows), last])


def _figures(exchange: dict[str, Any]) -> list[str]:
    return [f"{exchange['count']:,}", format_bytes(exchange["bytes"])]
