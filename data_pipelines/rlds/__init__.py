"""RLDS datasets as TFRecord files, read without TensorFlow: Open X-Embodiment, Bridge, DROID, LIBERO."""

from data_pipelines.rlds.source import RldsSource

__all__ = ["RldsSource"]
