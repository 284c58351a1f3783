"""The processes of one run: joining them, and agreeing before the first collective.

All that is said before training goes through a store (a small key-value server at the first rank), as JSON.
The first rank decides and writes; the others hear what it decided, or the error that stopped it, which
every rank then raises and the first one prints (`is_alike`).
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from bessemer import errors
from bessemer.errors import NumericsError, RecipeError, StoppedError, UserError, WorkerError, WriteError
from bessemer.launch.environment import name_interface
from bessemer.launch.world import World
from bessemer.measure.facts import meter_name
from bessemer.model.device import this_device

_PATIENCE = timedelta(days=7)  # the first rank may have data to prepare
_COLLECTIVE = timedelta(minutes=30)  # a rank that is this late is taken for lost
_LEAVE_S = 30.0  # that the first rank's store outlives its work, for ranks which have something to hear yet
_LEAVE_BROKEN_S = 2.0  # ... after an error of the first rank alone: the others may wait for it in an exchange
Document = dict[str, Any]


class Company:
    """One process. `_Many` is the same for several."""

    hosts = 1
    store: Store | None = None
    rank = 0

    def first_does(self, what: str, work: Callable[[], Document]) -> Document:
        """What `work` gives on the first rank, on every rank; or its UserError."""
        return work()

    def all_do(self, what: str, work: Callable[[], object]) -> None:
        """`work` on every rank; the first UserError, by rank, is raised on all."""
        work()

    def all_same(self, what: str, value: str, fix: str) -> None:
        """RecipeError on every rank unless the text `value` is the same on all."""

    def is_alike(self, error: BaseException) -> bool:
        """Whether every rank raises this error, so that the first one tells it for all."""
        return False

    def accelerators(self, device: torch.device) -> tuple[str, ...]:
        """Names of the devices that this machine's ranks use, as NVML has them."""
        return (meter_name(device),)


ALONE = Company()


class _Many(Company):
    def __init__(self, world: World, store: Store) -> None:
        self.world, self.rank, self.store = world, world.rank, store
        self.hosts = -(-world.size // world.local_size)
        self._shared: UserError | None = None

    def first_does(self, what: str, work: Callable[[], Document]) -> Document:
        if self.rank == 0:
            self._tell(what, work)
        return self._shared_result(self._get(what))

    def all_do(self, what: str, work: Callable[[], object]) -> None:
        def nothing() -> Document:
            work()
            return {}

        self._tell(f"{what}/{self.rank}", nothing)
        self.first_does(what, lambda: self._first_error(what))

    def all_same(self, what: str, value: str, fix: str) -> None:
        self._set(f"same/{what}/{self.rank}", {"value": value})

        def compare() -> Document:
            for rank in range(1, self.world.size):
                other = self._get(f"same/{what}/{rank}")["value"]
                if other != value:
                    theirs, ours = _first_difference(other, value)
                    raise RecipeError(
                        f"the ranks disagree on {what}",
                        found=f"rank {rank}: {theirs}; rank 0: {ours}",
                        wanted=f"the same {what} on every rank",
                        fix=fix,
                    )
            return {}

        self.first_does(f"same/{what}", compare)

    def is_alike(self, error: BaseException) -> bool:
        # A rank that cannot write its part of a checkpoint tells the others (checkpoint/ranks.py); one that
        # has lost them is alone with that.
        if isinstance(error, WriteError):
            return " lost the others " not in error.problem
        return error is self._shared or isinstance(error, (NumericsError, StoppedError))

    def accelerators(self, device: torch.device) -> tuple[str, ...]:
        host = self.world.rank // self.world.local_size
        self._set(f"meter/{self.rank}", {"host": host, "name": meter_name(device)})
        rows = [self._get(f"meter/{rank}") for rank in range(self.world.size)] if self.rank == 0 else []
        return tuple(dict.fromkeys(row["name"] for row in rows if row["host"] == host))

    def leave(self, error: BaseException | None) -> None:
        """The first rank's store goes with its process: not before the others have heard what it says."""
        with suppress(DistError):
            self._set(f"left/{self.rank}", {})
            if self.rank > 0 or _has_agent():
                return
            end_s = time.monotonic() + self._patience_s(error)
            keys = [f"left/{rank}" for rank in range(1, self.world.size)]
            # Asked again and again: a wait that ends in vain is a warning of torch's on stderr.
            while time.monotonic() < end_s and not self._has(keys):
                time.sleep(0.01)

    def _patience_s(self, error: BaseException | None) -> float:
        if error is None or (self.is_alike(error) and not isinstance(error, WriteError)):
            return _LEAVE_S
        return 0.0 if lost(error) else _LEAVE_BROKEN_S

    def _first_error(self, what: str) -> Document:
        for rank in range(self.world.size):
            answer = self._get(f"{what}/{rank}")
            if rank > 0 and answer.get("error") not in (None, WorkerError.__name__):  # which names it already
                answer["problem"] = f"rank {rank}: {answer['problem']}"
            _result(answer)
        return {}

    def _tell(self, key: str, work: Callable[[], Document]) -> None:
        """What came of `work`, for the others to hear; a mistake of ours is raised here as well."""
        try:
            answer = _attempt(work)
        except BaseException as error:
            self._set(key, _failed(self.rank, error))
            raise
        self._set(key, answer)

    def _shared_result(self, answer: Document) -> Document:
        try:
            return _result(answer)
        except UserError as error:
            self._shared = error
            raise

    def _set(self, key: str, value: Document) -> None:
        assert self.store is not None
        self.store.set(key, json.dumps(value))

    def _has(self, keys: list[str]) -> bool:
        assert self.store is not None
        return self.store.check(keys)

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
    if world.size > world.local_size:
        name_interface(world.host)
    store = _store(world)
    dist.init_process_group(
        dist.get_default_backend_for_device(device.type),
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=_COLLECTIVE,
    )
    company = _Many(world, PrefixStore("run", store))
    try:
        yield company
    except BaseException as error:
        company.leave(error)
        raise
    company.leave(None)
    # Not after an error: others may be in the middle of an exchange, and this process ends anyway.
    dist.destroy_process_group()


def lost(error: BaseException) -> bool:
    """Whether a rank ends because another one has: gloo and NCCL raise at those that wait for it."""
    return isinstance(error, DistError) or (type(error) is RuntimeError and "gloo" in str(error))


def lost_error(rank: int, error: BaseException) -> WorkerError:
    return WorkerError(
        f"rank {rank} lost another rank",
        found=str(error).strip().splitlines()[0],
        wanted="every rank until the end",
        fix="look for the rank that ended first, and why; run the same command again to go on",
    )


def _has_agent() -> bool:
    """Whether torchrun's agent serves the store, and lives longer than any rank."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(world: World) -> Store:
    """That of torchrun's agent, where there is one; else the first rank's own."""
    first = world.rank == 0 and not _has_agent()
    store = TCPStore(world.host, world.port, world.size, is_master=first, wait_for_workers=False)
    if first or not _has_agent():
        return store  # each attempt has its own
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


def _failed(rank: int, error: BaseException) -> Document:
    return {
        "error": WorkerError.__name__,
        "problem": f"rank {rank} failed: {type(error).__name__}",
        "found": str(error) or "no text",
        "wanted": "no exception",
        "fix": f"look at what rank {rank} wrote; run the same command again to go on",
    }


def _first_difference(one: str, other: str) -> tuple[str, str]:
    """The first lines in which two texts differ."""
    pairs = zip_longest(one.splitlines(), other.splitlines(), fillvalue="(nothing)")
    return next((pair for pair in pairs if pair[0] != pair[1]), (one, other))
