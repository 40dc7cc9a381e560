"""LeRobot datasets, versions 2.0, 2.1 and 3.0."""

from data_pipelines.lerobot.source import LeRobotSource

__all__ = ["LeRobotSource"]
