"""`bessemer plan --rehearse`: a step of one rank of the planned layout, run here without its hardware."""

import math
from typing import Any

from bessemer.cli.columns import text_table
from bessemer.errors import RecipeError
from bessemer.units import format_bytes, format_count


def rehearsed(plan: Any, facts: Any, rank: int) -> dict[str, Any]:
    """One rank's step, run with fake tensors in a fake process group."""
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
    found = rehearse(plan.shape, work, stage.layout, rank, context=stage.context)
    return {"rank": rank, "of": stage.layout.world, **found.to_json()}


def show_rehearsal(rehearsal: dict[str, Any]) -> str:
    held = sum(math.prod(size) for size in rehearsal["parameters"].values())
    rows = [
        [kind, f"{row['count']:,}", format_bytes(row["bytes"]), format_bytes(row["sent_bytes"])]
        for kind, row in sorted(rehearsal["exchanges"].items())
    ]
    title = f"Rehearsed: one step of rank {rehearsal['rank']} of {rehearsal['of']:,}"
    lines = text_table([title, "times", "about", "sent"], rows)
    lines.append(
        f"it holds {format_count(held)} parameters; its tensors took {format_bytes(rehearsal['peak_bytes'])}"
    )
    return "\n".join(lines)
