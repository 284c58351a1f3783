"""The layouts that `check layouts` tries where the user names none: each axis alone, and what composes.

A layout that the model does not allow stays in the list, to be shown with the planner's reason; but degrees
of 3 and 4, which are there for the models that they divide, are left out where they do not.
"""

from collections.abc import Iterator

from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.layout import parse_layout
from bessemer.planner.rules.layout import first_complaint

_ALONE = ("replicate", "shard", "tensor", "pipeline", "context")
_COMPOSED = (
    "shard=2,reshard=no",
    "replicate=2,shard=2",
    "shard=2,tensor=2",
    "pipeline=2,schedule=interleaved",
    "pipeline=2,schedule=zbv",
    "shard=2,pipeline=2",
    "shard=2,pipeline=2,schedule=interleaved",
    "shard=2,pipeline=2,schedule=zbv",
    "shard=4,pipeline=2",
    "shard=2,pipeline=2,reshard=no",
    "tensor=2,pipeline=2",
    "context=2,context_kind=ulysses",
    "context=2,tensor=2",
    "context=2,pipeline=2",
    "shard=2,context=2",
    "shard=2,context=2,context_kind=ulysses",
    "replicate=2,shard=2,tensor=2",
    "shard=2,tensor=2,pipeline=2",
    "shard=2,tensor=2,pipeline=2,schedule=zbv",
    "context=2,tensor=2,shard=2",
    "context=2,pipeline=2,shard=2",
)
_EXPERTS = (
    "replicate=2,expert=2",
    "shard=2,expert=2",
    "context=2,expert=2",
    "shard=4,expert=2",
    "replicate=2,shard=2,expert=4",
    "shard=2,tensor=2,expert=2",
    "shard=2,pipeline=2,expert=2",
    "shard=2,pipeline=2,expert=2,schedule=zbv",
    "shard=2,tensor=2,context=2,expert=2",
)


def default_layouts(shape: ModelShape, most_ranks: int) -> list[Layout]:
    """Those of at most `most_ranks` ranks, more than one."""
    found = dict.fromkeys(parse_layout(text) for text in _texts(shape))
    return [layout for layout in found if layout.world <= most_ranks]


def _texts(shape: ModelShape) -> Iterator[str]:
    for axis in _ALONE:
        yield f"{axis}=2"
        yield from (text for degree in (3, 4) if _is_allowed(text := f"{axis}={degree}", shape))
    yield from _COMPOSED
    if shape.layers > 2:  # uneven stages: the last one has a layer
        yield f"pipeline=2,split={shape.layers - 1}+1"
        yield f"shard=2,pipeline=2,split={shape.layers - 1}+1"
    if shape.experts:
        yield from _EXPERTS


def _is_allowed(text: str, shape: ModelShape) -> bool:
    return first_complaint(parse_layout(text), shape, shape.context) is None
