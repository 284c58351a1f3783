"""Going on from another run, or from a Hugging Face folder: what fits, and what goes on besides the weights.

On the same rows of the same data a fork is exact: the origin's checkpoint becomes the new stage's own, with
optimizer, step and data order. Elsewhere the weights alone are the beginning of a new run.
"""

import shutil
from pathlib import Path
from typing import Any

from bessemer.checkpoint.folder import checkpoint_folder, verify
from bessemer.data.kept import identity, told
from bessemer.data.prepared import Prepared, PreparedTask
from bessemer.durable import cannot_write, publish_folder
from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.log import Console
from bessemer.train.first_weights import check_merged
from bessemer.train.origin import Origin
from bessemer.train.stage import Stage


def check_origin(stage: Stage, origin: Origin) -> None:
    check_merged(origin, "pretrain --from")
    ours, theirs = _plain(stage.shape), _plain(origin.shape(stage.shape.context))
    different = [key for key in ours if ours[key] != theirs[key]]
    if different:
        raise RecipeError(
            "the recipe describes another model than the one to go on from",
            found=", ".join(f"{key} {ours[key]}" for key in different),
            wanted=", ".join(f"{key} {theirs[key]}" for key in different) + f", as {origin.folder}",
            fix="leave [model] and [tokenizer] as they were in that run",
        )
    if origin.tokenizer.is_file() and origin.tokenizer.read_bytes() != stage.tokenizer.read_bytes():
        raise RecipeError(
            "the data was prepared with another tokenizer than the model to go on from",
            found=str(stage.tokenizer),
            wanted=f"the content of {origin.tokenizer}",
            fix=f"--set tokenizer.path={origin.tokenizer}",
        )
    if steps_made(origin, stage.data, stage.plan.context) >= stage.plan.steps:
        raise RecipeError(
            "the fork would begin at its end",
            found=f"step {origin.step}, and pretrain.steps = {stage.plan.steps}",
            wanted="more steps than have been made, or an earlier step",
            fix=f"--set pretrain.steps={2 * (origin.step or 0)}, or --from {Path(origin.folder).parent}@STEP",
        )


def _plain(shape: ModelShape) -> dict[str, Any]:
    """Without what is free between two stages of one model. Adapters are merged where it goes on."""
    free = ("bos_id", "eos_id", "max_positions", "context", "adapter")
    return {key: value for key, value in shape.to_json().items() if key not in free}


def steps_made(origin: Origin | None, data: Prepared | PreparedTask, context: int) -> int:
    """The origin's steps, where its optimizer and data order go on too: on the same rows they do. 0: its
    weights alone begin a new run."""
    if origin is None or origin.kind != "checkpoint" or origin.info.get("kind") != "pretrain":
        return 0
    before = origin.info
    same_rows = identity(before.get("data")) == identity(told(data)) and before.get("context") == context
    return (origin.step or 0) if same_rows else 0


def fork(stage: Stage, origin: Origin, console: Console) -> None:
    """Put the origin's checkpoint into the new stage, which then resumes from it as from its own."""
    if not steps_made(origin, stage.data, stage.plan.context):
        console.line(f"pretrain: weights of {origin.folder}, a new optimizer, step 0")
        return
    assert origin.step is not None and origin.checkpoint is not None
    verify(Path(origin.checkpoint))  # it may be gone since the stage began: then by its name
    target = checkpoint_folder(stage.folder, origin.step)
    building = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(origin.checkpoint, building)
        shutil.rmtree(target, ignore_errors=True)
        publish_folder(building, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    console.line(f"pretrain: fork of {origin.folder} at step {origin.step}, optimizer and data order too")
