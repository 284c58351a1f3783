"""Put a finished export in its place, and finish what a killed one left.

A folder cannot be exchanged for another in one step everywhere, so the old export is moved aside first.
Killed between the two renames there is no export; the next one puts the old one back before it begins.
What stands beside carries the number of its process, so that an export under way elsewhere is left alone.
"""

import os
import re
import shutil
from pathlib import Path

from bessemer.durable import publish_folder


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
