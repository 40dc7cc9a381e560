"""The table of modes: what each one is given, generates or leaves unknown, and the path that it walks.

A mode is a row here, never a function of its own: `flow.solvers.sample` walks any path. Along every path the clock of what
is generated ends at 0.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import ConfigError, one_of
from wam_video.flow.path import shift_time
from wam_video.tensors import Mode


class Role(StrEnum):
    """What becomes of a modality's future in a mode."""

    GIVEN = "given"
    """Data at t = 0."""
    GENERATE = "generate"
    """From noise at t = 1 to data at t = 0."""
    UNKNOWN = "unknown"
    """Noise at t = 1 throughout."""
    ABSENT = "absent"
    """Its tokens are left out of the sequence."""


@dataclass(frozen=True, kw_only=True)
class ModeSpec:
    """A row of the table: the role of the future video and of the action chunk."""

    video: Role
    actions: Role
    imagines: bool = False
    """The video is generated for the sake of the actions only: the path ends when they are done (`path_grid`)."""

    @property
    def gives_video(self) -> bool:
        """Whether the mode generates video."""
        return self.video is Role.GENERATE

    @property
    def gives_actions(self) -> bool:
        """Whether the mode generates actions."""
        return self.actions is Role.GENERATE


MODES: dict[Mode, ModeSpec] = {
    Mode.POLICY: ModeSpec(video=Role.UNKNOWN, actions=Role.GENERATE),
    Mode.FORWARD: ModeSpec(video=Role.GENERATE, actions=Role.GIVEN),
    Mode.INVERSE: ModeSpec(video=Role.GIVEN, actions=Role.GENERATE),
    Mode.VIDEO: ModeSpec(video=Role.GENERATE, actions=Role.UNKNOWN),
    Mode.JOINT: ModeSpec(video=Role.GENERATE, actions=Role.GENERATE),
}

POLICY_PATHS: dict[str, ModeSpec] = {
    "unknown": MODES[Mode.POLICY],
    "absent": ModeSpec(video=Role.ABSENT, actions=Role.GENERATE),
    "joint": ModeSpec(video=Role.GENERATE, actions=Role.GENERATE, imagines=True),
}
"""Ways to act: with the future video unknown, left out (cheapest), or imagined with the actions, as far as they need it."""


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """How a path is cut into steps."""

    num_inference_steps: int = 8
    """Into which the whole path is cut; one that ends early has fewer (`path_grid`)."""
    shift_video: float = 1.0
    """Moves the video clock towards noise; the same number as in training is a good start."""
    shift_action: float = 1.0
    action_lead: float = 1.0
    """Where both are generated, the actions reach t = 0 after 1 / `action_lead` of the path; at least 1, so that
    t_video >= t_action all along (the region of the `ordered` density)."""
    video_steps: int = 0
    """Where both are generated: so many steps make the video first, then come those of the actions; 0: side by side."""
    video_stop: float = 0.0
    """Clock at which a policy leaves the video that it imagines for the sake of the actions."""

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ConfigError(f"num_inference_steps is {self.num_inference_steps}; allowed: 1 or more")
        if self.action_lead < 1:
            raise ConfigError(f"action_lead is {self.action_lead}; allowed: 1 or more")
        if self.video_steps < 0 or (self.video_steps and self.action_lead != 1):
            raise ConfigError(
                f"video_steps is {self.video_steps} and action_lead {self.action_lead}; allowed: 0 or more, and only one of "
                "the two: either the video leads or the actions do"
            )
        if not 0 <= self.video_stop < 1:
            raise ConfigError(f"video_stop is {self.video_stop}; allowed: 0 (all the way) to below 1")


def get_mode(name: str) -> Mode:
    """Return the mode of that name.

    Raises:
        ConfigError: There is no such mode.
    """
    if name not in list(Mode):
        raise ConfigError(one_of("mode", name, list(Mode)))
    return Mode(name)


def path_grid(spec: ModeSpec, config: PathConfig) -> Float[Tensor, "steps 2"]:
    """Return the points (t_video, t_action) of a path, from its start to its end, float64, one row more than steps.

    There are `num_inference_steps` steps, and `video_steps` before them where both are generated. A spec that `imagines` ends
    with the actions: after the first of these steps at which they are done, so with `action_lead` above 1 it has fewer. Its video
    goes towards `video_stop`: a clock t becomes stop + (1 - stop) t.
    """
    both = spec.gives_video and spec.gives_actions
    if both and config.video_steps:
        return _one_by_one(spec, config)
    s = torch.linspace(0, 1, config.num_inference_steps + 1, dtype=torch.float64)
    lead = config.action_lead if both else 1.0
    clocks = {
        Role.GIVEN: (torch.zeros_like(s), torch.zeros_like(s)),
        Role.GENERATE: (
            shift_time(1 - s, config.shift_video),
            shift_time((1 - lead * s).clamp(min=0), config.shift_action),
        ),
        Role.UNKNOWN: (torch.ones_like(s), torch.ones_like(s)),
        Role.ABSENT: (torch.ones_like(s), torch.ones_like(s)),
    }
    grid = torch.stack([clocks[spec.video][0], clocks[spec.actions][1]], dim=-1)
    if not spec.imagines:
        return grid
    grid[:, 0] = config.video_stop + (1 - config.video_stop) * grid[:, 0]
    return grid[: int((grid[:, 1] > 0).sum()) + 1]


def _one_by_one(spec: ModeSpec, config: PathConfig) -> Float[Tensor, "steps 2"]:
    """Return the path along two sides of the square: the video first, then the actions."""
    stop = config.video_stop if spec.imagines else 0.0
    u, s = (torch.linspace(1, 0, n + 1, dtype=torch.float64) for n in (config.video_steps, config.num_inference_steps))
    video = stop + (1 - stop) * shift_time(u, config.shift_video)
    actions = shift_time(s, config.shift_action)
    first = torch.stack([video, torch.ones_like(video)], dim=-1)
    return torch.cat([first, torch.stack([torch.full_like(actions, stop), actions], dim=-1)[1:]])
