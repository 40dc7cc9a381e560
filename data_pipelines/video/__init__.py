"""Plain video files without actions, with captions where there are any."""

from data_pipelines.video.source import VideoSource

__all__ = ["VideoSource"]
