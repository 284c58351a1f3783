"""What is asked of the search: a model, a batch and a cluster, and what the recipe has fixed already.

The batch and the compute type are the recipe's: a layout never changes what is learnt.
"""

from dataclasses import dataclass, replace

from bessemer.energy.grid import region
from bessemer.formulas.goodput import Reliability
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.planner.cluster import Cluster, reliability_of


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

    @property
    def stack(self) -> str:
        return "bessemer-cpu" if self.cluster.device.kind == "cpu" else "bessemer"

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.context

    @property
    def usd_per_device_hour(self) -> float | None:
        """Given, or the list price."""
        return self.cluster.usd_per_device_hour or self.cluster.device.usd_per_device_hour

    @property
    def pue(self) -> float:
        """Facility over IT energy: given, the cloud region's, or 1.0 for one device under a desk and 1.25
        for a cluster."""
        code = self.cluster.region
        known = region(code).pue if code else None
        return self.cluster.pue or known or (1.0 if self.cluster.devices == 1 else 1.25)

    def on(self, devices: int) -> "Question":
        """The same on so many of the cluster's devices."""
        return replace(self, cluster=replace(self.cluster, devices=devices))

    def reliability(self) -> Reliability:
        """Failures and checkpoints of a run on all devices."""
        return reliability_of(total_params(self.shape), self.cluster, asynchronous=self.saves_async)
