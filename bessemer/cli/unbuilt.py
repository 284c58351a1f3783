"""Verbs that are promised and not built yet: named in the help, refused when called, never faked."""

from bessemer.errors import RecipeError

# Verb: (what it will do, what serves until then).
UNBUILT = {
    "dashboard": (
        "a live page of the runs in a folder",
        "`bessemer report RUN` writes a page with the curves so far, also while the run goes on",
    ),
    "launch": (
        "the same run on many machines",
        "`bessemer run RECIPE` trains on this machine, `bessemer plan RECIPE --cluster 64xH100` plans many",
    ),
}


ACCOUNT = (
    "the energy account of a run",
    "`bessemer report RUN` shows the energy of a run, `bessemer plan RECIPE` predicts it",
)


def refusal(verb: str) -> RecipeError:
    """Of an unbuilt verb, or of `energy RUN`, of which only `energy validate` is built."""
    purpose, instead = UNBUILT.get(verb, ACCOUNT)
    return RecipeError(
        f"`bessemer {verb}` is not built yet in this version",
        found=f"{verb}: {purpose}",
        wanted="a command that is built: see `bessemer --help`",
        fix=instead,
    )
