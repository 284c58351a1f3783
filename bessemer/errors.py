"""Errors that a user can act on. Each carries problem, found, wanted, fix; the CLI prints them bare.

    UserError                exit  meaning
    ├── WorkerError             1  a process of the run ended without saying why, or by our own mistake
    ├── RecipeError             2  usage, recipe, or a recipe changed under a run
    ├── RefusedError            3  refused before start: memory, disk, run in use
    ├── DataError              65  bad or vanished data
    ├── CheckpointError        65  no checkpoint is whole
    ├── WriteError             73  cannot write
    ├── StoppedError           75  stopped, saved, run again to go on
    └── NumericsError          77  a loss or gradient was not finite

Our own mistakes are not here: they are `assert`s with the values in them.
"""


class UserError(Exception):
    """A mistake that the user can mend. All four texts are required, so none is forgotten."""

    exit_code = 2

    def __init__(self, problem: str, *, found: str, wanted: str, fix: str) -> None:
        super().__init__(problem)
        self.problem, self.found, self.wanted, self.fix = problem, found, wanted, fix

    def __str__(self) -> str:
        return f"{self.problem}\n  found:  {self.found}\n  wanted: {self.wanted}\n  fix:    {self.fix}"


class WorkerError(UserError):
    """A process among several was killed, fell silent, or met a mistake of ours; its rank is named."""

    exit_code = 1


class RecipeError(UserError):
    exit_code = 2


class RefusedError(UserError):
    exit_code = 3


class DataError(UserError):
    exit_code = 65


class CheckpointError(UserError):
    exit_code = 65


class WriteError(UserError):
    exit_code = 73


class StoppedError(UserError):
    """Not a mistake: the run was asked to stop, did so at a step border, and saved."""

    exit_code = 75


class NumericsError(UserError):
    exit_code = 77
