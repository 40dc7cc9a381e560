"""Simulated PushT with a scripted pusher of varied skill."""

from data_pipelines.pusht.source import PushTSource

__all__ = ["PushTSource"]
