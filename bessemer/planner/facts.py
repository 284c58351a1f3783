"""What the planner must know from outside the recipe, gathered before it begins.

`resolve` is a pure function of a recipe and these facts. On a real machine `measure/facts.py` gathers
them; for a cluster that is only planned for they come from the catalogue.
"""

import re
from dataclasses import dataclass

from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import GIB, Ceilings, lookup
from bessemer.recipe.schema import Cluster

# Share of the matmul ceiling that a training step reaches, by width of the model; on a CPU as measured
# with AMX at 1 TFLOP/s a core (predict.cpu_share turns it to slower cores).
CPU_EFFICIENCY = ((64, 0.06), (128, 0.10), (256, 0.20), (512, 0.38), (1024, 0.45), (2048, 0.50))
# Share of the dense peak, from published runs (0.35 to 0.45 where wide), lower where narrow.
ACCELERATOR_EFFICIENCY = ((256, 0.05), (512, 0.12), (1024, 0.22), (2048, 0.33), (4096, 0.40), (8192, 0.42))

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Facts:
    """None: not known. Then whatever needs it is unknown too, or an error if it is needed."""

    device: str  # as the catalogue or the operating system names it
    kind: str  # "cpu", or "gpu" and other accelerators
    devices: int = 1
    local_devices: int | None = None  # accelerators that processes started on this machine can have
    cores: int = 1  # of the machine; for power where none is measured
    memory_bytes: int | None = None  # usable on one device
    ceilings: Ceilings | None = None
    train_tokens: int | None = None
    vocab: int | None = None  # of the tokenizer that is really there
    bos_id: int | None = None
    eos_id: int | None = None
    source_shape: ModelShape | None = None  # read from model.from
    efficiency: Curve | None = None  # None: the curve of the kind

    @property
    def curve(self) -> Curve:
        if self.efficiency is not None:
            return self.efficiency
        return CPU_EFFICIENCY if self.kind == "cpu" else ACCELERATOR_EFFICIENCY


def parse_cluster(text: str) -> tuple[str, int]:
    """ "64xH100" -> ("H100-SXM5-80GB", 64); "H100" is one of them."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?(\S.*?)\s*", text)
    count = int(match[1] or 1) if match else 0
    if match is None or count < 1:
        raise RecipeError(
            f"--cluster {text!r} is not a cluster",
            found=text,
            wanted="a number, x, and a device of the catalogue",
            fix="write it like --cluster 64xH100",
        )
    return lookup(match[2]).name, count


def cluster_facts(name: str, devices: int) -> Facts:
    """A cluster that is not here: everything from the catalogue, nothing measured."""
    device = lookup(name)
    memory = device.memory_gib_usable
    return Facts(
        device=device.name,
        kind=device.kind,
        devices=devices,
        memory_bytes=round(memory * GIB) if memory else None,
    )


def planned_cluster(cluster: Cluster) -> Facts | None:
    """The cluster of the recipe; None when the recipe names no device."""
    if cluster.file is not None:
        raise RecipeError(
            "cluster.file is not read in this version",
            found=f'cluster.file = "{cluster.file}"',
            wanted="cluster.device and cluster.devices",
            fix="name the device and the number of them in [cluster]",
        )
    return cluster_facts(cluster.device, cluster.devices or 1) if cluster.device else None
