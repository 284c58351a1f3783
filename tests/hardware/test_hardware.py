import json
from pathlib import Path

import pytest

from bessemer import hardware
from bessemer.errors import RecipeError
from bessemer.hardware import Ceilings, catalogue, find, lookup


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("A100-80GB-SXM", "A100-SXM4-80GB"), ("a100_80gb", "A100-SXM4-80GB"), ("A100", "A100-SXM4-80GB"),
        ("A100-40GB-SXM", "A100-SXM4-40GB"), ("A100-SXM-40GB", "A100-SXM4-40GB"), ("H100", "H100-SXM5-80GB"),
        ("H100-SXM5-80GB", "H100-SXM5-80GB"), ("h100_80gb", "H100-SXM5-80GB"), ("H800-80GB", "H800-SXM-80GB"),
        ("TPU v3", "TPUv3"), ("TPU v5p", "TPUv5p"), ("GB200", "GB200-NVL72"), ("V100-SXM2", "V100-SXM2-32GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM5-80GB"), ("NVIDIA H200", "H200-SXM-141GB"),
    ],
)  # fmt: skip
def test_device_is_known_by_every_spelling(spelling: str, name: str) -> None:
    assert lookup(spelling).name == name


def test_no_two_devices_share_a_spelling() -> None:
    owners: dict[str, set[str]] = {}
    for device in catalogue().values():
        for word in (device.name, *device.aliases):
            owners.setdefault(hardware._plain(word), set()).add(device.name)
    assert {word: names for word, names in owners.items() if len(names) > 1} == {}


def test_unknown_device_is_not_taken_for_another() -> None:
    assert find("H1000") is None
    with pytest.raises(RecipeError, match="did you mean `H100"):
        lookup("H10O")


def test_peaks_are_dense_and_every_row_has_its_source() -> None:
    assert lookup("H100").bf16_dense_tflops == 989.4
    assert lookup("V100").peak_tflops("bf16") is None  # it has no bf16
    for device in catalogue().values():
        assert device.source and device.confidence in ("high", "medium", "low")
        if device.kind == "cpu":
            assert device.bf16_dense_tflops is None  # on purpose: measure
        if device.usd_per_device_hour is not None:
            assert device.price_source


@pytest.mark.parametrize(
    ("rental", "bf16_tflops", "gb_per_s", "watts"),
    [
        ("NVIDIA GeForce RTX 3090", 71, 936, 350), ("RTX A6000", 154.8, 768, 300), ("A40", 149.7, 696, 300),
        ("L4", 121, 300, 72), ("L40", 181.05, 864, 300), ("NVIDIA H20", 148, 4000, 400),
        ("RTX PRO 6000", 503.8, 1792, 600),
    ],
)  # fmt: skip
def test_common_rentals_have_a_peak_and_say_when_it_was_read(
    rental: str, bf16_tflops: float, gb_per_s: float, watts: float
) -> None:
    device = lookup(rental)
    assert (device.bf16_dense_tflops, device.memory_gb_per_s, device.tdp_w) == (bf16_tflops, gb_per_s, watts)
    assert "read 20" in device.source


def test_this_machine_has_cores_and_memory() -> None:
    here = hardware.machine()
    assert here.cores >= 1 and here.cpu
    assert 0 < here.memory_available_bytes <= here.memory_bytes


def test_disk_is_asked_where_a_folder_will_be(tmp_path: Path) -> None:
    assert hardware.disk_free_bytes(tmp_path / "not" / "yet") > 0


def test_measurement_is_stored_per_device_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = Ceilings("Some CPU @ 3 GHz", 1.0, 0.5, 20.0, 4, "2.13.0", "2026-01-01")
    assert hardware.stored_ceilings(measured.device, 4) is None
    path = hardware.store_ceilings(measured)
    assert tmp_path in path.parents
    assert hardware.stored_ceilings(measured.device, 4) == measured
    assert hardware.stored_ceilings(measured.device, 8) is None


def test_measurement_of_another_version_or_a_torn_file_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = hardware.store_ceilings(Ceilings("cpu", 1.0, 0.5, 20.0, 1, "2.13.0", "2026-01-01"))
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "more": 1}))
    assert hardware.stored_ceilings("cpu", 1) is None
    path.write_text('{"device": ')
    assert hardware.stored_ceilings("cpu", 1) is None
