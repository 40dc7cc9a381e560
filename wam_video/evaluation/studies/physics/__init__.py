"""Physical commonsense of the forward mode: Physics-IQ's scores, and probes that a simulator grounds."""

from wam_video.evaluation.studies.physics.study import PhysicsStudy

__all__ = ["PhysicsStudy"]
