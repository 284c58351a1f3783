"""What the planner must know from outside the recipe, gathered before it begins.

`resolve` is a pure function of a recipe and these facts. On a real machine `measure/facts.py` gathers
them; for a cluster that is only planned for they come from the catalogue.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from bessemer.errors import RecipeError
from bessemer.formulas.scaling.law import Law
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import GIB, Ceilings, find, lookup
from bessemer.planner.calibrated.tables import Calibration
from bessemer.planner.calibrated.taught import Taught
from bessemer.planner.machine.cluster import (
    MOST_DEVICES,
    Cluster,
    catalogue_cluster,
    check_devices,
    cluster_from_file,
)
from bessemer.recipe.cluster_file import ClusterFile, read_cluster_file
from bessemer.recipe.schema import Cluster as ClusterKeys
from bessemer.recipe.schema import Recipe

# Share of the matmul ceiling that a training step reaches, by width of the model; on a CPU as measured
# with AMX at 1 TFLOP/s a core (speed.cpu_share turns it to slower cores).
CPU_EFFICIENCY = ((64, 0.06), (128, 0.10), (256, 0.20), (512, 0.38), (1024, 0.45), (2048, 0.50))
# Share of the dense peak, from published runs (0.35 to 0.45 where wide), lower where narrow.
ACCELERATOR_EFFICIENCY = ((256, 0.05), (512, 0.12), (1024, 0.22), (2048, 0.33), (4096, 0.40), (8192, 0.42))

Curve = tuple[tuple[int, float], ...]
_MOST_DIGITS = 16


@dataclass(frozen=True)
class Facts:
    """None: not known. Then whatever needs it is unknown too, or an error if it is needed."""

    device: str  # as the catalogue or the operating system names it
    kind: str  # "cpu", or "gpu" and other accelerators
    devices: int = 1
    local_devices: int | None = None  # accelerators that processes started on this machine can have
    cores: int = 1  # of the machine; for power where none is measured
    threads: int | None = None  # of each rank on a CPU, as energy.threads asks; None: its share of the cores
    memory_bytes: int | None = None  # usable on one device
    ceilings: Ceilings | None = None
    train_tokens: int | None = None
    vocab: int | None = None  # of the tokenizer that is really there
    bos_id: int | None = None
    eos_id: int | None = None
    source_shape: ModelShape | None = None  # read from model.from
    source_refused: str | None = None  # why it can be planned but not trained
    efficiency: Curve | None = None  # None: the curve of the kind
    calibration: Calibration | None = None  # of this machine, by `bessemer doctor --calibrate`
    taught: Taught | None = None  # by earlier runs on this machine
    has_compiler: bool | None = None  # that torch.compile calls; None: not known, taken to be there
    cluster: Cluster | None = None  # that is planned for; None: this machine
    law: Law | None = None  # of own runs; None: the published one

    @property
    def curve(self) -> Curve:
        if self.efficiency is not None:
            return self.efficiency
        return CPU_EFFICIENCY if self.kind == "cpu" else ACCELERATOR_EFFICIENCY


def parse_cluster(text: str) -> tuple[str, int]:
    """ "64xH100" -> ("H100-SXM5-80GB", 64); "H100" is one of them."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?(\S.*?)\s*", text)
    digits = (match[1] or "1") if match else "0"
    # A number of thousands of digits is no int to Python.
    count = int(digits) if len(digits) < _MOST_DIGITS else MOST_DEVICES + 1
    if match is None or count < 1:
        raise RecipeError(
            f"--cluster {_short(text)!r} is not a cluster",
            found=_short(text),
            wanted="a number, x, and a device of the catalogue",
            fix="write it like --cluster 64xH100",
        )
    check_devices(count, f"--cluster {_short(text)}")
    if find(match[2]) is None and (meant := _meant(text)):
        raise RecipeError(
            f"--cluster {_short(text)!r} is not a cluster",
            found=_short(text),
            wanted="a number, x, and a device of the catalogue",
            fix=meant,
        )
    return lookup(match[2]).name, count


def _meant(text: str) -> str | None:
    """Of words that are no cluster but look like one: what to write."""
    if re.sub(r"^\d+\s*[x×*]?\s*", "", text.strip().lower()) in ("cpu", "cpus", "core", "cores"):
        return "leave --cluster out to plan for this machine: CPUs are measured, not listed"
    for pattern in (r"\s*(?P<count>\d+)[\s:-]*(?P<name>\S.*)", r"(?P<name>.*?)\s*[x×*:]\s*(?P<count>\d+)\s*"):
        match = re.fullmatch(pattern, text)
        if match and find(match["name"]) is not None:
            return f"write --cluster {match['count']}x{match['name'].strip()}"
    return None


def cluster_facts(name: str, devices: int) -> Facts:
    """A cluster that is not here: everything from the catalogue, nothing measured."""
    return _facts_of(catalogue_cluster(lookup(name), devices))


def planned_facts(asked: str | None, recipe: Recipe, base: Path) -> tuple[Recipe, Facts | None]:
    """The cluster to plan for, and the recipe with what a cluster file says of price and place in [cluster].

    asked: --cluster, `64xH100` or a file; it overrides [cluster], whose keys override [cluster] file.
    None where neither names a device: then the plan is for this machine.
    """
    keys = recipe.cluster
    if asked is not None and (asked.endswith(".toml") or _is_file(asked)):
        file = read_cluster_file(Path(asked))
        cluster = cluster_from_file(file, asked)
        return _with_keys(recipe, file, cluster, overrides=True), _facts_of(cluster)
    if asked is not None:
        return recipe, cluster_facts(*parse_cluster(asked))
    if keys.file is not None:
        file = _overridden(read_cluster_file(base / keys.file), keys)
        cluster = cluster_from_file(file, keys.file)
        return _with_keys(recipe, file, cluster, overrides=False), _facts_of(cluster)
    if keys.device is None:
        return recipe, None
    check_devices(keys.devices or 1, "cluster.devices")
    return recipe, cluster_facts(keys.device, keys.devices or 1)


def _is_file(text: str) -> bool:
    """A text that is too long for a name is none."""
    try:
        return Path(text).is_file()
    except OSError:
        return False


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def _overridden(file: ClusterFile, keys: ClusterKeys) -> ClusterFile:
    """The file with what the recipe says otherwise of device and number; the rest is left to [cluster]."""
    given = {"device": keys.device, "devices": keys.devices, "per_node": keys.per_node}
    changes = {name: value for name, value in given.items() if value is not None}
    return file.model_copy(update={**({"nodes": None} if keys.devices else {}), **changes})


def _with_keys(recipe: Recipe, file: ClusterFile, cluster: Cluster, *, overrides: bool) -> Recipe:
    """[cluster] filled from a file. overrides: of the file over the keys that are there."""
    keys = recipe.cluster
    names = {"usd_per_device_hour", "region", "pue", "device_hours_per_failure"}
    told = file.model_dump(include=names, exclude_none=True)
    kept = {} if overrides else keys.model_dump(include=names, exclude_none=True)
    places = {"device": cluster.device.name, "devices": cluster.devices, "per_node": cluster.per_node}
    return recipe.model_copy(update={"cluster": keys.model_copy(update={**places, **told, **kept})})


def _facts_of(cluster: Cluster) -> Facts:
    memory = cluster.device.memory_gib_usable
    return Facts(
        device=cluster.device.name,
        kind=cluster.device.kind,
        devices=cluster.devices,
        memory_bytes=round(memory * GIB) if memory else None,
        cluster=cluster,
    )
