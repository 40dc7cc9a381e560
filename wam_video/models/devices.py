"""Peaks of named devices and the roofline: how long work takes if one of arithmetic, memory or links is the limit.

The figures are the makers' peaks for dense matrices; no program reaches them. Whatever divides by the peak of arithmetic
is told which share of it to count on (`efficiency`, an assumption); memory and links are counted at their peaks.
"""

from dataclasses import dataclass

from wam_video.errors import ConfigError, one_of

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator (or a whole processor), at its peaks."""

    name: str
    bf16_tflops: float
    """Dense, with float32 accumulation."""
    fp8_tflops: float | None
    """The same in 8 bits; None where the device has no such units."""
    memory_gb: float
    """1 GB is 1e9 bytes."""
    bandwidth_gb_s: float
    """To its memory."""
    link_gb_s: float
    """To another device of its node, each way; host and device exchange data at `host_gb_s`."""
    host_gb_s: float
    """To the host's memory, each way."""

    def flops(self, precision: str) -> float:
        """Return the peak in operations a second for `bf16` or `fp8`.

        Raises:
            ConfigError: The device has no such units.
        """
        if precision not in ("bf16", "fp8"):
            raise ConfigError(one_of("precision", precision, ("bf16", "fp8")))
        if precision == "fp8" and self.fp8_tflops is None:
            raise ConfigError(f"precision is 'fp8', which {self.name} does not have; allowed: bf16")
        peak = self.bf16_tflops if precision == "bf16" else self.fp8_tflops
        return (peak or 0.0) * TERA


def _device(
    name: str, tflops: tuple[float, float | None], memory: tuple[float, float], links: tuple[float, float]
) -> Device:
    return Device(
        name=name,
        bf16_tflops=tflops[0],
        fp8_tflops=tflops[1],
        memory_gb=memory[0],
        bandwidth_gb_s=memory[1],
        link_gb_s=links[0],
        host_gb_s=links[1],
    )


# (bf16, fp8) TFLOP/s; (GB, GB/s) of memory; (to a peer, to the host) GB/s each way. Makers print links as the sum of both ways
# and, for tensor cores, often twice the dense figure ("with sparsity"); both are halved here.
DEVICES = {
    device.name: device
    for device in (
        # NVIDIA A100 80GB SXM datasheet: 312, no fp8, 2039 GB/s, NVLink 600 GB/s, PCIe 4 x16.
        _device("a100", (312.0, None), (80, 2039), (300, 32)),
        # NVIDIA H100 SXM datasheet: 1979 and 3958 with sparsity, 3.35 TB/s, NVLink 900 GB/s, PCIe 5 x16.
        _device("h100", (989.5, 1979.0), (80, 3350), (450, 64)),
        # NVIDIA H200 SXM datasheet: the H100's units, 141 GB at 4.8 TB/s.
        _device("h200", (989.5, 1979.0), (141, 4800), (450, 64)),
        # NVIDIA DGX B200 datasheet, an eighth of it: 144 and 72 PFLOP/s with sparsity in fp4 and fp8, 1440 GB, 64 TB/s; NVLink 1.8 TB/s.
        _device("b200", (2250.0, 4500.0), (180, 8000), (900, 64)),
        # NVIDIA GB200 NVL72 datasheet, one GPU: 5 and 10 PFLOP/s with sparsity, 8 TB/s, NVLink 1.8 TB/s; NVLink-C2C 900 GB/s a superchip of two.
        _device("gb200", (2500.0, 5000.0), (186, 8000), (900, 225)),
        # NVIDIA L40S datasheet: 362 and 733 dense, 48 GB, 864 GB/s, PCIe 4 x16, no NVLink.
        _device("l40s", (362.0, 733.0), (48, 864), (32, 32)),
        # NVIDIA Ada whitepaper, RTX 4090 with float32 accumulation: 165.2 and 330.3; 1008 GB/s, PCIe 4 x16, no NVLink.
        _device("rtx4090", (165.2, 330.3), (24, 1008), (32, 32)),
        # NVIDIA RTX Blackwell whitepaper, RTX 5090 with float32 accumulation: 209.5 and 419; 1792 GB/s, PCIe 5 x16, no NVLink.
        _device("rtx5090", (209.5, 419.0), (32, 1792), (64, 64)),
        # No product but arithmetic: 8 cores x 3 GHz x 2 AVX2 multiply-adds of 8 float32; two channels of DDR4-3200.
        _device("cpu", (0.768, None), (32, 51.2), (51.2, 51.2)),
    )
}


def get_device(name: str) -> Device:
    """Return the device of that name.

    Raises:
        ConfigError: There is no such device.
    """
    if name not in DEVICES:
        raise ConfigError(one_of("device", name, DEVICES))
    return DEVICES[name]


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds that a piece of work takes on each of the three resources."""

    compute_s: float
    memory_s: float
    communication_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Where all three overlap perfectly: that of the slowest."""
        return max(self.compute_s, self.memory_s, self.communication_s)

    @property
    def serial_s(self) -> float:
        """Where nothing is exchanged while it computes."""
        return max(self.compute_s, self.memory_s) + self.communication_s

    @property
    def bound(self) -> str:
        """The resource that limits: `compute`, `memory` or `communication`."""
        sides = {"compute": self.compute_s, "memory": self.memory_s, "communication": self.communication_s}
        return max(sides, key=lambda side: sides[side])


def roofline(
    device: Device, *, flops: float, moved: float, precision: str = "bf16", efficiency: float = 1.0
) -> Roofline:
    """Return the time of `flops` operations that move `moved` bytes to and from the device's memory.

    Args:
        device: Where.
        flops: Operations.
        moved: Bytes.
        precision: Units used: `bf16` or `fp8`.
        efficiency: Share of the arithmetic peak that is reached, above 0 and at most 1.

    Raises:
        ConfigError: The device has no such units, or `efficiency` is out of range.
    """
    if not 0 < efficiency <= 1:
        raise ConfigError(f"efficiency is {efficiency}; allowed: above 0, at most 1 (a share of the peak)")
    return Roofline(
        compute_s=flops / (device.flops(precision) * efficiency), memory_s=moved / (device.bandwidth_gb_s * GIGA)
    )
