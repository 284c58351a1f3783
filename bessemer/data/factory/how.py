"""How a build works, as the command line says it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class How:
    """How to build, where there is something to build.

    None of it changes a byte of the result, but for what a time-out leaves out, and what a database holds
    when it is read anew.
    """

    engine: str = "local"  # or "ray"
    workers: int | None = None  # processes; None: one a core
    timeout_s: float = 60.0  # for one document
    allow_code: bool = False  # the recipe's own function may run
    strict: bool = False  # a row that cannot be read ends the build
    refresh: bool = False  # read databases anew
