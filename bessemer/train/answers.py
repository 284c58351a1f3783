"""What ranks tell each other, as JSON: a value, or the error that came instead (train/ranks.py)."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from bessemer import errors
from bessemer.errors import UserError, WorkerError

Document = dict[str, Any]


def attempt(work: Callable[[], Document]) -> Document:
    try:
        return {"value": work()}
    except UserError as error:
        texts = {key: getattr(error, key) for key in ("problem", "found", "wanted", "fix")}
        return {"error": type(error).__name__, **texts}


def as_document(work: Callable[[], object]) -> Callable[[], Document]:
    """Work that gives nothing to tell."""

    def nothing() -> Document:
        work()
        return {}

    return nothing


def result(answer: Document) -> Document:
    """The value; or the error, raised here as where it arose."""
    if "error" not in answer:
        return answer["value"]  # type: ignore[no-any-return]
    kind = getattr(errors, answer["error"])
    raise kind(answer["problem"], found=answer["found"], wanted=answer["wanted"], fix=answer["fix"])


def check_answer(rank: int, answer: Document) -> None:
    """Raises the error that a rank has told of."""
    if rank > 0 and answer.get("error") not in (None, WorkerError.__name__):  # which names it already
        answer["problem"] = f"rank {rank}: {answer['problem']}"
    result(answer)


def failed(rank: int, error: BaseException) -> Document:
    return {
        "error": WorkerError.__name__,
        "problem": f"rank {rank} failed: {type(error).__name__}",
        "found": str(error) or "no text",
        "wanted": "no exception",
        "fix": f"look at what rank {rank} wrote; run the same command again to go on",
    }


def first_difference(one: str, other: str) -> tuple[str, str]:
    """The first lines in which two texts differ."""
    pairs = zip_longest(one.splitlines(), other.splitlines(), fillvalue="(nothing)")
    return next((pair for pair in pairs if pair[0] != pair[1]), (one, other))
