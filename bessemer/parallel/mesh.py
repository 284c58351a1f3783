"""This rank's place in a layout, and the groups of ranks that it speaks with.

Ranks are numbered (pipeline, replicate, shard, context, tensor), tensor fastest. Three views of the same
ranks are made, each a DeviceMesh over the whole world, with dims of size 1 left out:

    axes     pipeline × replicate × shard × context × tensor
    weights  pipeline × replicate × fsdp × tensor      fsdp = shard × context: who shares dense weights
    experts  pipeline × outer × inner × expert × tensor    data ranks again: who shares expert weights

Every rank makes every group, in one order, as the process groups of torch want.
"""

from math import prod

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from bessemer.formulas.layout import Layout

Group = dist.ProcessGroup
_VIEW_OF = {"fsdp": "weights", "expert": "experts", "outer": "experts", "inner": "experts"}


class Mesh:
    """Needs an initialised process group where the layout has more than one rank."""

    def __init__(self, layout: Layout, device: torch.device, rank: int | None = None) -> None:
        world = layout.world
        self.layout, self.device = layout, device
        self.rank = rank if rank is not None else (dist.get_rank() if world > 1 else 0)
        assert 0 <= self.rank < world, f"rank {self.rank} in a layout of {world}"
        sizes = (layout.pipeline, layout.replicate, layout.shard, layout.context, layout.tensor)
        names = ("pipeline", "replicate", "shard", "context", "tensor")
        self._place = dict(zip(names, _coordinates(self.rank, sizes), strict=True))
        fsdp = layout.shard * layout.context
        data = layout.replicate * fsdp
        # Experts are shared by e neighbours of the data ranks; who holds the same ones shards them.
        inner = fsdp // layout.expert if fsdp % layout.expert == 0 else data // layout.expert
        outer = data // layout.expert // inner
        self._place |= dict(
            zip(
                ("outer", "inner", "expert"),
                _coordinates(self.rank // layout.tensor % data, (outer, inner, layout.expert)),
                strict=True,
            )
        )
        self.degree = dict(zip(names, sizes, strict=True)) | {
            "fsdp": fsdp, "outer": outer, "inner": inner, "expert": layout.expert
        }  # fmt: skip
        self._place["fsdp"] = self._place["shard"] * layout.context + self._place["context"]
        self._views: dict[str, DeviceMesh | None] = {}
        if world > 1:
            self._views["axes"] = self._view(names, sizes)
            both = ("pipeline", "replicate", "fsdp", "tensor")
            self._views["weights"] = self._view(both, tuple(self.degree[name] for name in both), keep="fsdp")
            if layout.expert > 1:
                experts = ("pipeline", "outer", "inner", "expert", "tensor")
                degrees = tuple(self.degree[name] for name in experts)
                self._views["experts"] = self._view(experts, degrees, keep="inner")
        self.directions = self._directions() if layout.pipeline > 1 else None

    def place(self, axis: str) -> int:
        """This rank's coordinate on an axis."""
        return self._place[axis]

    def group(self, axis: str) -> Group | None:
        """The ranks that differ from this one on `axis` only; None where there is no other."""
        if self.degree[axis] == 1:
            return None
        view = self._views[_VIEW_OF.get(axis, "axes")]
        assert view is not None
        return view[axis].get_group()

    @property
    def shards_weights(self) -> bool:
        """Whether FSDP has work: data ranks share weights, or repeat them in a way of its own."""
        data_ranks = self.degree["replicate"] * self.degree["fsdp"]
        return data_ranks > 1 and not self.layout.repeats_weights

    def weights(self) -> DeviceMesh:
        """Over which dense weights are sharded, and repeated where there is a replicate axis."""
        view = self._views["weights"]
        assert view is not None
        return view["replicate", "fsdp"] if self.degree["replicate"] > 1 else view["fsdp"]

    def experts(self) -> DeviceMesh | None:
        """The same for the weights of this rank's experts; None where no other rank holds them."""
        if self.layout.expert == 1:
            return self.weights()
        view = self._views["experts"]
        if self.degree["outer"] * self.degree["inner"] == 1:
            return None
        assert view is not None
        return view["outer", "inner"] if self.degree["outer"] > 1 else view["inner"]

    def pipeline_peer(self, place: int) -> int:
        """The rank at `place` of this rank's pipeline."""
        below = self.layout.world // self.layout.pipeline
        return self.rank % below + place * below

    def _view(self, names: tuple[str, ...], sizes: tuple[int, ...], keep: str = "") -> DeviceMesh:
        """Without dims of size 1, but for `keep`, which FSDP wants to see."""
        kept = [(name, size) for name, size in zip(names, sizes, strict=True) if size > 1 or name == keep]
        shape = [size for _, size in kept]
        ranks = torch.arange(prod(shape)).view(shape)
        return DeviceMesh(self.device.type, ranks, mesh_dim_names=tuple(name for name, _ in kept))

    def _directions(self) -> dict[bool, Group]:
        """A group of each pipeline for messages to higher ranks (True) and one for those to lower ones.

        NCCL keeps the messages of a group in order whichever way they go; two ways in one group could
        wait for each other.
        """
        below = self.layout.world // self.layout.pipeline
        found: dict[bool, Group] = {}
        for upwards in (True, False):
            for first in range(below):
                ranks = [first + place * below for place in range(self.layout.pipeline)]
                group = dist.new_group(ranks)
                if self.rank in ranks:
                    found[upwards] = group
        return found


def _coordinates(number: int, sizes: tuple[int, ...]) -> list[int]:
    """Of `number` in an array of `sizes`, last dim fastest."""
    found = []
    for size in reversed(sizes):
        number, place = divmod(number, size)
        found.append(place)
    return found[::-1]
