"""One part of the machine, read by the best that answers; where that fails, by the next below it.

An interval whose best reader failed is a gap. It is bridged by the next that answers and carries that one's
basis and band, so the sum stays known and says how weak it has become; the gap is counted with its seconds.
Where nothing answers, the interval is unknown. Only what failed is asked again lower down: a call to a
driver costs up to a millisecond.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bessemer.energy.reading import Drawn, Reader


@dataclass
class Gaps:
    """count: stretches in which a meter did not answer; seconds: their length in all, of each meter."""

    count: int = 0
    seconds: float = 0.0


class Ladder:
    def __init__(self, rungs: Sequence[Reader], gaps: Gaps) -> None:
        """rungs: those that worked when they were opened, best first."""
        assert rungs, "a part that nothing reads is missing, not a ladder"
        self.rungs, self._gaps = rungs, gaps
        self._in_gap = False

    @property
    def component(self) -> str:
        return self.rungs[0].component

    def advance(self, seconds: float) -> list[Drawn] | None:
        drawn = None
        for number, rung in enumerate(self.rungs):
            drawn = rung.advance(seconds)
            if number == 0:
                self._mark(drawn is None, seconds)
            if drawn is not None:
                break
        return drawn

    def keep_up(self) -> None:
        for rung in self.rungs:
            rung.keep_up()

    def close(self) -> None:
        for rung in self.rungs:
            rung.close()

    def _mark(self, failed: bool, seconds: float) -> None:
        if failed:
            self._gaps.count += not self._in_gap
            self._gaps.seconds += seconds
        self._in_gap = failed
