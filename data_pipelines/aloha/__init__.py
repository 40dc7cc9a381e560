"""ALOHA and ACT datasets: one HDF5 file an episode."""

from data_pipelines.aloha.source import AlohaSource

__all__ = ["AlohaSource"]
