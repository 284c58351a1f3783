"""What the planner expects of a stage's steps on this machine, for the run to compare itself with."""

from dataclasses import asdict, dataclass
from typing import Any

from bessemer.planner import calibrated
from bessemer.planner.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.predict import devices_of, recomputed_share, step_time, training_speed
from bessemer.planner.taught import StepKey, step_key
from bessemer.train.stage import Stage


@dataclass(frozen=True)
class Expected:
    """Of one optimizer step. modelled_s: without what earlier runs taught."""

    step_s: float
    low_s: float
    high_s: float
    basis: str
    modelled_s: float | None
    modelled_basis: str  # which calibration it stands on
    calibrated: bool
    calibrated_busy: float  # share of the cores that others used when it was calibrated
    device: str
    threads: int  # of each process
    key: StepKey

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Expected":
        return Expected(**{**values, "key": StepKey(**values["key"])})


def expected_of(stage: Stage, facts: Facts) -> Expected | None:
    """None: the planner knows no step time here, or the device was not measured."""
    if facts.ceilings is None:
        return None
    shape, plan = stage.shape, stage.plan
    modelled = calibrated.step_time(shape, plan, calibrated.without_taught(facts), _formula(stage, facts))
    found = calibrated.step_time(shape, plan, facts, modelled)
    if found.value is None or found.low is None or found.high is None:
        return None
    parts, threads = calibrated.step_seconds(shape, plan, facts), calibrated.threads_of(plan.layout, facts)
    return Expected(
        found.value,
        found.low,
        found.high,
        found.basis,
        modelled.value,
        calibrated.modelled_basis(parts, facts),
        calibrated=parts is not None,
        calibrated_busy=facts.calibration.busy_share if facts.calibration else 0.0,
        device=facts.ceilings.device,
        threads=threads,
        key=step_key(shape, plan, facts.kind, threads),
    )


def _formula(stage: Stage, facts: Facts) -> Any:
    """Of a planner without a calibration."""
    plan: StagePlan = stage.plan
    facts = devices_of(plan.layout, facts)
    share = recomputed_share(stage.shape, plan)
    speed = training_speed(stage.shape, facts, plan.dtype, plan.recompute, share)
    return step_time(stage.shape, plan.batch_tokens, speed, facts)
