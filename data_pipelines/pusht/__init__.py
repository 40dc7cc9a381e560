"""Simulated PushT with a scripted pusher of varied skill."""

from data_pipelines.pusht.environment import PushTEnvironment
from data_pipelines.pusht.source import PushTSource

__all__ = ["PushTEnvironment", "PushTSource"]
