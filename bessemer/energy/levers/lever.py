"""A lever: something set for the whole machine, that we may move and must put back."""

from typing import Any, Protocol

from bessemer.energy.levers.board import Board
from bessemer.energy.levers.governor import Governor

Values = dict[str, Any]  # JSON: what a lever was at, as only its own kind understands it


class Lever(Protocol):
    kind: str
    name: str  # among those of its kind on this machine

    def read(self) -> Values:
        """What it is at now. RefusedError where it cannot be told."""

    def put(self, values: Values) -> None:
        """Back to what `read` told. RefusedError where that is not allowed, or the device is gone."""


def lever_of(kind: str, name: str) -> Lever:
    """One that was written down, by another process perhaps."""
    return Board(name) if kind == Board.kind else Governor()
