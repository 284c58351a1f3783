"""DuckDB, for what does not fit into memory: how it is set, and its failures as errors that say what to do.

It holds to a limit of memory, spills into the folder given, loads no extension and prints nothing.
"""

import errno
import os
from pathlib import Path
from typing import Any

from bessemer.durable import cannot_write
from bessemer.errors import RefusedError, UserError


def configure(database: Any, folder: Path, memory_bytes: int, threads: int) -> None:
    settings: dict[str, Any] = {
        "memory_limit": f"{memory_bytes // 1024}KiB",
        "threads": threads,
        "temp_directory": str(folder / "spill"),
        "extension_directory": str(folder),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,  # a misspelt table is no variable of ours
        "enable_progress_bar": False,  # after two seconds it would write into our output
    }
    for name, value in settings.items():
        database.execute(f"SET {name} = ?", [value])


def explained(error: Exception, folder: Path, memory_bytes: int, purpose: str, fix: str) -> UserError:
    """DuckDB says in words what the system said in a number."""
    text = str(error)
    if "Out of Memory" in text and "max_temp_directory_size" not in text:
        return RefusedError(
            f"too little memory to {purpose}",
            found=f"{memory_bytes / 2**20:.0f} MiB: {text.splitlines()[0]}",
            wanted="256 MiB or more",
            fix=fix,
        )
    known = (errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
    number = next((one for one in known if os.strerror(one) in text), errno.ENOSPC)
    return cannot_write(folder, OSError(number, os.strerror(number)))
