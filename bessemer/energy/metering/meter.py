"""Joules and watts of a run on this machine, each with its band and how it was come by.

Part by part the best reader counts (energy/readers/): of each accelerator NVML's or amdsmi's energy counter,
else its watts, else its utilisation times its limit, else the limit's band; of the CPU and its memory RAPL,
else watts per core times the time that this run kept cores busy. Where something reads the whole node, that
is the sum, and what the parts leave of it is "other". Else the sum is that of the parts, without fans,
disks, network and power supply: the account says which (energy/accounting/account.py).
A reader that fails within a run leaves a gap: bridged by the next below it, counted with its seconds
(energy/readers/ladder.py). What nothing can tell makes the sum None, and keeps it so; never 0.
One meter per machine: it reads whole packages, so a second one would count them twice.
Cost: 0.2 ms a reading with RAPL of two packages, 0.03 ms without (2 cores, 2026-11-28); a call of NVML more
for each accelerator.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bessemer.energy.power import Band
from bessemer.energy.readers.amd import open_amd
from bessemer.energy.readers.assumed import AssumedCpu, assumed_board, busy_seconds
from bessemer.energy.readers.ladder import Gaps, Ladder
from bessemer.energy.readers.nvml import open_nvml
from bessemer.energy.readers.rapl import POWERCAP, open_rapl
from bessemer.energy.readers.supply import NodeSources, open_node
from bessemer.energy.reading import (
    ACCELERATOR,
    NODE,
    OTHER,
    ZERO,
    Drawn,
    EnergyReading,
    PowerReading,
    Reader,
    Tally,
    total,
)

__all__ = ["POWERCAP", "ZERO", "EnergyReading", "NodeSources", "PowerMeter", "PowerReading", "busy_seconds"]

_REST_ERROR = 0.25  # of what the node draws beside its parts, where its meter fails for a while


class PowerMeter:
    """Adds up what this machine uses, from where an earlier attempt stopped."""

    def __init__(
        self,
        start: EnergyReading = ZERO,
        *,
        cores: int = 1,
        accelerators: Sequence[int | str] = (),
        powercap: Path = POWERCAP,
        others_s: Callable[[], float] = lambda: 0.0,
        node: NodeSources | None = None,
        device_name: str | None = None,
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        """accelerators: those that this machine's ranks use, by NVML's UUID or index. torch's index is
        another one where CUDA_VISIBLE_DEVICES is set. others_s: CPU time of this machine's other ranks,
        from which energy is assumed where no counter is. device_name: of the accelerators, for the band of
        those that nothing reads. earlier: `columns` of the attempt before."""
        known = earlier or {}
        self.gaps = Gaps(int(known.get("energy_gaps") or 0), float(known.get("energy_gap_s") or 0.0))
        boards = _boards(accelerators, device_name)
        self.missing = [f"accelerator {device}" for device in accelerators if device not in boards]
        self._parts = [Ladder(readers, self.gaps) for readers in boards.values()]
        rapl, hint = open_rapl(powercap)
        self.hints = [hint] if hint else []
        assumed = AssumedCpu(cores, lambda: busy_seconds() + others_s())
        self._parts.append(Ladder([rapl, assumed] if rapl else [assumed], self.gaps))
        whole = open_node(NodeSources() if node is None else node)
        self._node = None if whole is None else Ladder([whole], self.gaps)
        self._rest_j = self._rest_s = 0.0  # of the node beside its parts, and in how long
        self._tally = Tally(known.get("energy_parts_j"))
        self._total = start
        self._last_s = time.monotonic()

    @property
    def parts(self) -> list[dict[str, str]]:
        """What is read, for `doctor` and for receipts."""
        ladders = [*([self._node] if self._node else []), *self._parts]
        readers = [ladder.rungs[0] for ladder in ladders]
        return [{"name": one.name, "basis": one.basis, "component": one.component} for one in readers]

    @property
    def reads_node(self) -> bool:
        """Whether something reads the whole machine."""
        return self._node is not None

    @property
    def columns(self) -> dict[str, Any]:
        """What a row of metrics has beside the sum, since the run began."""
        parts, gaps = self.breakdown, self.gaps
        return {"energy_parts_j": parts, "energy_gaps": gaps.count, "energy_gap_s": gaps.seconds}

    @property
    def breakdown(self) -> dict[str, Any]:
        """Joules by component since the run began: {component: {value, low, high, basis, by_basis}}."""
        return self._tally.to_json()

    def read(self) -> PowerReading:
        """Energy so far and mean power since the last reading. Call this or `keep_up` at least once a minute.

        With `others_s` only where it has just been told: CPU time that comes late, all at once, is more than
        the cores can have spent since then.
        """
        now_s = time.monotonic()
        seconds, self._last_s = now_s - self._last_s, now_s
        parts = self._advance_parts(seconds)
        spent = parts if self._node is None else self._advance_node(self._node, parts, seconds)
        self._total = self._total.plus(spent)
        drawn_j = None if spent is None else spent.joules.value
        power_w = drawn_j / seconds if drawn_j is not None and seconds > 0 else None
        return PowerReading(power_w, self._total, drawn_j, seconds)

    def keep_up(self) -> None:
        """Between readings: a RAPL counter may wrap within minutes, and shows one wrap at most."""
        for ladder in (*self._parts, *([self._node] if self._node else [])):
            ladder.keep_up()

    def close(self) -> None:
        """Ends what reads in a process of its own."""
        for ladder in (*self._parts, *([self._node] if self._node else [])):
            ladder.close()

    def _advance_parts(self, seconds: float) -> Drawn | None:
        """Their sum; None where one of them is not known."""
        drawn: list[Drawn] = []
        known = not self.missing
        if self.missing:
            self._tally.lose(ACCELERATOR)
        for ladder in self._parts:
            told = ladder.advance(seconds)
            if told is None:
                self._tally.lose(ladder.component)
                known = False
                continue
            for part in told:
                self._tally.add(part)
            drawn += told
        return total(drawn, NODE) if known else None

    def _advance_node(self, node: Ladder, parts: Drawn | None, seconds: float) -> Drawn | None:
        told = node.advance(seconds)
        whole = told[0] if told else self._bridged(parts, seconds)
        if whole is None:
            self._tally.lose(NODE)
            self._tally.lose(OTHER)
            return None
        self._tally.add(whole)
        if parts is None:
            self._tally.lose(OTHER)
            return whole
        rest = whole.joules.value - parts.joules.value
        if told:
            self._rest_j, self._rest_s = self._rest_j + rest, self._rest_s + seconds
        self._tally.add(_rest(whole, parts))
        return whole

    def _bridged(self, parts: Drawn | None, seconds: float) -> Drawn | None:
        """While the node's meter fails: its parts, and what it has drawn beside them on average so far."""
        if parts is None or self._rest_s <= 0.0:
            return None
        rest = Band.around(max(0.0, self._rest_j / self._rest_s * seconds), _REST_ERROR)
        return total([parts, Drawn(OTHER, rest, "modelled")], NODE)


def _boards(accelerators: Sequence[int | str], device_name: str | None) -> dict[int | str, list[Reader]]:
    """The readers of each accelerator that anything can tell something of."""
    found = open_nvml(accelerators)
    found |= open_amd([device for device in accelerators if device not in found])
    for device in accelerators:
        assumed = assumed_board(device, device_name)
        if device not in found and assumed is not None:
            found[device] = [assumed]
    return {device: found[device] for device in accelerators if device in found}


def _rest(whole: Drawn, parts: Drawn) -> Drawn:
    """What the parts leave of the node. Its band is that of a difference: each end against the other's."""
    one, other = whole.joules, parts.joules
    band = Band(one.value - other.value, one.low - other.high, one.high - other.low)
    return Drawn(OTHER, band, total([whole, parts], OTHER).basis)
