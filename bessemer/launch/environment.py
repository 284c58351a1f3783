"""The environment that training runs in: every variable we set, and why. The only place that sets any.

GLIBC_TUNABLES is read when a process starts, so the command replaces itself once, by exec, with the
same command line: the same process id, so signals, locks and a launcher's bookkeeping see one process.
Cost: a second start of the interpreter, about 50 ms; torch is not loaded before it.

What a user has set wins, variable by variable and tunable by tunable. BESSEMER_ENVIRONMENT=off leaves
all as it is. We set it too: it tells that the environment is arranged, to ourselves after the exec and
to the processes that we start.
"""

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bessemer.hardware import cache_folder, usable_cores

MARKER = "BESSEMER_ENVIRONMENT"

_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_TUNABLES = "GLIBC_TUNABLES"
_KEEP_MEMORY = (
    ("mmap_threshold", 16 * 2**30),  # only a larger tensor gets its own mapping, unmapped when freed
    ("trim_threshold", 16 * 2**30),  # free memory at the end of the heap goes back only above this
    ("top_pad", 2**28),  # the heap grows by this much more than was asked for
)


@dataclass(frozen=True)
class Variable:
    name: str
    value: str
    reason: str


def variables() -> list[Variable]:
    """What we set on this machine where the user has set nothing."""
    rows = [
        Variable(
            "OMP_NUM_THREADS",
            str(usable_cores()),
            "torch counts cores, not a container's quota of their time, beyond which threads are stopped",
        ),
        Variable(
            "TOKENIZERS_PARALLELISM",
            "true",
            "tokenizers falls back to one thread, with a warning, in a process that was forked",
        ),
        Variable(
            "TORCHINDUCTOR_FX_GRAPH_CACHE",
            "1",
            "a graph compiled by an earlier run is found again; said here, as torch's default may change",
        ),
    ]
    if _is_glibc():
        value = ":".join(f"glibc.malloc.{key}={size}" for key, size in _KEEP_MEMORY)
        reason = "malloc returns each large tensor to the kernel and asks for it again: page faults cost 20 %"
        rows.append(Variable(_TUNABLES, value, f"{reason} of a step on a CPU"))
    compiled = cache_folder() / "compiled"
    if _can_be_written(compiled):
        reason = "compiled code outlives a reboot, which empties torch's default place, the temporary folder"
        rows.append(Variable("TORCHINDUCTOR_CACHE_DIR", str(compiled), reason))
    return rows


def wanted_environment(current: Mapping[str, str]) -> dict[str, str]:
    """`current` with our variables where they are not set; unchanged if it is arranged, or switched off."""
    wanted = dict(current)
    if MARKER in current:
        return wanted
    for variable in variables():
        if variable.name == _TUNABLES:
            wanted.update(_joined_tunables(variable.value, current))
        else:
            wanted.setdefault(variable.name, variable.value)
    if wanted != current:
        wanted[MARKER] = "arranged"
    return wanted


def arrange() -> None:
    """Return if the environment is as wanted; else begin this very command anew in the wanted one.

    Call before torch is imported and before anything is opened, started or written.
    """
    wanted = wanted_environment(os.environ)
    if wanted == dict(os.environ):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter's own command line, not `-m bessemer`: that would put the current folder first on
    # the import path, where a user's folder named `torch` or `data` must not stand in for a package.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)  # noqa: S606 (no shell)


def name_interface(host: str) -> None:
    """Tell gloo which network interface leads to the other machines, where the user has not.

    It would take the one that this machine's own name resolves to, which may well be the loopback.
    host: the first rank's. Does nothing where that is this machine's loopback, or on other systems.
    """
    if _GLOO_INTERFACE in os.environ or sys.platform != "linux":
        return
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 1))  # sends nothing: asks the routing table which address would speak
        mine = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            if not mine.startswith("127.") and _address(probe, name) == mine:
                os.environ[_GLOO_INTERFACE] = name


def _address(probe: socket.socket, interface: str) -> str | None:
    """IPv4 address of an interface: SIOCGIFADDR of Linux's netdevice(7)."""
    try:
        answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", interface.encode()[:15]))
    except OSError:
        return None
    return socket.inet_ntoa(answer[20:24])


def _joined_tunables(ours: str, current: Mapping[str, str]) -> dict[str, str]:
    """The user's tunables, then ours that neither they nor malloc's older variables have set."""
    theirs = [pair for pair in current.get(_TUNABLES, "").split(":") if pair]
    taken = {pair.partition("=")[0] for pair in theirs}
    added = []
    for pair in ours.split(":"):
        key = pair.partition("=")[0]
        older_name = f"MALLOC_{key.rpartition('.')[2].upper()}_"
        if key not in taken and older_name not in current:
            added.append(pair)
    return {_TUNABLES: ":".join([*theirs, *added])} if added else {}


def _is_glibc() -> bool:
    return sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names


def _can_be_written(folder: Path) -> bool:
    """Whether `folder` can be used, or made: a home that is read-only must not make torch.compile fail."""
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return os.access(existing, os.W_OK | os.X_OK)
