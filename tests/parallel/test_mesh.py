"""Places and groups of every rank, against a plain array of rank numbers."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from making_layouts import as_rank, layout_of
from making_ranks import Pool, Result

from bessemer.formulas.layout import Layout
from bessemer.parallel.mesh import Mesh

NAMES = ("pipeline", "replicate", "shard", "context", "tensor")
LAYOUTS = [
    "replicate=8",
    "shard=8",
    "tensor=2,pipeline=2,shard=2",
    "replicate=2,shard=2,context=2",
    "pipeline=4,tensor=2,schedule=zbv",
    "replicate=2,context=2,tensor=2",
    "shard=4,tensor=2,expert=2",
    "shard=2,context=2,tensor=2,expert=4",
    "replicate=2,shard=4,expert=2",
    "replicate=4,shard=2,expert=2",
    "replicate=2,shard=2,context=2,expert=8",
    "pipeline=2,shard=2,context=2,expert=2",
]
# Experts lie on e neighbours of the data ranks: (outer, inner) of who holds the same ones.
REPEATED = {
    "shard=4,tensor=2,expert=2": (1, 2),
    "shard=2,context=2,tensor=2,expert=4": (1, 1),
    "replicate=2,shard=4,expert=2": (2, 2),
    "replicate=4,shard=2,expert=2": (4, 1),
    "replicate=2,shard=2,context=2,expert=8": (1, 1),
    "pipeline=2,shard=2,context=2,expert=2": (1, 2),
    "replicate=2,shard=2,expert=2": (2, 1),
}


def axes_of(layout: Layout) -> tuple[str, ...]:
    return (*NAMES, "fsdp") + (("outer", "inner", "expert") if layout.expert > 1 else ())


def expected_groups(layout: Layout, text: str) -> dict[str, set[tuple[int, ...]]]:
    """By axis, from an array of rank numbers."""
    sizes = [getattr(layout, name) for name in NAMES]
    ranks = torch.arange(layout.world).view(sizes)
    found = {name: ranks.movedim(dim, -1).reshape(-1, sizes[dim]) for dim, name in enumerate(NAMES)}
    fsdp = layout.shard * layout.context
    found["fsdp"] = ranks.view(-1, fsdp, layout.tensor).movedim(1, -1).reshape(-1, fsdp)
    if layout.expert > 1:
        outer, inner = REPEATED[text]
        by_expert = ranks.view(layout.pipeline, outer, inner, layout.expert, layout.tensor)
        for dim, name in enumerate(("outer", "inner", "expert"), start=1):
            found[name] = by_expert.movedim(dim, -1).reshape(-1, by_expert.shape[dim])
    return {name: {tuple(row) for row in groups.tolist()} for name, groups in found.items()}


@pytest.mark.parametrize("text", LAYOUTS)
def test_every_rank_is_in_one_group_of_each_axis(text: str) -> None:
    layout = layout_of(text)
    axes = axes_of(layout)
    seen: dict[str, list[tuple[int, ...]]] = {axis: [] for axis in axes}
    for rank in range(layout.world):
        with as_rank(layout, rank) as mesh:
            for axis in axes:
                group = mesh.group(axis)
                members = (rank,) if group is None else tuple(dist.get_process_group_ranks(group))
                assert (group is None) == (mesh.degree[axis] == 1)
                assert members[mesh.place(axis)] == rank, f"{rank} on {axis}: {mesh.place(axis)} of {members}"
                seen[axis].append(members)
    for axis, groups in expected_groups(layout, text).items():
        assert set(seen[axis]) == groups, axis
        # Each group is told by each of its members: so nobody is in two.
        assert Counter(seen[axis]) == {group: len(group) for group in groups}, axis


@pytest.mark.parametrize("text", LAYOUTS)
def test_weights_are_sharded_over_those_who_compute_with_the_same(text: str) -> None:
    layout = layout_of(text)
    for rank in range(layout.world):
        with as_rank(layout, rank) as mesh:
            dense, experts = mesh.weights(), mesh.experts()
            data = {
                other
                for other in range(layout.world)
                if all(_place(layout, other, name) == mesh.place(name) for name in ("pipeline", "tensor"))
            }
            assert set(dense.mesh.flatten().tolist()) == data
            assert dense.ndim == 1 + (layout.replicate > 1)
            if layout.expert == 1:
                assert experts is dense or experts == dense
                continue
            same = {
                other for other in data if _data_place(layout, other) % layout.expert == mesh.place("expert")
            }
            assert same == ({rank} if experts is None else set(experts.mesh.flatten().tolist()))


@pytest.mark.parametrize("text", ["tensor=2,pipeline=2,shard=2", "pipeline=4,tensor=2,schedule=zbv"])
def test_a_pipeline_has_a_group_for_each_direction(text: str) -> None:
    layout = layout_of(text)
    below = layout.world // layout.pipeline
    for rank in range(layout.world):
        with as_rank(layout, rank) as mesh:
            line = [rank % below + below * place for place in range(layout.pipeline)]
            assert [mesh.pipeline_peer(place) for place in range(layout.pipeline)] == line
            assert mesh.directions is not None
            for group in mesh.directions.values():
                assert dist.get_process_group_ranks(group) == line
            assert mesh.directions[True] is not mesh.directions[False]


def test_one_process_needs_no_process_group() -> None:
    mesh = Mesh(Layout(), torch.device("cpu"))
    assert (mesh.rank, mesh.group("shard"), mesh.directions, mesh.shards_weights) == (0, None, None, False)


def sum_over(rank: int, text: str) -> Result:
    """For each axis the sum of the members' rank numbers, as the group itself finds it."""
    layout = layout_of(text)
    mesh, found = Mesh(layout, torch.device("cpu")), {}
    for axis in axes_of(layout):
        number, group = torch.tensor(float(rank)), mesh.group(axis)
        if group is not None:
            dist.all_reduce(number, group=group)
        found[axis] = float(number)
    return found


@pytest.mark.parametrize("text", ["pipeline=2,shard=2", "replicate=2,shard=2,expert=2", "context=2,tensor=2"])
def test_real_groups_are_those_of_the_fake_ones(text: str, ranks: Pool) -> None:
    layout = layout_of(text)
    found = ranks.run(sum_over, layout.world, text=text)
    for axis, groups in expected_groups(layout, text).items():
        for group in groups:
            assert [found[rank][axis] for rank in group] == [sum(group)] * len(group), axis


def _place(layout: Layout, rank: int, name: str) -> int:
    sizes = [getattr(layout, each) for each in NAMES]
    return int((torch.arange(layout.world).view(sizes) == rank).nonzero()[0, NAMES.index(name)])


def _data_place(layout: Layout, rank: int) -> int:
    """Among the ranks that differ in rows or tokens."""
    return rank // layout.tensor % (layout.data * layout.context)
