"""The weights that a stage begins with: random, or those of its origin.

A stage with a checkpoint sets every weight from it, and its origin need not be there any more. Not so a stage
of adapters: its checkpoints hold what learns only, and the base is loaded and checked at every attempt.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bessemer.checkpoint.base import Base, check_base, load_base
from bessemer.checkpoint.folder import listed, verify
from bessemer.checkpoint.huggingface import load_into
from bessemer.checkpoint.load import COMPUTE
from bessemer.checkpoint.peft_start import load_peft
from bessemer.checkpoint.weights import load_weights
from bessemer.errors import RecipeError
from bessemer.formulas.shape import CLASS_HEAD
from bessemer.model.adapter import base_pieces, begin_magnitudes, trained_pieces
from bessemer.model.init import fill
from bessemer.model.pieces import Pieces, whole_pieces
from bessemer.parallel.engine import Engine
from bessemer.train.origin import Origin
from bessemer.train.ranks import Company
from bessemer.train.stage import Stage


def set_first_weights(stage: Stage, engine: Engine, company: Company) -> None:
    """Into a model whose memory is there. Afterwards `engine.pieces` are those of the stage's checkpoints."""
    pieces = engine.pieces or whole_pieces(engine.model)
    begins = not listed(stage.folder)
    if stage.shape.adapter is not None:
        _set_adapted(stage, engine, pieces, begins, company)
    elif begins and stage.origin is None:
        fill(engine.model, pieces, stage.shape, stage.seed)
    elif begins:
        _load_origin(stage, engine, pieces, company)


def check_merged(origin: Origin, what: str) -> None:
    """RecipeError where whole weights are needed and PEFT's adapters lie beside them: they would be lost."""
    if origin.adapter is not None:
        raise RecipeError(
            f"{what} needs a whole model",
            found=f"{origin.adapter}: adapters for {origin.folder}, which alone is another model",
            wanted="a run, or a Hugging Face folder with the adapters merged into its weights",
            fix="merge them first: `bessemer export RUN --format hf` for a run of bessemer's, else PEFT's "
            "merge_and_unload() and save_pretrained(DIR); then name the merged folder",
        )


def _load_origin(stage: Stage, engine: Engine, pieces: Pieces, company: Company) -> None:
    assert stage.origin is not None
    check_merged(stage.origin, f"{stage.folder}, which trains all weights,")
    if stage.shape.labels:  # a head of classes is new, unless the origin has the same
        head = {name: parts for name, parts in pieces.items() if name.endswith(CLASS_HEAD)}
        fill(engine.model, head, stage.shape, stage.seed)
    base = Base.of(stage.folder, stage.origin.to_json())
    if base.checkpoint is None:
        load_into(engine.model, Path(stage.origin.folder), stage.shape, engine.pieces, stage.new_tokens)
    elif base.shape().adapter is not None:
        _verify(company, partial(check_base, base))
        load_base(engine.model, base, stage.shape, pieces, stage.new_tokens)
    else:
        _verify(company, partial(verify, base.checkpoint))
        load_weights(
            engine.model,
            base.checkpoint,
            engine.pieces,
            other_head=stage.shape.labels > 0,
            new_tokens=stage.new_tokens,
        )


def _set_adapted(stage: Stage, engine: Engine, pieces: Pieces, begins: bool, company: Company) -> None:
    assert stage.origin is not None, "adapters on random weights"
    base, shape = Base.of(stage.folder, stage.origin.to_json()), stage.shape
    _verify(company, partial(check_base, base))
    engine.pieces = trained_pieces(pieces, shape)
    if begins:
        fill(engine.model, engine.pieces, shape, stage.seed)
    load_base(engine.model, base, shape, base_pieces(pieces, shape, begins=begins))
    if begins:
        begin_magnitudes(engine.model, COMPUTE[stage.plan.dtype])
    if begins and stage.origin.adapter is not None:
        load_peft(engine.model, Path(stage.origin.adapter), shape, engine.pieces)


def _verify(company: Company, look: Callable[[], object]) -> None:
    """The first rank reads and hashes every file; the others believe it, or hear its error."""

    def check() -> dict[str, Any]:
        look()
        return {}

    company.first_does("base", check)
