"""Replay buffers in zarr: UMI and Diffusion Policy."""

from data_pipelines.umi.source import UmiSource

__all__ = ["UmiSource"]
