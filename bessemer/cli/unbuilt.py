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


def refusal(verb: str) -> RecipeError:
    purpose, instead = UNBUILT[verb]
    return RecipeError(
        f"`bessemer {verb}` is not built yet in this version",
        found=f"{verb}: {purpose}",
        wanted="a command that is built: see `bessemer --help`",
        fix=instead,
    )
