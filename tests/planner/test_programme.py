"""What finished programmes report beside a plan's likely hours."""

import pytest
from making_plans import run_plan

from bessemer.planner.plan import UNKNOWN, Estimate
from bessemer.planner.programme import OVER_TRAINING, programme


def test_plan_tells_what_programmes_report_and_leaves_its_own_hours_as_they_are() -> None:
    document, text = run_plan("llama-8b", settings=("pretrain.tokens=1T",))
    told, hours = document["programme"], document["predicted"]["device_hours"]
    assert told["published"] == 14 and told["over_training"]["basis"] == "assumed"
    for name in ("device_hours", "hours"):
        likely, row = document["predicted"][name]["value"], told[name]
        assert likely < row["low"] < row["value"] < row["high"]
        assert row["high"] == pytest.approx(OVER_TRAINING.high * likely)  # type: ignore[operator]
        assert row["basis"] == "assumed"
    assert f"here {told['device_hours']['value']:,.0f}" in text and f"{hours['value']:,.0f}" in text


def test_nothing_is_said_of_what_is_smaller_than_any_published_programme() -> None:
    document, text = run_plan("llama-8b", settings=("pretrain.steps=10",))
    assert document["programme"] is None and "programmes" not in text


@pytest.mark.parametrize(("kind", "hours"), [("cpu", 1e6), ("gpu", 499.0), ("gpu", None)])
def test_cpus_small_runs_and_unknown_hours_have_none(kind: str, hours: float | None) -> None:
    known = UNKNOWN if hours is None else Estimate(hours, hours, hours, "modelled")
    assert programme({"device_hours": known, "hours": known}, kind) is None
