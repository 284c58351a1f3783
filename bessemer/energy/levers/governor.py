"""How the kernel chooses the clock of the CPUs: the frequency governor. A lever.

"powersave" keeps clocks low (with intel_pstate and amd-pstate it is the one that follows the load),
"schedutil" follows the load, "performance" keeps them high. It is set for all CPUs of the machine, whose
policies each have a file; virtual machines usually have none. Only root may write them.
Source: the kernel's Documentation/admin-guide/pm/cpufreq.rst.
"""

import os
from pathlib import Path

from bessemer.errors import RefusedError

CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")
_OFF = "remove energy.governor"


class Governor:
    kind, name = "governor", "cpu"

    def __init__(self, root: Path | None = None) -> None:
        """root: of cpufreq's policies; None: the kernel's."""
        self._root = root or CPUFREQ
        self._files = sorted(self._root.glob("policy*/scaling_governor"))

    def check(self, wanted: str) -> None:
        """RefusedError unless every CPU has this governor and this process may choose it. Changes nothing."""
        if not self._files:
            raise RefusedError(
                "the governor of the CPUs cannot be set here",
                found=f"no policy*/scaling_governor in {self._root}",
                wanted="a machine whose kernel sets the clocks: a virtual one usually does not",
                fix=_OFF,
            )
        available = self._available()
        if wanted not in available:
            raise RefusedError(
                "the CPUs have no such governor",
                found=f'energy.governor = "{wanted}"',
                wanted=f"one of {', '.join(available)}",
                fix=f'set energy.governor="{available[0]}"' if available else _OFF,
            )
        closed = [file for file in self._files if not os.access(file, os.W_OK)]
        if closed:
            raise RefusedError(
                "no rights to set the governor of the CPUs",
                found=f"{closed[0]} cannot be written by this user",
                wanted="root, who alone may set it",
                fix=f"start as root; or have `cpupower frequency-set -g {wanted}` run by root, and {_OFF}",
            )

    def choose(self, wanted: str) -> None:
        self.put({str(file): wanted for file in self._files})

    def read(self) -> dict[str, str]:
        """By policy: they may differ."""
        try:
            return {str(file): file.read_text().strip() for file in self._files}
        except OSError as error:
            raise _failed(error) from error

    def put(self, values: dict[str, str]) -> None:
        errors: list[OSError] = []
        for file, governor in values.items():
            try:
                Path(file).write_text(f"{governor}\n")
            except OSError as error:  # of a CPU that was taken offline, say: the others get theirs
                errors.append(error)
        if errors:
            raise _failed(errors[0]) from errors[0]

    def _available(self) -> list[str]:
        """Those that every policy has."""
        found: list[list[str]] = []
        for file in self._files:
            try:
                found.append(file.with_name("scaling_available_governors").read_text().split())
            except OSError as error:
                raise _failed(error) from error
        return [name for name in found[0] if all(name in other for other in found)]


def _failed(error: OSError) -> RefusedError:
    return RefusedError(
        "the governor of the CPUs cannot be read or set",
        found=f"{error.filename}: {error.strerror}",
        wanted="files of cpufreq that this user may read and write",
        fix=_OFF,
    )
