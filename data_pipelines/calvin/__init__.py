"""CALVIN: one npz file a frame."""

from data_pipelines.calvin.source import CalvinSource

__all__ = ["CalvinSource"]
