"""The door to prepared data: found in the store, or built there now (preparing.py).

Behind it are the readers of every kind of source and the engines that build. They are imported when the door
is opened, by the one process that prepares; those that train on what is there need none of it.
"""

from contextlib import nullcontext
from pathlib import Path

from bessemer.data.factory.how import How
from bessemer.data.folders import Around
from bessemer.data.prepared import Prepared, PreparedTask
from bessemer.log import Console
from bessemer.recipe.schema import Recipe

_AS_USUAL = How()


def prepare(
    recipe: Recipe,
    base: Path,
    store: Path,
    console: Console,
    how: How = _AS_USUAL,
    *,
    around: Around = nullcontext,
) -> Prepared:
    """The recipe's pre-training data. Paths of the recipe start from `base`.

    around: entered with the folder of the data while that is built, not where it is found.
    """
    from bessemer.data import preparing

    return preparing.prepare(recipe, base, store, console, how, around)


def prepare_task(
    recipe: Recipe,
    base: Path,
    store: Path,
    tokenizer_path: Path,
    console: Console,
    context: int | None = None,
    *,
    refresh: bool = False,
    around: Around = nullcontext,
) -> PreparedTask:
    """The recipe's fine-tuning examples for this tokenizer. around: as of `prepare`.

    context: tokens in a row of the model that they are for; None: as the recipe says.
    refresh: read a database server anew.
    """
    from bessemer.data import preparing

    return preparing.prepare_task(
        recipe, base, store, tokenizer_path, console, context, refresh=refresh, around=around
    )
