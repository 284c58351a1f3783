"""The plan: every number that a run needs, decided once, before anything is allocated.

`resolve` makes it; `build` and the reports read it. It is stored as `plan.json` in the run directory,
and a run that goes on uses the stored one, so that a second measurement of the machine cannot change
a run under way.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from bessemer.formulas.layout import ONE_PROCESS, Layout, num_micro_batches
from bessemer.formulas.objective import NEXT_TOKEN, Objective
from bessemer.formulas.shape import ModelShape


@dataclass(frozen=True)
class Derived:
    """A value that the recipe left to us, and the rule it came from: printed, and kept."""

    key: str
    value: Any
    rule: str


_BASES = ("measured", "modelled", "assumed")  # from best to worst


@dataclass(frozen=True)
class Estimate:
    """A predicted quantity with its band. basis: measured, modelled or assumed. None: not known."""

    value: float | None
    low: float | None
    high: float | None
    basis: str

    def times(self, factor: float) -> "Estimate":
        if self.value is None or self.low is None or self.high is None:
            return UNKNOWN
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.basis)

    def multiplied(self, other: "Estimate") -> "Estimate":
        """Both off by their most at once; the weaker basis."""
        if other.value is None or other.low is None or other.high is None or self.value is None:
            return UNKNOWN
        low, high = self.times(other.low).low, self.times(other.high).high
        return Estimate(self.value * other.value, low, high, max(self.basis, other.basis, key=_BASES.index))

    def plus(self, other: "Estimate") -> "Estimate":
        """Both off to the same side at once; the weaker basis."""
        pairs = ((self.value, other.value), (self.low, other.low), (self.high, other.high))
        sums = [None if one is None or two is None else one + two for one, two in pairs]
        return Estimate(sums[0], sums[1], sums[2], max(self.basis, other.basis, key=_BASES.index))

    def inverse(self, amount: float = 1.0) -> "Estimate":
        """`amount` per this: the low end of one is the high end of the other."""
        if not self.value or not self.low or not self.high:
            return UNKNOWN
        return Estimate(amount / self.value, amount / self.high, amount / self.low, self.basis)


UNKNOWN = Estimate(None, None, None, "assumed")


@dataclass(frozen=True)
class StagePlan:
    """One training stage, pre-training or fine-tuning, fully decided.

    A recipe sets every field (planner/stage.py); the defaults are for jobs of your own (docs/library.md).
    """

    steps: int
    context: int  # tokens in a row
    batch_rows: int  # rows per optimizer step, over all ranks
    micro_batch: int  # rows per forward
    lr: float
    schedule: str = "constant"
    warmup: int = 0
    decay_steps: int = 0  # wsd only
    final_lr: float = 0.1  # cosine only: share of the peak
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float | None = 1.0
    dtype: str = "fp32"  # or "bf16"
    compile: bool | str = False  # "auto": train/compiling.py knows whether there is a compiler
    recompute: str = "none"
    validate_every: int = 100
    save_every: int = 100
    log_every: int = 1
    keep: int = 2
    optimizer: str = "adamw"
    router_balance: float = 0.001  # weight of the experts' auxiliary loss, or rate of the router's bias
    layout: Layout = ONE_PROCESS
    async_save: bool = True  # write checkpoints while training goes on
    recompute_layers: int | None = None  # of "full": the first so many of the model; None: all
    objective: Objective = NEXT_TOKEN

    @property
    def micro_batches(self) -> int:
        """Forward passes of a rank in one step."""
        return num_micro_batches(self.layout, self.batch_rows, self.micro_batch)

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.context

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "StagePlan":
        layout = Layout.from_json(values.get("layout") or {})  # plans from before layouts: one process
        objective = Objective.from_json(values.get("objective"))
        return StagePlan(
            **{**values, "betas": tuple(values["betas"]), "layout": layout, "objective": objective}
        )


@dataclass(frozen=True)
class Plan:
    name: str
    seed: int
    shape: ModelShape
    params: int
    params_active: int
    pretrain: StagePlan
    device: str
    layout: dict[str, Any]
    predicted: dict[str, Estimate]
    derived: list[Derived] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Plan":
        return Plan(
            **{
                **values,
                "shape": ModelShape.from_json(values["shape"]),
                "pretrain": StagePlan.from_json(values["pretrain"]),
                "predicted": {name: Estimate(**row) for name, row in values["predicted"].items()},
                "derived": [Derived(**row) for row in values["derived"]],
            }
        )
