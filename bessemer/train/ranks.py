"""The processes of one run: joining them, and agreeing before the first collective.

All that is said before training goes through a store (a small key-value server at the first rank), as JSON.
The first rank decides and writes; the others hear what it decided, or the error that stopped it, which
every rank then raises and one prints.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from bessemer import errors
from bessemer.errors import RecipeError, UserError
from bessemer.launch.world import World
from bessemer.measure.facts import meter_name
from bessemer.model.device import this_device

_PATIENCE = timedelta(days=7)  # the first rank may have data to prepare
_COLLECTIVE = timedelta(minutes=30)  # a rank that is this late is taken for lost
Document = dict[str, Any]


class Company:
    """One process. `_Many` is the same for several."""

    hosts = 1
    store: Store | None = None
    rank = 0

    def first_does(self, what: str, work: Callable[[], Document]) -> Document:
        """What `work` gives on the first rank, on every rank; or its UserError."""
        return work()

    def all_do(self, what: str, work: Callable[[], None]) -> None:
        """`work` on every rank; the first UserError, by rank, is raised on all."""
        work()

    def all_same(self, what: str, value: str, fix: str) -> None:
        """RecipeError on every rank unless `value` is the same on all."""

    def accelerators(self, device: torch.device) -> tuple[str, ...]:
        """Names of the devices that this machine's ranks use, as NVML has them."""
        return (meter_name(device),)


ALONE = Company()


class _Many(Company):
    def __init__(self, world: World, store: Store) -> None:
        self.world, self.rank, self.store = world, world.rank, store
        self.hosts = -(-world.size // world.local_size)

    def first_does(self, what: str, work: Callable[[], Document]) -> Document:
        if self.rank == 0:
            answer = _attempt(work)
            self._set(what, answer)
        else:
            answer = self._get(what)
        return _result(answer)

    def all_do(self, what: str, work: Callable[[], None]) -> None:
        def nothing() -> Document:
            work()
            return {}

        self._set(f"{what}/{self.rank}", _attempt(nothing))
        self.first_does(what, lambda: self._first_error(what))

    def all_same(self, what: str, value: str, fix: str) -> None:
        self._set(f"same/{what}/{self.rank}", {"value": value})

        def compare() -> Document:
            for rank in range(1, self.world.size):
                other = self._get(f"same/{what}/{rank}")["value"]
                if other != value:
                    raise RecipeError(
                        f"the ranks disagree on {what}",
                        found=f"rank {rank}: {other}; rank 0: {value}",
                        wanted=f"the same {what} on every rank",
                        fix=fix,
                    )
            return {}

        self.first_does(f"same/{what}", compare)

    def accelerators(self, device: torch.device) -> tuple[str, ...]:
        host = self.world.rank // self.world.local_size
        self._set(f"meter/{self.rank}", {"host": host, "name": meter_name(device)})
        rows = [self._get(f"meter/{rank}") for rank in range(self.world.size)] if self.rank == 0 else []
        return tuple(dict.fromkeys(row["name"] for row in rows if row["host"] == host))

    def _first_error(self, what: str) -> Document:
        for rank in range(self.world.size):
            _result(self._get(f"{what}/{rank}"))
        return {}

    def _set(self, key: str, value: Document) -> None:
        assert self.store is not None
        self.store.set(key, json.dumps(value))

    def _get(self, key: str) -> Document:
        assert self.store is not None
        self.store.wait([key], _PATIENCE)
        return json.loads(self.store.get(key))  # type: ignore[no-any-return]


@contextmanager
def joined(world: World) -> Iterator[Company]:
    """Be one of the world's ranks: a store and torch's process group, until the block ends."""
    device = this_device()
    if device.type != "cpu":
        torch.accelerator.set_device_index(world.local_rank)
    store = _store(world)
    dist.init_process_group(
        dist.get_default_backend_for_device(device.type),
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=_COLLECTIVE,
    )
    yield _Many(world, PrefixStore("run", store))
    # Not after an error: others may be in the middle of an exchange, and this process ends anyway.
    dist.destroy_process_group()


def digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _store(world: World) -> Store:
    """That of torchrun's agent, where there is one; else the first rank's own."""
    from_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    first = world.rank == 0 and not from_agent
    store = TCPStore(world.host, world.port, world.size, is_master=first, wait_for_workers=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # what an attempt before said is not for us
    return PrefixStore(f"attempt-{attempt}", store)


def _attempt(work: Callable[[], Document]) -> Document:
    try:
        return {"value": work()}
    except UserError as error:
        texts = {key: getattr(error, key) for key in ("problem", "found", "wanted", "fix")}
        return {"error": type(error).__name__, **texts}


def _result(answer: Document) -> Document:
    """The value; or the error, raised here as where it arose."""
    if "error" not in answer:
        return answer["value"]  # type: ignore[no-any-return]
    kind = getattr(errors, answer["error"])
    raise kind(answer["problem"], found=answer["found"], wanted=answer["wanted"], fix=answer["fix"])
