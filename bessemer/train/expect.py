"""What the planner expects of a stage's steps on this machine, for the run to compare itself with."""

from dataclasses import asdict, dataclass
from typing import Any

from bessemer.planner.calibrated.step_time import threads_of
from bessemer.planner.calibrated.taught import StepKey, step_key
from bessemer.planner.machine.facts import Facts
from bessemer.planner.predict import predict_step
from bessemer.recipe.load import load
from bessemer.recipe.schema import Cluster, Recipe
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
    """None: the planner knows no step time here, or the device was not measured.

    Both times are those of the plan, so that the run compares itself with what its plan says.
    """
    if facts.ceilings is None:
        return None
    shape, plan = stage.shape, stage.plan
    known, _ = predict_step(_asked(stage), shape, plan, facts)
    found = known.best
    if found.value is None or found.low is None or found.high is None:
        return None
    threads = threads_of(plan.layout, facts)
    return Expected(
        found.value,
        found.low,
        found.high,
        found.basis,
        known.modelled.value,
        known.basis,
        calibrated=known.calibrated,
        calibrated_busy=facts.calibration.busy_share if facts.calibration else 0.0,
        device=facts.ceilings.device,
        threads=threads,
        key=step_key(shape, plan, facts.kind, threads),
    )


def _asked(stage: Stage) -> Recipe:
    """What the run's recipe says of the cluster that decides a step's time: of price and place nothing."""
    path = stage.folder.parent / "recipe.toml"
    per_node = load(str(path), []).recipe.cluster.per_node if path.is_file() else None
    return Recipe(name=stage.kind, cluster=Cluster(per_node=per_node))
