"""What is asked of the search: a model, a batch and a cluster, and what the recipe has fixed already.

The batch and the compute type are the recipe's: a layout never changes what is learnt.
"""

from dataclasses import dataclass, replace
from typing import Any

from bessemer.energy.accounting.facility import power_usage_effectiveness
from bessemer.formulas.goodput import Reliability
from bessemer.formulas.objective import NEXT_TOKEN, Objective
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.cluster import Cluster, reliability_of

Column = Any  # of candidates: numbers, or arrays of them


@dataclass(frozen=True)
class Question:
    """Everything that is the same for all layouts."""

    shape: ModelShape
    context: int  # tokens in a row
    batch_rows: int  # of an optimizer step, over all ranks
    steps: int
    dtype: str
    cluster: Cluster
    prefer: str = "time"  # or "energy", "cost"
    micro_batch: int | None = None  # None: to be chosen
    recompute: str | None = None
    compiles: bool = True  # where the layout allows it
    must_compile: bool = False  # then only what can be compiled
    saves_async: bool = True  # checkpoints are written while training goes on
    objective: Objective = NEXT_TOKEN  # for the memory of answers that are sampled

    @property
    def stack(self) -> str:
        return "bessemer-cpu" if self.cluster.device.kind == "cpu" else "bessemer"

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.context

    def usd(self, hours: Column, kwh: Column | None) -> Column | None:
        """Of runs that take so long and so much. None: no price, or no energy to pay for, is known."""
        rent = self.cluster.usd_per_device_hour
        rent = self.cluster.device.usd_per_device_hour if rent is None else rent
        if rent is None:
            return None
        money = rent * self.cluster.devices * hours
        if not self.cluster.usd_per_kwh:
            return money
        return None if kwh is None else money + self.cluster.usd_per_kwh * kwh

    @property
    def pue(self) -> float:
        """Facility over IT energy."""
        return power_usage_effectiveness(self.cluster.pue, self.cluster.region, self.cluster.devices)[0]

    def on(self, devices: int) -> "Question":
        """The same on so many of the cluster's devices."""
        return replace(self, cluster=replace(self.cluster, devices=devices))

    def reliability(self) -> Reliability:
        """Failures and checkpoints of a run on all devices."""
        return reliability_of(total_params(self.shape), self.cluster, asynchronous=self.saves_async)
