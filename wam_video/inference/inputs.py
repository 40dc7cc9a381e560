"""What a caller hands in, checked and brought into one form: the `Conditions` of a sampling run.

A mode reads the past, and of the future only what its row of the table says is given. What a mode may not read is not in
its conditions at all, so it can't leak.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.video import resize
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError
from wam_video.flow.modes import ModeSpec, Role
from wam_video.inference.commitment import Commitment, PlanBefore
from wam_video.inference.per_row import one_each
from wam_video.tensors import Batch, Mode, to_unit_range


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call, as the caller wrote it."""

    mode: Mode
    spec: ModeSpec
    video: Any
    state: Any = None
    prompt: str | Sequence[str] = ""
    embodiment: str | Sequence[str] | None = None
    actions: Any = None
    before: PlanBefore = field(default_factory=PlanBefore)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a mode reads, on the CPU: pixels in [-1, 1], actions and state in physical units padded to the model's width."""

    video: Float[Tensor, "b v 3 f h w"]
    """The context frames, and after them the future frames where the mode is given them."""
    frame_mask: Bool[Tensor, "b v f"]
    """False for frames of `video` that are missing; they are unknown to the model."""
    frame_times: Float[Tensor, "b F"]
    """Seconds of all frames of the window, the generated ones too."""
    num_context_frames: int
    actions: Float[Tensor, "b ta da"]
    """Given actions; zeros elsewhere."""
    action_given: Bool[Tensor, "b ta"]
    action_exists: Bool[Tensor, "b ta"]
    """False past the horizon of a body that has a shorter one than the model; such steps are unknown, as in training."""
    action_times: Float[Tensor, "b ta"]
    state: Float[Tensor, "b ds"]
    state_mask: Bool[Tensor, "b ds"]
    prompts: tuple[str, ...]
    embodiments: tuple[str, ...]
    commitment: Commitment | None = None
    """The plan before, where actions are generated; its committed actions are among those given."""

    def __len__(self) -> int:
        return len(self.embodiments)

    @property
    def num_future_frames(self) -> int:
        """Frames of the window after time 0."""
        return self.frame_times.shape[1] - self.num_context_frames


def build_conditions(processor: WAMProcessor, request: Request) -> Conditions:
    """Check a call's inputs and return them as conditions.

    Raises:
        ConfigError: Something is missing, superfluous, or of the wrong type, width, length or range.
    """
    window = processor.window
    frames = frames_array(request.video)
    embodiments = embodiments_of(request.embodiment, len(frames), processor)
    video = model_pixels(frames, window, [processor.fit(name) for name in embodiments])
    specs = [processor.spec(name) for name in embodiments]
    video, frame_mask = _fit_frames(video, request.mode, request.spec, window)
    frame_mask = frame_mask & view_mask_of(specs, video.shape[1], window)[:, :, None]
    horizons = [horizon(window, name) for name in embodiments]
    _check_action_role(request, specs, horizons)
    commitment = request.before.rows(embodiments, processor, horizons) if request.spec.gives_actions else None
    if commitment is None:
        actions, action_given = _actions(request, specs, horizons, processor)
    else:
        actions, action_given = commitment.actions * commitment.committed[..., None], commitment.committed
    state, state_mask = state_of(request.state, specs, embodiments, processor)
    return Conditions(
        video=video,
        frame_mask=frame_mask,
        frame_times=_float(window.frame_times()).expand(len(specs), -1),
        num_context_frames=window.num_context_frames,
        actions=actions,
        action_given=action_given,
        action_exists=_exists(window, embodiments),
        action_times=torch.stack([_float(window.action_times(spec.action_rate)) for spec in specs]),
        state=state,
        state_mask=state_mask,
        prompts=per_sample("prompt", request.prompt, len(specs)),
        embodiments=embodiments,
        commitment=commitment,
    )


def batch_conditions(
    processor: WAMProcessor,
    batch: Batch,
    spec: ModeSpec,
    committed_steps: int = 0,
    planned_steps: int = 0,
    continuation: str = "prefix",
) -> Conditions:
    """Return what a mode may read of recorded windows; the rest of the batch is not looked at.

    Args:
        processor: The model's.
        batch: Recorded windows.
        spec: The mode's row of the table.
        committed_steps: Recorded actions that count as committed already where actions are generated.
        planned_steps: Recorded actions after them that count as planned.
        continuation: What is made of the two.
    """
    batch = batch.to("cpu")
    known = batch.action_mask.any(-1)
    steps = torch.arange(known.shape[1])
    visible = known.shape[1] if spec.actions is Role.GIVEN else committed_steps if spec.gives_actions else 0
    given = known & (steps < visible)
    planned = known & (steps >= visible) & (steps < visible + (planned_steps if spec.gives_actions else 0))
    actions = _pad(batch.actions * ((given | planned)[..., None] & batch.action_mask), processor.max_action_dim)
    frames = batch.video.shape[3] if spec.video is Role.GIVEN else batch.num_context_frames
    return Conditions(
        video=to_unit_range(batch.video[:, :, :, :frames]),
        frame_mask=batch.frame_mask[:, :, :frames],
        frame_times=batch.frame_times,
        num_context_frames=batch.num_context_frames,
        actions=actions * given[..., None],
        action_given=given,
        action_exists=_exists(processor.window, batch.embodiments)[:, : known.shape[1]],
        action_times=batch.action_times,
        state=_pad(batch.state, processor.max_state_dim),
        state_mask=_pad(batch.state_mask, processor.max_state_dim),
        prompts=batch.prompts,
        embodiments=batch.embodiments,
        commitment=Commitment(actions=actions, committed=given, planned=planned, continuation=continuation)
        if spec.gives_actions
        else None,
    )


def horizon(window: WindowConfig, embodiment: str) -> int:
    """Return how many actions a chunk of `embodiment` has."""
    return window.action_horizons.get(embodiment, window.action_horizon)


def _exists(window: WindowConfig, embodiments: Sequence[str]) -> Bool[Tensor, "b ta"]:
    counts = torch.tensor([horizon(window, name) for name in embodiments])
    return torch.arange(window.action_horizon)[None] < counts[:, None]


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()


def _pad(x: Tensor, width: int) -> Tensor:
    """Widen the last axis with zeros: a data set may have fewer bodies than the model."""
    if x.shape[-1] > max(width, 1):
        raise ConfigError(f"the windows are {x.shape[-1]} wide; this model's bodies have at most {width} dimensions")
    return torch.nn.functional.pad(x, (0, max(width, 1) - x.shape[-1]))


def frames_array(video: Any) -> Shaped[np.ndarray, "b v f _ _ _"]:
    """Return a caller's frames with a batch axis: uint8 `b v f h w 3`, or float in [0, 1] `b v f 3 h w`."""
    array = video.detach().cpu().numpy() if isinstance(video, Tensor) else np.asarray(video)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(
            f"video is of type {array.dtype}; allowed: uint8 '[b] v f h w c', or float in [0, 1] '[b] v f 3 h w'"
        )
    channels = -1 if array.dtype == np.uint8 else -3
    if array.ndim not in (5, 6) or array.shape[channels] != 3 or 0 in array.shape:
        raise ConfigError(
            f"video is {array.dtype} of shape {array.shape}; allowed: uint8 '[b] v f h w 3', or float in [0, 1] '[b] v f 3 h w'"
        )
    if array.dtype != np.uint8 and not (array.min() >= 0 and array.max() <= 1):
        raise ConfigError(f"video as floats lies in {array.min()}..{array.max()}; allowed: 0 to 1, or uint8")
    return array[None] if array.ndim == 5 else array


def model_pixels(
    array: Shaped[np.ndarray, "b v f _ _ _"], window: WindowConfig, fits: Sequence[str]
) -> Float[Tensor, "b v 3 f h w"]:
    """Bring frames into [-1, 1] at the model's size, each sample as its embodiment's recordings were."""
    if array.dtype != np.uint8:
        if _size(window, array.shape[-2:]) == array.shape[-2:]:
            return rearrange(torch.from_numpy(array.astype(np.float32)) * 2 - 1, "b v f c h w -> b v c f h w")
        array = rearrange(np.rint(array * 255).astype(np.uint8), "b v f c h w -> b v f h w c")
    height, width = _size(window, array.shape[-3:-1])
    if (height, width) != array.shape[-3:-1]:
        flat = [
            resize(frame, height, width, fit)
            for sample, fit in zip(array, fits, strict=True)
            for frame in sample.reshape(-1, *sample.shape[-3:])
        ]
        array = np.stack(flat).reshape(*array.shape[:3], height, width, 3)
    return to_unit_range(torch.from_numpy(rearrange(array, "b v f h w c -> b v c f h w").copy()))


def _size(window: WindowConfig, given: tuple[int, ...]) -> tuple[int, int]:
    return window.height or given[0], window.width or given[1]


def _fit_frames(
    video: Tensor, mode: Mode, spec: ModeSpec, window: WindowConfig
) -> tuple[Float[Tensor, "b v 3 f h w"], Bool[Tensor, "b v f"]]:
    """Put missing older context frames in front, as black frames that the mask leaves out."""
    future = window.num_future_frames if spec.video is Role.GIVEN else 0
    wanted, count = window.num_context_frames + future, video.shape[3]
    if not future < count <= wanted:
        reads = f"{window.num_context_frames} context frames" + (f" and {future} future frames" if future else "")
        raise ConfigError(
            f"video has {count} frames; mode {mode.value!r} reads {reads} (the oldest may be left out): "
            f"allowed {future + 1} to {wanted}"
        )
    missing = video.new_full((*video.shape[:3], wanted - count, *video.shape[4:]), -1.0)
    mask = torch.arange(wanted) >= wanted - count
    return torch.cat([missing, video], dim=3), mask.expand(*video.shape[:2], wanted)


def view_mask_of(specs: Sequence[EmbodimentSpec], views: int, window: WindowConfig) -> Bool[Tensor, "b v"]:
    """Return which cameras each body has.

    Raises:
        ConfigError: A video of `views` cameras is not what these bodies have.
    """
    counts = [min(len(spec.views), window.max_views) for spec in specs]
    if views != max(counts):
        spec = specs[counts.index(max(counts))]
        raise ConfigError(
            f"video has {views} views; embodiment {spec.name!r} has {max(counts)}: {', '.join(spec.views[: max(counts)])}"
        )
    return torch.arange(views)[None] < torch.tensor(counts)[:, None]


def embodiments_of(given: str | Sequence[str] | None, batch: int, processor: WAMProcessor) -> tuple[str, ...]:
    """Return the body of each sample; it need not be named where the model knows only one.

    Raises:
        ConfigError: It must be named, or the model does not know it.
    """
    if given is None:
        names = [spec["name"] for spec in processor.config["embodiments"]]
        if len(names) > 1:
            raise ConfigError(f"embodiment is missing; this model knows: {', '.join(names)}")
        return (names[0],) * batch
    names = per_sample("embodiment", given, batch)
    for name in names:
        processor.index(name)
    return names


def per_sample(what: str, values: str | Sequence[str], batch: int) -> tuple[str, ...]:
    """Return one string a sample.

    Raises:
        ConfigError: There are more or fewer.
    """
    if isinstance(values, str):
        return (values,) * batch
    if len(values) != batch or not all(isinstance(value, str) for value in values):
        raise ConfigError(
            f"{what} has {len(values)} entries for {batch} samples; give one string, or a list of one a sample"
        )
    return tuple(values)


def _check_action_role(request: Request, specs: list[EmbodimentSpec], horizons: list[int]) -> None:
    mode, role = request.mode.value, request.spec.actions
    if role is not Role.UNKNOWN:
        for spec, count in zip(specs, horizons, strict=True):
            if spec.action_dim == 0 or count == 0:
                raise ConfigError(f"embodiment {spec.name!r} has no actions; allowed for it: mode 'video'")
    if role is Role.GIVEN and request.actions is None:
        raise ConfigError(
            f"actions are missing; mode {mode!r} needs {max(horizons)} of them: give actions, or use mode 'video'"
        )
    if role is not Role.GIVEN and request.actions is not None:
        use = "generates them" if role is Role.GENERATE else "does not read any"
        raise ConfigError(f"actions are given, but mode {mode!r} {use}; leave them out or use mode 'forward'")
    for what in ("committed_actions", "planned_actions"):
        if role is not Role.GENERATE and getattr(request.before, what) is not None:
            raise ConfigError(f"{what} are given, but mode {mode!r} generates no actions; leave them out")


def _actions(
    request: Request, specs: list[EmbodimentSpec], horizons: list[int], processor: WAMProcessor
) -> tuple[Float[Tensor, "b ta da"], Bool[Tensor, "b ta"]]:
    """Return the given actions padded to the model's horizon and width, and which steps they are."""
    actions = torch.zeros(len(specs), processor.window.action_horizon, max(processor.max_action_dim, 1))
    known = torch.zeros(actions.shape[:2], dtype=torch.bool)
    if request.actions is None:
        return actions, known
    names = tuple(spec.name for spec in specs)
    rows = one_each("actions", request.actions, [spec.action_dim for spec in specs], names, ndim=2)
    for i, (row, count) in enumerate(zip(rows, horizons, strict=True)):
        if (steps := row.shape[0]) != count:
            raise ConfigError(
                f"actions have {steps} steps; allowed: exactly {count}, the action horizon of {names[i]!r}"
            )
        actions[i, :steps, : row.shape[1]] = row
        known[i, :steps] = True
    return actions, known


def state_of(
    given: Any, specs: Sequence[EmbodimentSpec], embodiments: tuple[str, ...], processor: WAMProcessor
) -> tuple[Float[Tensor, "b ds"], Bool[Tensor, "b ds"]]:
    """Return proprioception padded to the model's width, in physical units, and which of it is real; None: unknown.

    Raises:
        ConfigError: It is not as wide as the body's, or no finite numbers.
    """
    state = torch.zeros(len(specs), max(processor.max_state_dim, 1))
    mask = torch.zeros(state.shape, dtype=torch.bool)
    if given is not None:
        for i, row in enumerate(one_each("state", given, [spec.state_dim for spec in specs], embodiments, ndim=1)):
            state[i, : len(row)] = row
            mask[i, : len(row)] = True
    return state, mask
