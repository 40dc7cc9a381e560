"""What a session's call brings, and the rows of networks without chunks: they keep the last context frames and read them anew.

Such a network's answer to a frame depends on the frames after it, so nothing of it can be remembered between decisions but
the pixels; `act` does what a call of the pipeline does. The session's side is the same as with a causal network (`stream_chunks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError
from wam_video.flow.modes import ModeSpec, path_grid
from wam_video.inference.chunks import run
from wam_video.inference.commitment import PlanBefore
from wam_video.inference.inputs import Conditions, horizon, view_mask_of
from wam_video.inference.outputs import WAMOutput, physical_actions
from wam_video.inference.sampling import SamplingConfig, decode_future, prepare
from wam_video.models.image_context import ImageContext
from wam_video.models.transformer import WAMTransformer
from wam_video.models.video_codec import Codec

Text = tuple[Float[Tensor, "b s dt"], Float[Tensor, "b s dt"] | None]
"""The prompts of all rows, encoded, and the empty one, which only guidance needs."""

TOLERANCE = 0.25
"""Of the stride: by so much a frame may come sooner or later than the checkpoint's rate has it."""


@dataclass(frozen=True, kw_only=True)
class StreamSetup:
    """What does not change in a session."""

    transformer: WAMTransformer
    codec: Codec
    processor: WAMProcessor
    image: ImageContext
    device: torch.device
    embodiments: tuple[str, ...]
    """Of each row."""
    guidance: tuple[float, float]
    """Scales for video and for actions; 1 is none."""
    window: int | None
    """Chunks to remember; None: as many as the network was trained with."""

    @property
    def guided(self) -> bool:
        """Whether the unconditional pass is needed."""
        return any(scale != 1 for scale in self.guidance)

    @property
    def specs(self) -> tuple[EmbodimentSpec, ...]:
        """The body of each row."""
        return tuple(self.processor.spec(name) for name in self.embodiments)

    @property
    def view_mask(self) -> Bool[Tensor, "b v"]:
        """Which cameras each row has, of as many as the widest has."""
        most = self.processor.window.max_views
        return view_mask_of(self.specs, max(min(len(spec.views), most) for spec in self.specs), self.processor.window)

    def bodies(self, rows: Sequence[int]) -> Int[Tensor, " n"]:
        """Return the ids of some rows' embodiments."""
        return self.processor.indices([self.embodiments[row] for row in rows])


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One call of `observe`, brought into one form."""

    rows: tuple[int, ...]
    video: Float[Tensor, "n v 3 f h w"]
    """In [-1, 1], at the model's size."""
    times: Float[np.ndarray, "n f"] | None
    """Seconds on the robot's clock."""
    state: Float[Tensor, "n ds"]
    state_mask: Bool[Tensor, "n ds"]
    actions: tuple[Float[Tensor, "k da"], ...] | None
    """Carried out in each row since its last frame, in physical units, padded to the widest body's."""

    @property
    def count(self) -> int:
        """Frames."""
        return self.video.shape[3]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One call of `act`, brought into one form."""

    rows: tuple[int, ...]
    spec: ModeSpec
    sampling: SamplingConfig
    generators: list[torch.Generator]
    decode: bool
    before: PlanBefore = field(default_factory=PlanBefore)

    @property
    def shows(self) -> bool:
        """Whether there will be a video to decode: the path goes on until it is made, and it is asked for."""
        return self.decode and self.spec.gives_video and bool(path_grid(self.spec, self.sampling.path)[-1, 0] == 0)


def gaps(times: Float[np.ndarray, " f"], last: float | None) -> Float[np.ndarray, " f"]:
    """Return the seconds between each frame and the one before it; NaN for the first of all.

    Raises:
        ConfigError: Time does not rise.
    """
    steps = np.diff(times, prepend=np.nan if last is None else last)
    if not (np.isfinite(times).all() and (np.isnan(steps) | (steps > 0)).all()):
        after = "" if last is None else f" after {last:.6g}"
        raise ConfigError(f"times are {times.tolist()}{after}; allowed: seconds that rise from frame to frame")
    return steps


def wrong_rate(gap: float, stride: float, hint: str) -> ConfigError:
    """Return the error that frames do not come at the checkpoint's rate, which it names."""
    return ConfigError(
        f"frames are {gap:.4g} s apart; this checkpoint reads one every {stride:.4g} s ({1 / stride:.4g} frames a second): {hint}"
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a row still has to know."""

    frames: tuple[tuple[float, Float[Tensor, "v 3 h w"]], ...] = ()
    """The last frames and their seconds, on the robot's clock if it told, the newest last."""
    told: bool = False
    """Whether the robot told its clock."""
    state: Float[Tensor, " ds"] | None = None
    state_mask: Bool[Tensor, " ds"] | None = None


class WindowMemory:
    """The rows of a session with a network without chunks.

    Args:
        setup: What does not change.
        text: The prompts.

    Raises:
        ConfigError: Chunks are to be kept, and there are none.
    """

    remembers = 0
    """Chunks."""

    def __init__(self, setup: StreamSetup, text: Text) -> None:
        self._setup, self._text = setup, text
        self._window = setup.processor.window
        self._rows = [_Seen() for _ in setup.embodiments]
        self._views = setup.view_mask
        if setup.window is not None:
            raise ConfigError(
                f"window is {setup.window}, but this network has no chunks: it reads the last {self._window.num_context_frames} "
                "frames; leave it out"
            )

    def begun(self, row: int) -> bool:
        """Say whether a row has observed anything."""
        return bool(self._rows[row].frames)

    def reset(self, rows: Sequence[int]) -> None:
        """Forget everything of some rows but their prompts."""
        for index in rows:
            self._rows[index] = _Seen()

    def prompt(self, text: Text, rows: Sequence[int]) -> None:
        """Use other prompts."""
        self._text = text

    def observe(self, seen: Observation) -> None:
        """Keep the frames that the next decision reads; actions are not read by such a network.

        Raises:
            ConfigError: Frames come faster than the checkpoint reads them; nothing has changed then.
        """
        rows = [self._after(index, place, seen) for place, index in enumerate(seen.rows)]
        for index, row in zip(seen.rows, rows, strict=True):
            self._rows[index] = row

    def _after(self, index: int, place: int, seen: Observation) -> _Seen:
        row, stride, count = self._rows[index], self._window.context_stride_s, self._window.num_context_frames
        last = row.frames[-1][0] if row.frames else None
        if seen.times is None:
            times = np.arange(1, seen.count + 1) * stride + (last or 0.0)
        else:
            times = seen.times[place]
            for gap in gaps(times, last if row.told else None):
                if count > 1 and gap < (1 - TOLERANCE) * stride:
                    raise wrong_rate(float(gap), stride, "leave out the frames between")
        before = row.frames if seen.times is None or row.told else ()
        new = zip(times.tolist(), seen.video[place].unbind(2), strict=True)
        frames = [*before, *((time, frame.clone()) for time, frame in new)]
        oldest = frames[-1][0] - (count - 1 + TOLERANCE) * stride
        return _Seen(
            frames=tuple((time, frame) for time, frame in frames if time >= oldest),
            told=seen.times is not None or row.told,
            state=seen.state[place],
            state_mask=seen.state_mask[place],
        )

    @torch.no_grad()
    def act(self, order: Decision) -> WAMOutput:
        """Decide anew from the last context frames.

        Returns:
            Actions from the last frame on, as tensors; the video if the path makes it and it is asked for.
        """
        setup, conditions = self._setup, self._conditions(order)
        rows = torch.tensor(order.rows, device=self._text[0].device)
        texts = self._text[0][rows], None if self._text[1] is None else self._text[1][rows]
        prepared = prepare(
            setup.codec,
            setup.processor,
            conditions,
            order.spec,
            order.generators,
            setup.transformer,
            setup.device,
            setup.image,
        )
        end = run(setup.transformer, prepared, order.spec, texts, order.sampling, lambda *_: None)
        assert end.actions is not None, "a policy generates actions"
        video = decode_future(setup.codec, prepared, end, conditions).cpu() if order.shows else None
        return WAMOutput(actions=physical_actions(setup.processor, end.actions, conditions), video=video)

    def _conditions(self, order: Decision) -> Conditions:
        window, setup, rows = self._window, self._setup, order.rows
        names = tuple(setup.embodiments[row] for row in rows)
        video, known = zip(*(self._context(row) for row in rows), strict=True)
        horizons = [horizon(window, name) for name in names]
        commitment = order.before.rows(names, setup.processor, horizons)
        steps = torch.arange(window.action_horizon)
        rates = [setup.processor.spec(name).action_rate for name in names]
        return Conditions(
            video=torch.stack(video),
            frame_mask=torch.stack(known)[:, None] & self._views[list(rows)][:, :, None],
            frame_times=torch.from_numpy(window.frame_times()).float().expand(len(rows), -1),
            num_context_frames=window.num_context_frames,
            actions=commitment.actions * commitment.committed[..., None],
            action_given=commitment.committed,
            action_exists=steps[None] < torch.tensor(horizons)[:, None],
            action_times=torch.stack([torch.from_numpy(window.action_times(rate)).float() for rate in rates]),
            state=torch.stack([state for state in (self._rows[row].state for row in rows) if state is not None]),
            state_mask=torch.stack([mask for mask in (self._rows[row].state_mask for row in rows) if mask is not None]),
            prompts=("",) * len(rows),  # encoded already
            embodiments=names,
            commitment=commitment,
        )

    def _context(self, index: int) -> tuple[Float[Tensor, "v 3 f h w"], Bool[Tensor, " f"]]:
        """Return a row's context frames and which of them there are; the others are black."""
        frames, stride = self._rows[index].frames, self._window.context_stride_s
        picked, known = [], []
        for place in range(self._window.num_context_frames):
            wanted = frames[-1][0] - (self._window.num_context_frames - 1 - place) * stride
            time, frame = min(frames, key=lambda one: abs(one[0] - wanted))
            there = abs(time - wanted) <= TOLERANCE * stride
            picked.append(frame if there else torch.full_like(frame, -1.0))
            known.append(there)
        return torch.stack(picked, dim=2), torch.tensor(known)
