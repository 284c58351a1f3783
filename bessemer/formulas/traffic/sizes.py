"""A step of one rank, and the sizes that its exchanges are made of: what formulas/traffic/step.py counts
with."""

from dataclasses import dataclass, replace
from math import ceil, prod

from bessemer.formulas.adapters import MAGNITUDE
from bessemer.formulas.layout import Layout, layers_of_stages, split_evenly
from bessemer.formulas.memory.parts import Workload
from bessemer.formulas.shape import ModelShape
from bessemer.formulas.tensor_spec import TensorSpec
from bessemer.formulas.tensors import tensor_table

FP32, WIDE = 4, 8  # bytes; the wide ones are fp64 and int64


@dataclass(frozen=True)
class Exchange:
    """`count` exchanges alike, between the `ranks` ranks of an axis. payload: bytes of each."""

    axis: str  # of parallel/mesh.py; "all": every rank; "ends": first and last pipeline rank
    kind: str
    payload: int
    ranks: int
    count: int


@dataclass(frozen=True)
class Place:
    pipeline: int
    fsdp: int
    tensor: int


@dataclass(frozen=True)
class Step:
    """A step on a rank, and sizes that several axes need."""

    shape: ModelShape
    work: Workload
    layout: Layout
    place: Place
    rows: int  # of a micro-batch
    context: int

    @property
    def stages(self) -> list[int]:
        return self.layout.stages_of(self.place.pipeline)

    @property
    def has_first(self) -> bool:
        return 0 in self.stages

    @property
    def has_last(self) -> bool:
        return self.layout.num_stages - 1 in self.stages

    @property
    def layers(self) -> list[int]:
        table = layers_of_stages(self.shape, self.layout)
        return [layer for stage in self.stages for layer in table[stage]]

    def is_routed(self, layer: int) -> bool:
        return self.shape.experts > 0 and layer >= self.shape.dense_layers

    def is_repeated(self, layer: int) -> bool:
        """Whether the forward pass of the layer is run again in the backward pass."""
        return self.work.recomputed_of(range(layer, layer + 1)) == 1

    @property
    def tokens(self) -> int:
        """Of a row, on this rank; between the layers they are shared out over the tensor axis."""
        return self.context // self.layout.context

    @property
    def fsdp(self) -> int:
        return self.layout.shard * self.layout.context

    @property
    def expert_ranks(self) -> tuple[int, int]:
        """(outer, inner) ranks that repeat and shard the same experts: parallel/mesh.py."""
        data = self.layout.replicate * self.fsdp
        inner = (self.fsdp if self.fsdp % self.layout.expert == 0 else data) // self.layout.expert
        return data // self.layout.expert // inner, inner


def place_of(layout: Layout, rank: int) -> Place:
    rest, tensor = divmod(rank, layout.tensor)
    fsdp = layout.shard * layout.context
    return Place(rest // (fsdp * layout.replicate), rest % fsdp, tensor)


def embedding(shape: ModelShape) -> TensorSpec:
    return tensor_table(replace(shape, layers=0))[0]


def block_specs(shape: ModelShape, routed: bool) -> list[TensorSpec]:
    """Of one layer, and of its experts only the first."""
    one = replace(shape, layers=1, dense_layers=0 if routed or not shape.experts else 1)
    table = [spec for spec in tensor_table(one) if ".layers." in spec.name]
    return [spec for spec in table if spec.expert in (None, 0) and not spec.name.endswith("correction_bias")]


def is_fp32(spec: TensorSpec) -> bool:
    """Of what computes in fp32, whatever the compute type."""
    return spec.name.endswith(("norm.weight", ".gate.weight", MAGNITUDE))


def cut(spec: TensorSpec, step: Step) -> list[int]:
    """Sizes of this rank's part on the tensor axis."""
    size = list(spec.shape)
    if spec.tensor_dim is not None:
        size[spec.tensor_dim] = len(
            split_evenly(size[spec.tensor_dim], step.layout.tensor)[step.place.tensor]
        )
    return size


def padded(size: list[int], ranks: int) -> int:
    """Elements of a weight that FSDP pads to equal shards: parallel/shard.py says along which dim."""
    if len(size) == 3 and size[0] % ranks and size[1] % ranks == 0:
        return prod(size)
    return ceil(size[0] / ranks) * ranks * prod(size[1:])


def own(size: list[int], ranks: int, place: int) -> int:
    """Elements of the shard at `place`, without padding."""
    longest = ceil(size[0] / ranks)
    return max(0, min(longest, size[0] - place * longest)) * prod(size[1:])
