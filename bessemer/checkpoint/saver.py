"""Checkpoints while training goes on: copy to the host, return, and let a thread write.

The caller stands still for the copy (at the speed of the link; then pinned host memory, which is kept for
the next save) and for what is left of the save before: one is in flight at most. Cost: host memory for
what this rank writes, 12 bytes a parameter with AdamW in fp32. asynchronous=False takes none, and the
caller waits for the disk. A kill in between leaves a folder without a manifest, which counts for nothing.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]

from bessemer.checkpoint.parts import Part, Parts, parts_of
from bessemer.checkpoint.ranks import PATIENCE_S, Talk, these_ranks
from bessemer.checkpoint.write import prune, write_parts
from bessemer.model.pieces import Pieces


class Saver:
    """Saves the checkpoints of one stage; every rank has one, and calls it in the same order."""

    def __init__(
        self,
        stage: Path,
        keep: int,
        *,
        rank: int = 0,
        world: int = 1,
        store: Store | None = None,
        asynchronous: bool = True,
        timeout_s: float = PATIENCE_S,
    ) -> None:
        self.stalled_s = 0.0  # that the caller stood still in the last save
        self._stage, self._keep = stage, keep
        self._ranks = these_ranks(rank, world, store, timeout_s)
        # Not a daemon: the interpreter waits for it at its end, so that no save is lost there.
        self._thread = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._flight: Future[Path] | None = None
        self._landed: list[Path] = []
        self._host: dict[str, Tensor] = {}

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        layout: Mapping[str, Any],
        pieces: Pieces | None = None,
    ) -> None:
        """Begin the checkpoint of `step`. Raises what went wrong with the one before, on every rank."""
        begin_s = time.perf_counter()
        self.wait()
        talk = Talk(self._ranks, step)
        try:
            parts = parts_of(model, optimizer, pieces)
            if self._thread is not None:
                parts = self._copied(parts)
        except Exception as error:
            talk.fail(error)
            raise
        # What the run carries on goes on changing, like the weights.
        told = deepcopy(dict(state)), dict(layout)
        if self._thread is None:
            self._landed.append(self._write(step, parts, *told, talk))
        else:
            self._flight = self._thread.submit(self._write, step, parts, *told, talk)
        self.stalled_s = time.perf_counter() - begin_s

    def finished(self) -> list[Path]:
        """Folders that have become whole since this was last asked; never waits, never raises."""
        if self._flight is not None and self._flight.done() and self._flight.exception() is None:
            self.wait()
        landed, self._landed = self._landed, []
        return landed

    def wait(self) -> None:
        """Until the save in flight is whole. Raises what the thread raised (WriteError), once."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._landed.append(flight.result())

    def close(self) -> None:
        """The last save too is whole, or its error is raised."""
        try:
            self.wait()
        finally:
            self._host.clear()
            if self._thread is not None:
                self._thread.shutdown()

    def abandon(self) -> None:
        """End at once, in a failure among ranks: one that is lost would be waited for until the timeout.
        A save that the others have not finished by now is none; nothing is written after the return."""
        self._ranks.abandoned.set()
        with suppress(Exception):  # the failure itself is what is told
            self.close()

    def _write(
        self, step: int, parts: Parts, state: dict[str, Any], layout: dict[str, Any], talk: Talk
    ) -> Path:
        folder = write_parts(self._stage, step, parts, state, layout, talk)
        if talk.rank == 0:
            prune(self._stage, self._keep, step)
        return folder

    def _copied(self, parts: Parts) -> Parts:
        """In host memory, as of now, whatever the device still has to compute."""
        copies: Parts = {
            kind: {name: Part(self._copy(name, part.tensor), part.place) for name, part in group.items()}
            for kind, group in parts.items()
        }
        for device in {part.tensor.device for group in parts.values() for part in group.values()}:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        return copies

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        is_cuda = tensor.device.type == "cuda"
        host = self._host.get(name)
        if host is None or host.shape != tensor.shape or host.dtype != tensor.dtype:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=is_cuda)
            self._host[name] = host
        return host.copy_(tensor, non_blocking=is_cuda)
