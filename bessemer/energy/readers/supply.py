"""The whole node, where something reads it: a power supply, the board's controller, a command of the user's.

In this order: the user's command, since who gives one wants that; hwmon of the kernel, ACPI's power meter
before the input side of power supplies, all of which count; `ipmitool dcmi power reading`. Other chips of
hwmon (amdgpu, CPU packages, rails of a board) are parts: only supplies that the kernel has a driver of by
name count, as a regulator on the board labels its input "pin" too.
A node's reading is all that the machine draws, other programs included.
Source: Documentation/hwmon of the kernel (microwatts; accuracy in percent).
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bessemer.energy.readers.program import LONGEST_S, Program
from bessemer.energy.readers.sampled import Look, Sampled
from bessemer.energy.reading import NODE, Reader
from bessemer.errors import RecipeError

HWMON = Path("/sys/class/hwmon")
_IPMI = ("ipmitool", "dcmi", "power", "reading")
_WATTS = re.compile(r"Instantaneous power reading:\s*(\d+)\s*Watts")
_SUPPLIES = re.compile(
    r"fsg032|aps-?379|pfe[13][01]00|bp[ad]-rs600|\w*crps\d*|d1u74\w*|dps(460|650ab|800|920ab)|sgd009|hac300s"
    r"|cffps[12]?|ipsps1|corsairpsu"
)
_ERROR = 0.05  # where a meter does not say its own


@dataclass(frozen=True)
class NodeSources:
    """Where a node's watts may be found."""

    command: Sequence[str] = ()  # the user's: prints watts
    hwmon: Path = HWMON
    ipmi: bool = True


def open_node(sources: NodeSources) -> Reader | None:
    """RecipeError where the user's command does not print watts: an asked-for meter is never passed over."""
    if sources.command:
        return _user_command(sources.command)
    found = _open_hwmon(sources.hwmon)
    if found is None and sources.ipmi and shutil.which(_IPMI[0]) is not None:
        found = _asked("IPMI power reading", Program(_IPMI, _ipmi_watts))
    return found if found is not None and found.works else None


def _user_command(words: Sequence[str]) -> Reader:
    program = Program(words, _plain_watts)
    reader = _asked(f"`{' '.join(words)}`", program)
    if not reader.works:
        raise RecipeError(
            "energy.command tells no watts",
            found=f"{' '.join(words)}: {program.said}",
            wanted="a program and its words that print one number above 0, the watts of this machine, within "
            f"{LONGEST_S:.0f} s",
            fix="run it by hand, or leave energy.command out",
        )
    return reader


def _asked(name: str, program: Program) -> Sampled:
    return Sampled(name, NODE, program.number, _ERROR, end=program.close)


def _plain_watts(text: str) -> float | None:
    words = text.split()
    if len(words) == 2 and words[1].lower() in ("w", "watt", "watts"):
        words.pop()
    try:
        return float(words[0]) if len(words) == 1 else None
    except ValueError:
        return None


def _ipmi_watts(text: str) -> float | None:
    found = _WATTS.search(text)
    return float(found[1]) if found else None


def _open_hwmon(hwmon: Path) -> Sampled | None:
    chips = sorted(hwmon.glob("hwmon*"), key=lambda chip: (len(chip.name), chip.name))
    meters = [file for chip in chips if _text(chip / "name") == "power_meter" for file in _acpi(chip)]
    kind = "ACPI power meter"
    if not meters:
        meters, kind = [file for chip in chips for file in _inputs(chip)], "power supplies"
    if not meters:
        return None
    error = max((_accuracy(file) for file in meters), default=_ERROR)
    return Sampled(f"{kind} ({len(meters)})", NODE, _sum_of(meters), error)


def _acpi(chip: Path) -> list[Path]:
    files = [chip / "power1_average", chip / "power1_input"]
    return [file for file in files if file.exists()][:1]


def _inputs(chip: Path) -> list[Path]:
    """The input side of a supply, or the whole of one that knows its total only."""
    if not _SUPPLIES.fullmatch(_text(chip / "name")):
        return []
    labelled = {_text(label): label for label in sorted(chip.glob("power*_label"))}
    wanted = [label for text, label in labelled.items() if re.fullmatch(r"pin|power total", text)]
    return [label.with_name(label.name.replace("_label", "_input")) for label in wanted]


def _sum_of(files: list[Path]) -> Look:
    def look() -> float | None:
        watts = [_microwatts(file) for file in files]
        known = [value for value in watts if value is not None]
        return sum(known) if len(known) == len(files) else None

    return look


def _microwatts(file: Path) -> float | None:
    """None also below 0: a meter that says so is not to be added to others."""
    try:
        value = int(_text(file)) / 1e6
    except ValueError:
        return None
    return value if value >= 0.0 else None


def _accuracy(file: Path) -> float:
    text = _text(file.with_name(file.name.split("_")[0] + "_accuracy")).removesuffix("%")
    try:
        return max(0.005, float(text) / 100.0)
    except ValueError:
        return _ERROR


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
