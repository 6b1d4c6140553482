"""Peaks of devices by their kind."""

from __future__ import annotations

import types

import pytest

from ba_jax.metrics.chips import CHIPS, peak_flops


@pytest.mark.parametrize(
    ("kind", "cores", "tera"),
    [
        ("TPU v4", 2, 275),
        ("TPU v4", 1, 137.5),  # without megacore
        ("TPU v5 lite", 1, 197),
        ("TPU v5", 2, 459),
        ("TPU v5p", 2, 459),
        ("TPU v6 lite", 1, 918),
        ("TPU7x", 1, 1153.5),  # a device is one of the chip's two cores
        ("TPU7x", None, 2307),
        ("NVIDIA H100 80GB HBM3", None, 989),
        ("NVIDIA H200", None, 989),
        ("NVIDIA H100 PCIe", None, None),
        ("cpu", None, None),
    ],
)
def test_peaks(kind, cores, tera):
    device = types.SimpleNamespace(device_kind=kind)
    if cores is not None:
        device.num_cores = cores
    assert peak_flops(device) == (None if tera is None else tera * 1e12)


@pytest.mark.parametrize(
    ("chip", "integers", "floats"),
    [
        ("v4", False, False),
        ("v5e", True, False),
        ("v5p", False, False),
        ("v6e", True, False),
        ("tpu7x", False, True),
        ("h100", True, True),
    ],
)
def test_products_at_twice_the_peak(chip, integers, floats):
    doubles = CHIPS[chip].doubles
    assert doubles("s8", "s8") == doubles("int8", "int8") == integers
    assert doubles("f8e5m2", "f8e4m3fn") == doubles("float8_e5m2", "float8_e4m3fn") == floats
    assert not any(doubles(*pair) for pair in (("bf16", "s8"), ("float32", "float32"), ("u8",)))
