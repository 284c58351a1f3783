"""What a stage keeps of the data that it reads, so that every attempt opens the same: `told`, `open_told`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bessemer.data.prepared import Prepared, PreparedTask, Replayed, open_prepared
from bessemer.errors import DataError


def told(data: Prepared | PreparedTask) -> dict[str, Any]:
    """What a stage keeps of its data; `open_told` opens it again."""
    kept: dict[str, Any] = {"folder": str(data.folder.resolve()), "hash": data.hash}
    if isinstance(data, Prepared) and data.replayed is not None:
        kept["replayed"] = {"data": told(data.replayed.data), "weights": list(data.replayed.weights)}
    return kept


def open_told(kept: dict[str, Any]) -> Prepared | PreparedTask:
    """With what is replayed. DataError where a folder is gone, or holds other data by now."""
    data = open_prepared(Path(kept["folder"]))
    if data.hash != kept["hash"]:
        raise DataError(
            f"the data in {data.folder} changed",
            found=f"prepared data {data.hash}",
            wanted=str(kept["hash"]),
            fix="put the folder back as it was, or begin a new run with --run DIR",
        )
    old = kept.get("replayed")
    if old is None:
        return data
    earlier = open_told(old["data"])
    assert isinstance(data, Prepared) and isinstance(earlier, Prepared), kept
    return replace(data, replayed=Replayed(earlier, tuple(old["weights"])))


def identity(kept: dict[str, Any] | None) -> tuple[Any, ...]:
    """What `told` said, but for where it lies: alike where the same rows are read."""
    if kept is None:
        return ()
    old = kept.get("replayed")
    return kept["hash"], *(() if old is None else (tuple(old["weights"]), *identity(old["data"])))
