"""Simulated Meta-World: fifty tasks of a Sawyer arm with their scripted experts."""

from data_pipelines.metaworld.environment import MetaWorldEnvironment
from data_pipelines.metaworld.source import MetaWorldSource

__all__ = ["MetaWorldEnvironment", "MetaWorldSource"]
