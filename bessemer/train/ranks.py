"""The processes of one run: joining them, and agreeing before the first collective.

All that is said before training goes through a store (train/meeting.py), as JSON.
The first rank decides and writes; the others hear what it decided, or the error that stopped it, which
every rank then raises and the first one prints (`is_alike`).
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import DistError, DistStoreError, PrefixStore, Store  # type: ignore[attr-defined]

from bessemer.checkpoint.ranks import is_shared
from bessemer.errors import NumericsError, RecipeError, StoppedError, UserError, WorkerError, WriteError
from bessemer.launch.environment import name_interface
from bessemer.launch.world import World
from bessemer.measure.facts import meter_name
from bessemer.model.device import this_device
from bessemer.train.answers import (
    Document,
    as_document,
    attempt,
    check_answer,
    failed,
    first_difference,
    result,
)
from bessemer.train.meeting import meet

_WORK_S = 7 * 86400.0  # of the first rank, which may have data to prepare; when it dies, so does its store
_ANSWER_S = 600.0  # of any rank to what all are asked: one that is this late is taken for lost
_COLLECTIVE = timedelta(minutes=30)  # a rank that is this late is taken for lost
_LOOK_S = 0.05  # between looks at who is through
_LEAVE_S = 30.0  # that the first rank's store outlives its work, for ranks which have something to hear yet
_LEAVE_BROKEN_S = 2.0  # ... after an error of the first rank alone: the others may wait for it in an exchange


class Company:
    """One process. `_Many` is the same for several."""

    hosts = 1
    fellows: tuple[int, ...] = ()  # the other ranks of this machine
    store: Store | None = None
    rank = 0

    @property
    def leads(self) -> bool:
        """Whether this is the first rank of its machine."""
        return all(self.rank < fellow for fellow in self.fellows)

    def first_does(self, what: str, work: Callable[[], Document]) -> Document:
        """What `work` gives on the first rank, on every rank; or its UserError."""
        return work()

    def all_do(self, what: str, work: Callable[[], object]) -> None:
        """`work` on every rank; the first UserError, by rank, is raised on all."""
        work()

    def each_does(self, what: str, work: Callable[[], object], progress: Callable[[], int]) -> None:
        """`work` on every rank, however long it takes; the first UserError is raised on all.

        progress: on the first rank, a number that changes as long as any rank gets on.
        """
        work()

    def all_same(self, what: str, value: str, fix: str) -> None:
        """RecipeError on every rank unless the text `value` is the same on all."""

    def is_alike(self, error: BaseException) -> bool:
        """Whether every rank raises this error, so that the first one tells it for all."""
        return False

    def accelerators(self, device: torch.device) -> tuple[str, ...]:
        """Names of the devices that this machine's ranks use, as NVML has them: on the one that leads."""
        return (meter_name(device),)


ALONE = Company()


class _Many(Company):
    def __init__(self, world: World, store: Store, group_store: Store | None = None) -> None:
        self.world, self.rank, self.store = world, world.rank, store
        self.group_store = group_store  # of torch's process group
        self._shared: UserError | None = None

    def first_does(self, what: str, work: Callable[[], Document], patience_s: float = _WORK_S) -> Document:
        if self.rank == 0:
            self._tell(what, work)
        return self._shared_result(self._get(what, 0, patience_s))

    def all_do(self, what: str, work: Callable[[], object]) -> None:
        self._tell(f"{what}/{self.rank}", as_document(work))
        self.first_does(what, lambda: self._first_error(what), 2 * _ANSWER_S)

    def each_does(self, what: str, work: Callable[[], object], progress: Callable[[], int]) -> None:
        begin_s = time.monotonic()
        self._tell(f"{what}/{self.rank}", as_document(work))
        own_s = time.monotonic() - begin_s
        self.first_does(what, lambda: self._all_through(what, progress, own_s))

    def all_same(self, what: str, value: str, fix: str) -> None:
        self._set(f"same/{what}/{self.rank}", {"value": value})

        def compare() -> Document:
            for rank, answer in enumerate(self._of_all(f"same/{what}")):
                other = answer["value"]
                if other != value:
                    theirs, ours = first_difference(other, value)
                    raise RecipeError(
                        f"the ranks disagree on {what}",
                        found=f"rank {rank}: {theirs}; rank 0: {ours}",
                        wanted=f"the same {what} on every rank",
                        fix=fix,
                    )
            return {}

        self.first_does(f"same/{what}", compare, 2 * _ANSWER_S)

    def is_alike(self, error: BaseException) -> bool:
        alike = isinstance(error, (NumericsError, StoppedError))
        return alike or error is self._shared or is_shared(error)

    def accelerators(self, device: torch.device) -> tuple[str, ...]:
        self._set(f"meter/{self.rank}", {"name": meter_name(device)})
        here = (self.rank, *self.fellows) if self.leads else ()
        names = [self._get(f"meter/{rank}", rank, _ANSWER_S)["name"] for rank in here]
        return tuple(dict.fromkeys(names))

    def see_machines(self) -> None:
        """Which ranks share one: counts and the order of ranks do not tell, as Slurm places them freely."""
        self._set(f"machine/{self.rank}", {"name": _machine()})
        told = self.first_does(
            "machines", lambda: {"names": [row["name"] for row in self._of_all("machine")]}, 2 * _ANSWER_S
        )
        names = told["names"]
        here = [rank for rank, name in enumerate(names) if name == names[self.rank]]
        self.fellows = tuple(rank for rank in here if rank != self.rank)
        self.hosts = len(set(names))

    def leave(self, error: BaseException | None) -> None:
        """The first rank's store goes with its process: not before the others have heard what it says."""
        with suppress(DistError):
            self._set(f"left/{self.rank}", {})
            if self.rank > 0:
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
        for rank, answer in enumerate(self._of_all(what)):
            check_answer(rank, answer)
        return {}

    def _all_through(self, what: str, progress: Callable[[], int], own_s: float) -> Document:
        """WorkerError where nobody gets on for as long as an exchange would wait for a rank, and for as long
        as this one's whole part took."""
        missing, patience_s = list(range(self.world.size)), max(_COLLECTIVE.total_seconds(), own_s)
        seen, since_s = progress(), time.monotonic()
        while missing:
            for rank in [rank for rank in missing if self._has([f"{what}/{rank}"])]:
                check_answer(rank, self._get(f"{what}/{rank}", rank, _ANSWER_S))
                missing.remove(rank)
            if (now := progress()) != seen:
                seen, since_s = now, time.monotonic()
            if missing and time.monotonic() - since_s > patience_s:
                raise _silent(missing[0], self.rank, what, patience_s)
            time.sleep(_LOOK_S)
        return {}

    def _tell(self, key: str, work: Callable[[], Document]) -> None:
        """What came of `work`, for the others to hear; a mistake of ours is raised here as well."""
        try:
            answer = attempt(work)
        except BaseException as error:
            self._set(key, failed(self.rank, error))
            raise
        self._set(key, answer)

    def _shared_result(self, answer: Document) -> Document:
        try:
            return result(answer)
        except UserError as error:
            self._shared = error
            raise

    def _set(self, key: str, value: Document) -> None:
        assert self.store is not None
        self.store.set(key, json.dumps(value))

    def _has(self, keys: list[str]) -> bool:
        assert self.store is not None
        return self.store.check(keys)

    def _of_all(self, what: str) -> Iterator[Document]:
        """What each rank answers, by rank."""
        end_s = time.monotonic() + _ANSWER_S
        for rank in range(self.world.size):
            yield self._get(f"{what}/{rank}", rank, max(0.1, end_s - time.monotonic()))

    def _get(self, key: str, speaker: int, patience_s: float) -> Document:
        assert self.store is not None
        try:
            self.store.wait([key], timedelta(seconds=patience_s))
        except DistStoreError as error:  # a store that is gone is a DistNetworkError
            raise _silent(speaker, self.rank, key, patience_s) from error
        return json.loads(self.store.get(key))  # type: ignore[no-any-return]


@contextmanager
def joined(world: World) -> Iterator[Company]:
    """Be one of the world's ranks: a store and torch's process group, until the block ends."""
    company = met(world)
    with grouped(company):
        yield company


def met(world: World) -> Company:
    """The ranks that can hear each other; whatever fails from now on, they tell."""
    if world.size > world.local_size:
        name_interface(world.host)
    store = meet(world)
    return _Many(world, PrefixStore("run", store), PrefixStore("group", store))


@contextmanager
def grouped(company: Company) -> Iterator[None]:
    """As torch's process group, until the block ends; then they part."""
    assert isinstance(company, _Many), company
    try:
        company.all_do("device", lambda: _take_device(company.world))
        company.see_machines()
        dist.init_process_group(
            dist.get_default_backend_for_device(this_device().type),
            store=company.group_store,
            rank=company.rank,
            world_size=company.world.size,
            timeout=_COLLECTIVE,
        )
        yield
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


def _silent(speaker: int, listener: int, what: str, patience_s: float) -> WorkerError:
    return WorkerError(
        f"rank {speaker} is silent",
        found=f'rank {listener} heard nothing from it on "{what}" in {patience_s:g} s',
        wanted="every rank until the end",
        fix=f"look at what rank {speaker} wrote; run the same command again to go on",
    )


def _take_device(world: World) -> None:
    if this_device().type != "cpu":
        torch.accelerator.set_device_index(world.local_rank)


def _machine() -> str:
    """A name that no other machine has. Two containers of one are two: each sees devices of its own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.is_file() else ''}"
