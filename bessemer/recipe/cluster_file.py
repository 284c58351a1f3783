"""A team's own cluster, as a TOML file: `bessemer plan RECIPE --cluster ours.toml`, or `[cluster] file`.

Strict like a recipe: an unknown key, a wrong type or a contradiction is an error with its line. Links are
never taken from the catalogue: a device's own link may be the same everywhere, the network never is, and
a plan on a guessed network would be no plan.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from bessemer.errors import RecipeError
from bessemer.recipe.complaints import Places, syntax_error, wrong_value
from bessemer.recipe.keys import fields_of
from bessemer.recipe.lines import key_lines, line_of
from bessemer.recipe.schema import Name, Section

_LEAST_GB_PER_S = 0.001  # a modem's; below it times of steps are no numbers


# Figures beyond these were written in another unit.
_MOST_MEMORY_GIB = 10_000.0  # not MiB
_LEAST_MEMORY_GB_PER_S = 10.0  # not TB/s


def key(default: Any, text: str, least: float | None = None, most: float | None = None) -> Any:
    return Field(default, description=text, ge=least, le=most)


class OwnDevice(Section):
    """A device that the catalogue does not have, or has other figures of."""

    name: Name = key(..., "what plans and reports call it")
    kind: Literal["gpu", "tpu", "asic"] = key("gpu", "what it is; CPUs are measured, not described")
    memory_gib_usable: PositiveFloat = key(
        ..., "what an empty device reports as free, GiB", most=_MOST_MEMORY_GIB
    )
    memory_gb_per_s: PositiveFloat = key(..., "bandwidth of its memory, GB/s", _LEAST_MEMORY_GB_PER_S)
    bf16_dense_tflops: PositiveFloat = key(..., "peak without sparsity")
    fp8_dense_tflops: PositiveFloat | None = key(None, "peak without sparsity; left out: no fp8")
    fp32_tflops: PositiveFloat | None = key(None, "peak of fp32 itself, not of tf32")
    tdp_w: PositiveFloat | None = key(None, "limit of the board; left out: no energy is predicted")
    node_overhead_w: PositiveFloat | None = key(None, "what a node draws beside its devices, per device")


class ClusterFile(Section):
    device: str | OwnDevice = key(..., "a name of the catalogue, or a [device] table")
    devices: PositiveInt | None = key(None, "how many; or nodes")
    nodes: PositiveInt | None = key(None, "how many, of per_node devices each")
    per_node: PositiveInt | None = key(None, "devices in a node; left out: as the catalogue has it")
    link_domain: PositiveInt | None = key(None, "devices that the fast link joins; left out: those of a node")
    link_gb_per_s: PositiveFloat | None = key(
        None, "per device and direction, inside a domain", _LEAST_GB_PER_S
    )
    network_gb_per_s: PositiveFloat | None = key(
        None, "per device and direction, between domains", _LEAST_GB_PER_S
    )
    usd_per_device_hour: PositiveFloat | None = key(None, "price; left out: the catalogue's list price")
    region: str | None = key(None, "grid region, e.g. DEU")
    pue: PositiveFloat | None = key(None, "facility over IT energy")
    device_hours_per_failure: PositiveFloat | None = key(None, "mean time between failures of one device")


def read_cluster_file(path: Path) -> ClusterFile:
    """RecipeError: no such file, not TOML, a key that is unknown, missing or of another kind."""
    text = _read(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise syntax_error(str(path), text, error) from error
    places = Places(str(path), key_lines(text), [])
    _refuse_unknown(ClusterFile, values, (), places)
    own = values.get("device")
    if isinstance(own, dict):
        _refuse_unknown(OwnDevice, own, ("device",), places)
    try:
        # Of two kinds the one that is there: pydantic's complaint about the other would say nothing.
        device = {"device": OwnDevice.model_validate(own)} if isinstance(own, dict) else {}
    except ValidationError as error:
        raise _inside(error, values, places) from None
    try:
        return ClusterFile.model_validate({**values, **device})
    except ValidationError as error:
        raise _wrong_value(error, values, places) from None


def _wrong_value(error: ValidationError, values: dict[str, Any], places: Places) -> RecipeError:
    """Of `device`, which a recipe may leave out and a cluster file may not, in its own words."""
    if error.errors(include_url=False)[0]["loc"][0] != "device" or "device" not in values:
        return wrong_value(error, values, places)
    return RecipeError(
        f"{places.of(('device',))}: `device` does not take this value",
        found=f"device = {values['device']!r}",
        wanted="a name of the catalogue, or a [device] table",
        fix='write it like device = "H100"',
    )


def _inside(error: ValidationError, values: dict[str, Any], places: Places) -> RecipeError:
    """The complaint about a key of [device], with its place in the whole file."""
    row = error.errors(include_url=False)[0]
    name = str(row["loc"][0])
    missing = row["type"] == "missing"
    line = line_of(("device",) if missing else ("device", name), places.lines)
    return RecipeError(
        f"{places.name}, line {line}: `device.{name}` " + ("is missing" if missing else "is not right"),
        found="no such key" if missing else f"{name} = {values['device'][name]!r}",
        wanted=str(OwnDevice.model_fields[name].description) if missing else row["msg"],
        fix=f"add {name} to [device]" if missing else f"change {name} in [device]",
    )


def _refuse_unknown(
    section: type[Section], values: dict[str, Any], path: tuple[str, ...], places: Places
) -> None:
    for name in values:
        if name in fields_of(section):
            continue
        raise RecipeError(
            f"{places.of((*path, name))}: unknown key `{'.'.join((*path, name))}`",
            found=name,
            wanted="a key of a cluster file: " + ", ".join(fields_of(section)),
            fix=_instead_of(section, name),
        )


def _instead_of(section: type[Section], name: str) -> str:
    if name == "cluster":
        return "write its keys at the top of the file, without [cluster]"
    near = difflib.get_close_matches(name, list(fields_of(section)), n=1, cutoff=0.6)
    bits = " (GB are bytes: 400 Gbit/s are 50)" if "bit" in name or "bps" in name else ""
    return f"did you mean `{near[0]}`?{bits}" if near else "remove it"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path at all
        raise RecipeError(
            f"cannot read cluster file {path}",
            found=getattr(error, "strerror", None) or str(error),
            wanted="a TOML file in UTF-8",
            fix="give its path, or name devices of the catalogue like --cluster 64xH100",
        ) from error
