"""Any gymnasium environment with pictures, by a small mapping."""

from data_pipelines.gym.environment import GymEnvironment

__all__ = ["GymEnvironment"]
