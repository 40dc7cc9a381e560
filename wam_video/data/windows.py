"""Windows: context frames, future frames, an action chunk and the state, cut from a clip on one time axis.

Time 0 is the last context frame, the anchor. Everything is found by time, so video and actions may have any two rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from wam_video.data.actions import action_at, cut_chunk
from wam_video.data.reader import Clip
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError, DataError

_HALF = 0.5 + 1e-6
_ALIGNED = 0.25
"""An anchor's action may start so many action periods beside the frame; beyond, the frame is no anchor."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """What a model sees at once."""

    num_context_frames: int = 2
    """Past frames, the present one included."""
    num_future_frames: int = 2
    context_stride_s: float = 0.2
    """Seconds between context frames."""
    future_stride_s: float = 0.2
    """Seconds between future frames; the first comes so long after time 0."""
    action_horizon: int = 8
    """Action steps from time 0 on, at each embodiment's own rate."""
    action_horizons: dict[str, int] = field(default_factory=dict)
    """Embodiment -> a shorter horizon; its other steps are masked."""
    num_states: int = 1
    """States: that at time 0, and those that divide the action horizon evenly after it, one for each chunk of a causal
    network."""
    max_views: int = 1
    """The first so many views of each embodiment; absent ones are masked."""
    height: int | None = None
    """Pixels; None is the stored size."""
    width: int | None = None

    def __post_init__(self) -> None:
        for what, value, low in (
            ("num_context_frames", self.num_context_frames, 1),
            ("num_future_frames", self.num_future_frames, 0),
            ("action_horizon", self.action_horizon, 1),
            ("num_states", self.num_states, 1),
            ("max_views", self.max_views, 1),
            ("height", 1 if self.height is None else self.height, 1),
            ("width", 1 if self.width is None else self.width, 1),
        ):
            if value < low:
                raise ConfigError(f"window {what} is {value}; it must be at least {low}")
        for what, stride in (("context_stride_s", self.context_stride_s), ("future_stride_s", self.future_stride_s)):
            if not stride > 0:
                raise ConfigError(f"window {what} is {stride}; it must be above 0 seconds")
        if (self.height is None) != (self.width is None):
            raise ConfigError(
                f"window height is {self.height}, width is {self.width}; give both, or neither for the stored size"
            )
        if self.action_horizon % self.num_states:
            raise ConfigError(
                f"window num_states is {self.num_states}; allowed: divisors of action_horizon ({self.action_horizon})"
            )
        for name, horizon in self.action_horizons.items():
            if not 0 <= horizon <= self.action_horizon:
                raise ConfigError(
                    f"action_horizons.{name} is {horizon}; allowed: 0 to action_horizon {self.action_horizon}"
                )

    @property
    def num_frames(self) -> int:
        """Context and future frames."""
        return self.num_context_frames + self.num_future_frames

    def frame_times(self) -> Float[np.ndarray, " f"]:
        """Return the seconds of the frames, 0 at the last context frame."""
        past = np.arange(1 - self.num_context_frames, 1) * self.context_stride_s
        return np.concatenate([past, np.arange(1, self.num_future_frames + 1) * self.future_stride_s])

    def action_times(self, action_rate: float) -> Float[np.ndarray, " ta"]:
        """Return the seconds at which the actions start; zeros for an embodiment without actions."""
        return np.arange(self.action_horizon) / (action_rate or np.inf)

    def check_rate(self, spec: EmbodimentSpec) -> None:
        """Raise unless neighbouring frames of a window are different stored frames.

        Raises:
            DataError: A stride is shorter than the period of the stored video.
        """
        used = {"context_stride_s": self.num_context_frames > 1, "future_stride_s": self.num_future_frames > 0}
        for what in (name for name, is_used in used.items() if is_used):
            if getattr(self, what) * spec.fps < 1 - 1e-3:
                raise DataError(
                    f"window {what} is {getattr(self, what)}; embodiment {spec.name!r} is stored at {spec.fps:g} fps, "
                    f"allowed: at least {1 / spec.fps:.4g} (or convert it again at a higher fps)"
                )


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window, in physical units; what is missing is zero and False in its mask."""

    video: UInt8[np.ndarray, "v f h w c"]
    frame_mask: Bool[np.ndarray, "v f"]
    actions: Float[np.ndarray, "ta da"]
    action_mask: Bool[np.ndarray, "ta da"]
    state: Float[np.ndarray, " ds"] | None
    later_states: Float[np.ndarray, "s ds"] | None = None
    """The other states of `num_states`; fewer where the clip ends."""


def anchors(num_frames: int, num_actions: int, spec: EmbodimentSpec, config: WindowConfig) -> Int[np.ndarray, " n"]:
    """Return the frames of a clip at which a window may have its time 0.

    Those at which an action starts and belongs to the clip; without actions, those with a future frame in the clip.
    """
    frames = np.arange(num_frames)
    if num_actions > 0:
        index, off = action_at(frames, spec.fps, spec.action_rate)
        return frames[(index < num_actions) & (off <= _ALIGNED)]
    ahead = config.future_stride_s * spec.fps if config.num_future_frames else 0
    return frames[frames + ahead <= num_frames - 1 + _HALF]


def frame_indices(num_frames: int, fps: float, anchor: int, config: WindowConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored frame nearest to each frame time of a window, and whether it lies within half a period of the clip."""
    exact = anchor + config.frame_times() * fps
    inside = (exact >= -_HALF) & (exact <= num_frames - 1 + _HALF)
    return np.clip(np.ceil(exact - _HALF), 0, num_frames - 1).astype(np.int64), inside


def cut_window(
    clip: Clip,
    anchor: int,
    config: WindowConfig,
    views: Sequence[str] | None = None,
    out: UInt8[np.ndarray, "v f h w c"] | None = None,
) -> Window:
    """Cut one window.

    Args:
        clip: A decoded sample whose pixels have the window's size already.
        anchor: Stored frame at time 0.
        config: What to cut.
        views: Cameras in the order of the result; the clip's by default. At most `config.max_views` are used.
        out: Where to put the pixels, if it has their shape; whatever it held is written over.
    """
    info = clip.info
    names = list(clip.video if views is None else views)[: config.max_views]
    count, fps = info["num_frames"], info["fps"]
    index, inside = frame_indices(count, fps, anchor, config)
    sizes = [video.shape[1:] for video in clip.video.values()]
    if len(set(sizes)) != 1:
        raise DataError(
            f"clip of episode {info['episode_id']!r} has views of sizes {sorted(set(sizes))}; they must agree"
        )
    shape = (config.max_views, config.num_frames, *sizes[0])
    video = out if out is not None and out.shape == shape else np.empty(shape, np.uint8)
    mask = np.zeros(shape[:2], np.bool_)
    for place, name in enumerate(names):
        if name in clip.video:
            clip.video[name].take(index, axis=0, out=video[place], mode="clip")
            mask[place] = inside
    video[~mask.any(1)] = 0
    if not inside.all():
        video[:, ~inside] = 0
    start = int(action_at(anchor, fps, info["action_rate"])[0]) if clip.actions is not None else 0
    allowed = config.action_horizons.get(info["embodiment"])
    actions, action_mask = cut_chunk(clip.actions, start, config.action_horizon, allowed)
    state = later = None
    if clip.state is not None:
        state = clip.state[min(start, len(clip.state) - 1)]
        each = config.action_horizon // config.num_states
        later = clip.state[start + each : start + config.action_horizon : each]
    return Window(
        video=video, frame_mask=mask, actions=actions, action_mask=action_mask, state=state, later_states=later
    )
