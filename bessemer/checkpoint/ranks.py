"""How the ranks that write one checkpoint hear of each other: through a store, without a collective.

A checkpoint is written by a thread, beside the collectives of the steps that go on; one from the thread
would be mixed up with them. What is said is JSON, under save/<number>/…:

    folder    rank 0: the folder is there, and swept
    <rank>    that rank's files are written: {name: {bytes, xxh3_128}}
    whole     rank 0: so is the manifest

or, under each, the error that came instead, which then every rank raises (`is_shared`). All of it over a
connection of its own: a wait holds up everything else on one (torch 2.13), and the training thread may wait
for long.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch.distributed import DistError, HashStore, Store  # type: ignore[attr-defined]

from bessemer.errors import UserError, WriteError

PATIENCE_S = 1800.0  # a rank that is this late with its files is taken for lost
_FOLDER, _WHOLE = "folder", "whole"
_LONGEST_PAUSE_S = 0.05
_SHARED = "is_shared"  # attribute of an error


@dataclass(frozen=True)
class Ranks:
    """Who writes together. The store belongs to one attempt of a run (a PrefixStore will do)."""

    rank: int = 0
    world: int = 1
    store: Store = field(default_factory=HashStore)
    timeout_s: float = PATIENCE_S
    abandoned: threading.Event = field(default_factory=threading.Event)  # set: wait for no rank any more


def is_shared(error: BaseException) -> bool:
    """Whether a rank told it to the others, and each raises it."""
    return isinstance(error, WriteError) and getattr(error, _SHARED, False)


def these_ranks(rank: int, world: int, store: Store | None, timeout_s: float = PATIENCE_S) -> Ranks:
    """With a connection of their own. Without a store there is one rank, which speaks to itself."""
    assert 0 <= rank < world, (rank, world)
    assert store is not None or world == 1, f"{world} ranks need a store to write one checkpoint"
    if store is None:
        return Ranks(rank, world, HashStore(), timeout_s)
    return Ranks(rank, world, store.clone(), timeout_s)  # type: ignore[attr-defined]  # not in torch's stubs


class Talk:
    """What the ranks say about one checkpoint. Every rank makes one for each save, in the same order."""

    def __init__(self, ranks: Ranks, step: int) -> None:
        self.rank = ranks.rank
        self._ranks, self._step = ranks, step
        self._heard: WriteError | None = None
        self._is_lost = False
        with self._reached():
            # Each rank counts for itself: one step may be saved twice, and by two stages of one run.
            self._number = ranks.store.add(f"save/count/{ranks.rank}", 1)

    def open_folder(self) -> None:
        """Rank 0: the others may write."""
        self._say(_FOLDER, {})

    def wait_for_folder(self) -> None:
        self._hear(_FOLDER, 0)

    def tell_files(self, files: dict[str, Any]) -> None:
        self._say(str(self.rank), {"files": files})

    def all_files(self) -> dict[str, Any]:
        """Rank 0: the files of every rank, once all are written."""
        files = {
            name: file
            for rank in range(self._ranks.world)
            for name, file in self._hear(str(rank), rank)["files"].items()
        }
        self._forget(self._number - 1)  # all ranks are in this save, so none listens to the one before
        return files

    def close(self) -> None:
        """Rank 0: the checkpoint is whole."""
        self._say(_WHOLE, {})

    def wait_until_whole(self) -> None:
        self._hear(_WHOLE, 0)

    def fail(self, error: Exception) -> None:
        """Let the others know why this rank has given up."""
        texts = _texts(error)
        if error is not self._heard:
            texts["problem"] = f"rank {self.rank}: {texts['problem']}"
        shared = is_shared(error) if error is self._heard else not self._is_lost
        # The others may be gone, and the store with them: the error to raise is the first one.
        with suppress(WriteError):
            for key in (_FOLDER, _WHOLE) if self.rank == 0 else (str(self.rank),):
                self._say(key, {"error": texts, _SHARED: shared})
            setattr(error, _SHARED, shared)

    def _say(self, key: str, message: dict[str, Any]) -> None:
        with self._reached():
            self._ranks.store.set(self._key(key), json.dumps({"step": self._step, **message}))

    def _hear(self, key: str, speaker: int) -> dict[str, Any]:
        end_s, pause_s = time.monotonic() + self._ranks.timeout_s, 0.001
        with self._reached():
            while not self._ranks.store.check([self._key(key)]):
                if self._ranks.abandoned.is_set():
                    raise self._lost("the run has ended")
                if time.monotonic() > end_s:
                    raise self._lost(f"nothing from rank {speaker} in {self._ranks.timeout_s:g} s")
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            message: dict[str, Any] = json.loads(self._ranks.store.get(self._key(key)))
        assert message["step"] == self._step, f"rank {speaker} saves {message['step']}, and {self._step} here"
        if "error" in message:
            self._heard = WriteError(**message["error"])
            setattr(self._heard, _SHARED, message[_SHARED])
            raise self._heard
        return message

    def _forget(self, number: int) -> None:
        with self._reached():
            for key in (_FOLDER, _WHOLE, *map(str, range(self._ranks.world))):
                self._ranks.store.delete_key(self._key(key, number))

    def _key(self, key: str, number: int | None = None) -> str:
        return f"save/{self._number if number is None else number}/{key}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except DistError as error:
            raise self._lost(f"{type(error).__name__}: {error}".splitlines()[0]) from error

    def _lost(self, found: str) -> WriteError:
        self._is_lost = True
        return WriteError(
            f"rank {self.rank} lost the others while they wrote the checkpoint of step {self._step}",
            found=found,
            wanted=f"word from each of {self._ranks.world} ranks",
            fix="look into the logs of the other ranks, then run the same command again: "
            "it goes on from the checkpoint before",
        )


def _texts(error: Exception) -> dict[str, str]:
    if isinstance(error, UserError):
        return {key: getattr(error, key) for key in ("problem", "found", "wanted", "fix")}
    return {
        "problem": "could not write its part of a checkpoint",
        "found": f"{type(error).__name__}: {error}",
        "wanted": "every rank's files on the disk",
        "fix": "look into the log of this rank; with --debug it holds a traceback",
    }
