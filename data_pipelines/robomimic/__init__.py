"""Robomimic, LIBERO and RoboCasa datasets: many demonstrations in an HDF5 file."""

from data_pipelines.robomimic.source import RobomimicSource

__all__ = ["RobomimicSource"]
