"""The roofline is arithmetic over the table of peaks."""

import pytest

from wam_video.errors import ConfigError
from wam_video.models.devices import DEVICES, Roofline, get_device, roofline


def test_the_slowest_resource_sets_the_time() -> None:
    h100 = get_device("h100")
    work = roofline(h100, flops=989.5e12, moved=3.35e12 / 2)
    assert (work.compute_s, work.memory_s) == pytest.approx((1.0, 0.5))
    assert (work.seconds, work.bound) == (work.compute_s, "compute")
    assert roofline(h100, flops=989.5e12, moved=0, precision="fp8", efficiency=0.5).seconds == pytest.approx(1.0)
    linked = Roofline(compute_s=1.0, memory_s=2.0, communication_s=3.0)
    assert (linked.seconds, linked.serial_s, linked.bound) == (3.0, 5.0, "communication")


def test_the_table_holds_dense_peaks() -> None:
    assert all(
        d.fp8_tflops is None or d.fp8_tflops == pytest.approx(2 * d.bf16_tflops, rel=0.02) for d in DEVICES.values()
    )
    assert all(name == device.name for name, device in DEVICES.items())


def test_what_a_device_lacks_is_said() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'h100'"):
        get_device("h1000")
    with pytest.raises(ConfigError, match="which a100 does not have"):
        roofline(get_device("a100"), flops=1, moved=1, precision="fp8")
    with pytest.raises(ConfigError, match="efficiency is 0"):
        roofline(get_device("a100"), flops=1, moved=1, efficiency=0)
