"""The layouts that are tried where nobody names any."""

from dataclasses import replace

import pytest
from making_runs import SHAPE

from bessemer.check.candidates import default_layouts
from bessemer.formulas.layout import AXES, SCHEDULES
from bessemer.formulas.shape import ModelShape
from bessemer.planner.rules.layout import first_complaint

DENSE = replace(SHAPE, layers=4, kv_heads=4)
MOE = replace(DENSE, family="qwen3-moe", experts=4, experts_per_token=2, expert_ffn=24)


@pytest.mark.parametrize(("shape", "axes"), [(DENSE, AXES[:-1]), (MOE, AXES)])
def test_every_axis_and_schedule_is_tried_and_the_model_allows_all(
    shape: ModelShape, axes: tuple[str, ...]
) -> None:
    layouts = default_layouts(shape, 8)
    assert len(layouts) == len(set(layouts)) >= 30
    assert {axis for each in layouts for axis in AXES if getattr(each, axis) > 1} == set(axes)
    assert {each.schedule for each in layouts} == set(SCHEDULES) - {"dualpipev"}  # not built
    assert [str(each) for each in layouts if first_complaint(each, shape, shape.context)] == []
    assert max(each.world for each in layouts) == 8


def test_no_layout_has_more_ranks_than_asked_for() -> None:
    assert {each.world for each in default_layouts(DENSE, 3)} == {2, 3}
    assert default_layouts(DENSE, 1) == []


def test_degrees_of_3_and_4_only_where_they_divide() -> None:
    three = replace(DENSE, heads=6, kv_heads=3)
    assert {each.tensor for each in default_layouts(three, 8)} == {1, 2, 3}
    assert {each.tensor for each in default_layouts(DENSE, 8)} == {1, 2, 4}
