"""Profiles: which constants hold for a stack, device and precision, and how far they are to be trusted."""

import tomllib
from importlib import resources

import pytest

from bessemer.hardware import catalogue, lookup
from bessemer.planner.cost.profile import Profile, peak_tflops, profile_of, stacks
from bessemer.planner.machine.cluster import catalogue_cluster


def found(stack: str, device: str, precision: str = "bf16") -> Profile:
    return profile_of(stack, catalogue_cluster(lookup(device), 8), precision)


def test_every_stack_has_a_profile_on_every_device_with_a_peak():
    for stack in stacks():
        for device in catalogue().values():
            if peak_tflops(device, "bf16") is None or device.memory_gb_per_s is None:
                continue
            profile = profile_of(stack, catalogue_cluster(device, 8), "bf16")
            assert 0.3 < profile.matmul_tflops / peak_tflops(device, "bf16") < 1.25, (stack, device.name)
            assert 0.0 < profile.low < 1.0 and profile.high >= profile.low


def test_a_device_without_a_peak_and_an_unknown_stack_are_refused():
    with pytest.raises(ValueError, match="no known peak"):
        found("bessemer", "EPYC-9654-96c")
    with pytest.raises(KeyError, match="no profile of a stack 'colossal'"):
        found("colossal", "H100")


def test_fitted_constants_stay_within_what_physics_allows():
    text = (resources.files("bessemer.planner.cost") / "profiles.toml").read_text(encoding="utf-8")
    for name, table in tomllib.loads(text)["constants"].items():
        for key, value in table.items():
            if key in ("matmul", "attention", "memory", "link", "network", "grouped") or key.endswith(
                "_overlap"
            ):
                assert 0.0 <= value <= 1.0, f"{name}: {key} = {value}"


def test_basis_tells_fitted_stacks_from_those_beside_them_and_from_unknown_devices():
    assert found("megatron", "H100", "fp8").basis == "published"
    assert found("megatron-graphs", "B200", "mxfp8").basis == "published"  # as its parent
    assert found("bessemer", "H100").basis == "near"
    assert found("bessemer", "MI300X").basis == "assumed"
    bands = [found("megatron", "H100"), found("bessemer", "H100"), found("bessemer", "MI300X")]
    assert [band.high for band in bands] == sorted(band.high for band in bands)


def test_eight_bit_rates_are_over_the_eight_bit_peak_and_the_head_stays_in_sixteen():
    half, eight = found("megatron", "H100"), found("megatron", "H100", "fp8")
    assert 1.4 < eight.matmul_tflops / half.matmul_tflops < 2.0
    assert eight.head_tflops == half.head_tflops == half.matmul_tflops


def test_a_device_limited_to_less_power_is_slower_than_its_peak_says():
    full, limited = found("fsdp", "H100"), found("fsdp", "H100-96GB-500W")
    assert 0.75 <= limited.matmul_tflops / full.matmul_tflops <= 0.85
