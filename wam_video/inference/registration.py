"""Makes diffusers save and load our component classes as `["wam_video", "<Class>"]`.

diffusers looks a component's class, and the base classes that say how to load it, up among the attributes of the library
that the index names, and refuses libraries outside its own list when it reads a Hub repository. So the package is entered
in that list, and `wam_video` has `ModelMixin`, `SchedulerMixin` and every component class as attributes.
"""

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

_METHODS = ["save_pretrained", "from_pretrained"]

LIBRARY = "wam_video"
BASE_CLASSES = ("ModelMixin", "SchedulerMixin")
"""What the components derive from (the processor from `SchedulerMixin`); attributes of the package `wam_video`."""


def register_components() -> None:
    """Enter this package in diffusers' list of libraries with loadable classes. Repeating it changes nothing."""
    LOADABLE_CLASSES[LIBRARY] = {name: list(_METHODS) for name in BASE_CLASSES}
