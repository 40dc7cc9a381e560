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
    "joint": MODES[Mode.JOINT],
}
"""Ways to act: with the future video unknown, left out (cheapest), or imagined along the diagonal."""


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """How a path is cut into steps."""

    num_inference_steps: int = 8
    shift_video: float = 1.0
    """Moves the video clock towards noise; the same number as in training is a good start."""
    shift_action: float = 1.0
    action_lead: float = 1.0
    """Where both are generated, the actions reach t = 0 after 1 / `action_lead` of the path; at least 1, so that
    t_video >= t_action all along (the region of the `ordered` density)."""

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ConfigError(f"num_inference_steps is {self.num_inference_steps}; allowed: 1 or more")
        if self.action_lead < 1:
            raise ConfigError(f"action_lead is {self.action_lead}; allowed: 1 or more")


def get_mode(name: str) -> Mode:
    """Return the mode of that name.

    Raises:
        ConfigError: There is no such mode.
    """
    if name not in list(Mode):
        raise ConfigError(one_of("mode", name, list(Mode)))
    return Mode(name)


def path_grid(spec: ModeSpec, config: PathConfig) -> Float[Tensor, "steps 2"]:
    """Return the points (t_video, t_action) of a path, from its start to its end, float64, one row more than steps."""
    s = torch.linspace(0, 1, config.num_inference_steps + 1, dtype=torch.float64)
    lead = config.action_lead if spec.gives_video else 1.0
    clocks = {
        Role.GIVEN: (torch.zeros_like(s), torch.zeros_like(s)),
        Role.GENERATE: (
            shift_time(1 - s, config.shift_video),
            shift_time((1 - lead * s).clamp(min=0), config.shift_action),
        ),
        Role.UNKNOWN: (torch.ones_like(s), torch.ones_like(s)),
        Role.ABSENT: (torch.ones_like(s), torch.ones_like(s)),
    }
    return torch.stack([clocks[spec.video][0], clocks[spec.actions][1]], dim=-1)
