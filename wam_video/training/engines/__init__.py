"""Processes, devices and the engines that share a run's weights among them: the only package that knows accelerate and DeepSpeed.

`base` has the one interface that the trainer sees, `start` finds out what was launched; each engine has a file of its own.
"""

from wam_video.training.engines.base import Engine, EngineConfig, Launch
from wam_video.training.engines.start import is_one_of_several, leave, start_engine
from wam_video.training.engines.weights import Fragment, Weights

__all__ = ["Engine", "EngineConfig", "Fragment", "Launch", "Weights", "is_one_of_several", "leave", "start_engine"]
