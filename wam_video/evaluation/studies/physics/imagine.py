"""Imagine a take: forward after forward, each from the pictures that the ones before it made.

Context frames that no window made (future frames may be further apart than past ones) are masked, as at the start of a
recording. Windows in between would give them, but pictures of two chains that drift apart in turn look like motion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, UInt8

from wam_video.data.schema import EmbodimentSpec
from wam_video.data.windows import WindowConfig
from wam_video.evaluation.moments import Frames, Moment, batch_of, look_ahead, look_back
from wam_video.evaluation.open_loop import Sampler, window_seed
from wam_video.evaluation.studies.physics.takes import Take
from wam_video.inference.inputs import horizon
from wam_video.tensors import Mode


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """When a model's windows begin and what they give, in control steps."""

    back: tuple[int, ...]
    """Context frames before the moment of a window, the oldest first."""
    ahead: tuple[int, ...]
    """Future frames after it, within reach of the window's actions."""

    @classmethod
    def of(cls, window: WindowConfig, spec: EmbodimentSpec) -> "Rhythm":
        """Return the rhythm of a model on a body."""
        reach = horizon(window, spec.name)
        ahead = tuple(step for step in look_ahead(window, spec) if 0 < step <= reach)
        return cls(back=look_back(window, spec), ahead=ahead)

    def moments(self, length: int) -> list[int]:
        """Return the moments of the windows that imagine `length` steps: each begins where the one before it ends."""
        return list(range(0, length - self.ahead[0] + 1, self.ahead[-1]))

    def steps(self, length: int) -> list[int]:
        """Return the steps at which there will be a picture."""
        made = {m + step for m in self.moments(length) for step in self.ahead}
        return sorted(step for step in made if 0 < step <= length)


@dataclass(kw_only=True)
class _Dream:
    """A take while it is imagined: pictures by steps from now."""

    take: Take
    actions: Float32[np.ndarray, "t da"]
    pictures: dict[int, Frames] = field(default_factory=dict[int, Frames])

    def moment(self, at: int, back: Sequence[int]) -> Moment:
        take = self.take
        seen = {b: self.pictures[at - b] for b in back if at - b in self.pictures}
        return Moment(
            pictures=seen,
            state=take.states[take.now + at] if at <= 0 else np.zeros_like(take.states[0]),
            prompt=take.prompt,
            key=f"{take.start}-{take.kind}@{at}",
            actions=self.actions[take.now + at :],
        )


@dataclass(frozen=True, kw_only=True)
class Dreamer:
    """A model's forward mode over long stretches.

    The body's state is known up to now; later windows have none, because it would tell where the body really is.
    """

    sampler: Sampler
    window: WindowConfig
    spec: EmbodimentSpec
    seed: int
    batch_size: int

    @property
    def rhythm(self) -> Rhythm:
        """When its windows begin."""
        return Rhythm.of(self.window, self.spec)

    def imagine(
        self, takes: Sequence[Take], actions: Sequence[Float32[np.ndarray, "t da"]], view: str, length: int
    ) -> list[UInt8[np.ndarray, "f h w 3"]]:
        """Return one film a take: the last real picture, then those at `rhythm.steps(length)`.

        Args:
            takes: What is seen up to now.
            actions: What is done, along the take; the model is told no others.
            view: To show.
            length: Steps from now on.
        """
        dreams = []
        for take, told in zip(takes, actions, strict=True):
            past: dict[int, Frames] = {
                i - take.now: {v: x[i] for v, x in take.views.items()} for i in range(take.now + 1)
            }
            dreams.append(_Dream(take=take, actions=told[: take.now + length], pictures=past))
        for at in self.rhythm.moments(length):
            for start in range(0, len(dreams), self.batch_size):
                self._advance(dreams[start : start + self.batch_size], at)
        steps = [0, *self.rhythm.steps(length)]
        return [np.stack([dream.pictures[step][view] for step in steps]) for dream in dreams]

    def _advance(self, dreams: Sequence[_Dream], at: int) -> None:
        moments = [dream.moment(at, self.rhythm.back) for dream in dreams]
        batch = batch_of(moments, self.window, self.spec, "physics")
        if at > 0:
            batch = replace(batch, state_mask=torch.zeros_like(batch.state_mask))
        made = self.sampler(Mode.FORWARD, batch, [window_seed(self.seed, key) for key in batch.keys]).video
        assert made is not None  # forward always gives video
        pixels = (made * 255).round().clamp(0, 255).to(torch.uint8)
        frames = rearrange(pixels, "b v f c h w -> b f v h w c").cpu().numpy()
        views = self.spec.views[: frames.shape[2]]
        for dream, row in zip(dreams, frames, strict=True):
            for step, pictures in zip(self.rhythm.ahead, row, strict=False):
                dream.pictures.setdefault(at + step, dict(zip(views, pictures, strict=True)))
