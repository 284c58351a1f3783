"""Put a finished export in its place, and finish what a killed one left.

A folder cannot be exchanged for another in one step everywhere, so the old export is moved aside first.
Killed between the two renames there is no export; the next one puts the old one back before it begins.
What stands beside carries the number of its process, so that an export under way elsewhere is left alone.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bessemer import durable
from bessemer.durable import cannot_write, publish_folder
from bessemer.errors import RecipeError

Receipt = dict[str, Any]


def earlier_receipt(out: Path, name: str, schema: str, is_ours: Callable[[str], bool]) -> Receipt | None:
    """The receipt, a file `name`, of an export of ours at `out`; None where nothing is. Else RecipeError.

    is_ours: whether such an export writes a file of that name. What a killed one left is swept first.
    """
    try:
        sweep(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    if out.is_dir():
        entries = sorted(entry.name for entry in out.iterdir())
        foreign = [entry for entry in entries if not is_ours(entry) and entry != name]
        if not entries:
            return None
        if not foreign and name in entries:
            receipt = json.loads((out / name).read_text())
            if isinstance(receipt, dict) and receipt.get("schema") == schema:
                return receipt
        found = f"it holds {', '.join((foreign or entries)[:5])}"
    elif out.exists():
        found = "a file"
    else:
        return None
    raise RecipeError(
        f"{out} is not an export of ours, so it is not replaced",
        found=found,
        wanted="a folder that does not exist yet, is empty, or holds an earlier export and nothing else",
        fix="choose another folder with --out DIR",
    )


def is_done(out: Path, receipt: Receipt, earlier: Receipt | None) -> bool:
    """Whether an earlier export is of all that `receipt` names, and its files are there."""
    if earlier is None or not receipt.items() <= earlier.items():
        return False
    files: dict[str, int] = earlier.get("files") or {}
    return bool(files) and all(
        (out / name).is_file() and (out / name).stat().st_size == size for name, size in files.items()
    )


def publish(out: Path, build: Callable[[Path], None]) -> None:
    """Let `build` fill a folder, and put it in place. What it raises leaves the old one as it was."""
    building = building_folder(out)
    try:
        build(building)
        replace(building, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def file_hash(path: Path) -> str | None:
    return durable.file_hash(path) if path.is_file() else None


def building_folder(out: Path) -> Path:
    """Where to build what is to become `out`."""
    return out.with_name(f".{out.name}.{os.getpid()}.tmp")


def sweep(out: Path) -> None:
    """Put back what a killed export moved aside, where nothing took its place; remove what else it left."""
    for left in _left_behind(out, "old"):
        if out.exists():
            shutil.rmtree(left)
        else:
            os.replace(left, out)
    for left in _left_behind(out, "tmp"):
        shutil.rmtree(left)


def replace(building: Path, out: Path) -> None:
    """Put the new folder in the old one's place; the old one is moved aside first, and back on failure."""
    if not out.exists():
        publish_folder(building, out)
        return
    aside = out.with_name(f".{out.name}.{os.getpid()}.old")
    os.replace(out, aside)
    try:
        publish_folder(building, out)
    except BaseException:
        os.replace(aside, out)
        raise
    shutil.rmtree(aside)


def _left_behind(out: Path, ending: str) -> list[Path]:
    """Folders of exports whose process is gone, the newest first."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(\d+)\.{ending}")
    beside = out.parent.iterdir() if out.parent.is_dir() else ()
    found = [(entry, match) for entry in beside if (match := pattern.fullmatch(entry.name))]
    left = [entry for entry, match in found if entry.is_dir() and not _is_another(int(match[1]))]
    return sorted(left, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)


def _is_another(process: int) -> bool:
    """Whether another living process has this number. Ours alone has not begun to build yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
