"""What the ranks are told of the machine that they run on, and the gauge that counts with it.

The first process knows it from the facts that planned the run; ranks get it as JSON (train/run.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bessemer.formulas.flops import train_flops_per_token
from bessemer.parallel.mesh import Mesh
from bessemer.planner.machine.facts import Facts
from bessemer.planner.speed import peak_tflops
from bessemer.train.expect import Expected, expected_of
from bessemer.train.gauge import Gauge
from bessemer.train.ranks import Company
from bessemer.train.stage import Stage


@dataclass(frozen=True)
class Machine:
    """What must be known of a device to turn times into figures."""

    kind: str
    cores: int
    peak_flops: float | None  # of one device; on a CPU of all its cores
    expected: dict[str, Any] | None = None  # of a step: train/expect.py, as JSON
    device_name: str | None = None  # of its accelerators, by which their power is known
    power_command: list[str] = field(default_factory=list)  # that prints the node's watts
    tune: dict[str, Any] | None = None  # levers: train/levers.py
    pause: dict[str, Any] | None = None  # a PauseRule (energy/grid/pausing.py)


def machine_of(
    stage: Stage,
    facts: Facts,
    power_command: Sequence[str] = (),
    *,
    tune: dict[str, Any] | None = None,
    pause: dict[str, Any] | None = None,
) -> Machine:
    peak = peak_tflops(facts, stage.plan.dtype)
    # With answers to sample a step's time is another matter, and would teach the planner what is not so.
    expected = expected_of(stage, facts) if stage.plan.objective.rollouts is None else None
    return Machine(
        facts.kind,
        facts.cores,
        None if peak is None else peak * 1e12,
        None if expected is None else expected.to_json(),
        None if facts.kind == "cpu" else facts.device,
        list(power_command),
        tune=tune,
        pause=pause,
    )


def gauge_of(stage: Stage, machine: Machine, mesh: Mesh, company: Company) -> Gauge:
    on_cpu = machine.kind == "cpu"
    devices = company.hosts if on_cpu else mesh.layout.world
    return Gauge(
        device=mesh.device,
        flops_per_token=train_flops_per_token(stage.shape, stage.plan.context),
        peak_flops=None if machine.peak_flops is None else machine.peak_flops * devices,
        cores=machine.cores,
        accelerators=None if on_cpu else company.accelerators(mesh.device),
        hosts=company.hosts,
        fellows=company.fellows,
        expected=None if machine.expected is None else Expected.from_json(machine.expected),
        device_name=machine.device_name,
        power_command=tuple(machine.power_command),
    )
