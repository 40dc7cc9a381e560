"""A world seen from above that pushes by whole pixels: a blue body, a red thing that moves only if the body runs into it."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from wam_video.data.schema import EmbodimentSpec
from wam_video.data.simulation import Controller, Outcome, Scene, Thing
from wam_video.data.windows import WindowConfig
from wam_video.evaluation.open_loop import Generated
from wam_video.evaluation.studies.physics.colours import find
from wam_video.tensors import Batch, Mode

SIDE, BODY, THING = 48, 4, 8
COLOURS = {"body": (30, 60, 250), "thing": (230, 40, 30)}
SPEC = EmbodimentSpec(name="pusher", action_dim=2, state_dim=2, views=("top",), fps=10.0, action_rate=10.0)
WINDOW = WindowConfig(
    num_context_frames=2, num_future_frames=2, context_stride_s=0.1, future_stride_s=0.4, action_horizon=8,
    height=SIDE, width=SIDE,
)  # fmt: skip


def draw(body: np.ndarray, thing: np.ndarray) -> np.ndarray:
    """Draw upper left corners (x, y)."""
    frame = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for name, at, side in (("thing", thing, THING), ("body", body, BODY)):
        x, y = (int(v) for v in at)
        frame[max(0, y) : max(0, y + side), max(0, x) : max(0, x + side)] = COLOURS[name]
    return frame


def push(
    body: np.ndarray, thing: np.ndarray, action: np.ndarray, glued: bool = False
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Move the body by at most a pixel; what it runs into goes along."""
    step = np.clip(np.rint(action), -1, 1)
    body = np.clip(body + step, 0, SIDE - BODY)
    hit = bool((body < thing + THING).all() and (thing < body + BODY).all())
    return body, np.clip(thing + step * (hit and not glued), 0, SIDE - THING), hit


class PushWorld:
    """The expert drives straight into the thing; the way depends on the start."""

    name: ClassVar[str] = "push"
    looks_like: ClassVar[str] = "push"
    spec = SPEC
    tasks = ("push",)
    max_steps = 80
    prompt = "push"

    def reset(self, task: str, seed: Sequence[int]) -> None:
        rng = np.random.default_rng(list(seed))
        self.way = np.array([(1.0, 0.0), (0.0, 1.0)][seed[-1] % 2])
        self.body = 4.0 + np.rint((1 - self.way) * rng.integers(4, 12))
        self.thing = self.body + self.way * (6 + int(rng.integers(0, 5))) - (1 - self.way) * int(rng.integers(0, 4))
        self.hit = False

    def fingerprint(self) -> bytes:
        return np.concatenate([self.body, self.thing]).tobytes()

    def state(self) -> np.ndarray:
        return self.body.astype(np.float32)

    def frames(self, size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        return {"top": draw(self.body, self.thing)}

    def step(self, action: np.ndarray) -> Outcome:
        self.body, self.thing, self.hit = push(self.body, self.thing, action)
        return Outcome(reward=0.0, success=False, progress=0.0)

    def hold(self) -> np.ndarray:
        return np.zeros(2, np.float32)

    def random(self, rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.choice([-1.4, 0.0]), rng.choice([-1.4, 1.4])], np.float32)

    def expert(self, rng: np.random.Generator) -> Controller | None:
        return lambda: self.way.astype(np.float32)

    def objects(self) -> Scene | None:
        found = [
            Thing(name=name, colour=COLOURS[name], place=tuple((at + side / 2) / SIDE))
            for name, at, side in (("body", self.body, BODY), ("thing", self.thing, THING))
        ]
        return Scene(view="top", body=found[0], things=(found[1],), scenery=((255, 255, 255),), flat=True)

    def contacts(self) -> frozenset[str]:
        return frozenset({"thing"} if self.hit else ())

    def way_back(self, states: np.ndarray) -> np.ndarray:
        return -np.diff(states, axis=0)[::-1]

    def close(self) -> None:
        self.body = self.thing = np.zeros(2)


class BlindWorld:
    """The same, of which nothing is known but its pictures."""

    def __init__(self) -> None:
        self._world = PushWorld()
        for what in "name tasks max_steps prompt spec reset state frames step hold random expert close".split():
            setattr(self, what, getattr(self._world, what))


class PushModel:
    """Knows the world; `broken` names what it gets wrong; a coarse one is noisy and slips by a pixel now and then."""

    def __init__(self, broken: str = "", coarse: bool = False) -> None:
        self.broken, self.noise, self.slips = broken, 0.03 * coarse, int(coarse)
        self.ink = 0.5 if broken == "pales" else 0.8 if coarse else 1.0
        self.sizes: list[int] = []
        self.told_state = False

    def __call__(self, mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        assert mode is Mode.FORWARD
        self.sizes.append(len(batch))
        later = torch.tensor([not key.endswith("@0") for key in batch.keys])
        self.told_state = self.told_state or bool(batch.state_mask[later].any())
        films = [self._film(batch, i, seed) for i, seed in enumerate(seeds)]
        return Generated(actions=None, video=torch.stack(films)[:, None])

    def _film(self, batch: Batch, i: int, seed: int) -> torch.Tensor:
        now = batch.video[i, 0, :, batch.num_context_frames - 1].movedim(0, -1).numpy()
        scene = self._scene()
        tracks = find(now[None], scene, {"body": BODY**2, "thing": THING**2})
        rng = np.random.default_rng(seed)
        body, thing = (
            np.nan_to_num(np.rint(tracks[n].centre[0] - side / 2)) for n, side in (("body", BODY), ("thing", THING))
        )
        slip = np.array([0, self.slips * int(rng.integers(0, 2))])
        frames = []
        for step in range(8):
            action = batch.actions[i, step].numpy()
            if self.broken == "ignores actions":
                action = rng.choice([-1.0, 1.0], 2)
            body, thing, _ = push(body, thing, action, glued=self.broken == "glued")
            if self.broken == "wanders":
                thing = thing + rng.integers(-2, 3, 2)
            if step % 4 == 3:
                frames.append(now if self.broken == "frozen" else self._draw(body + slip, thing + slip))
        video = torch.from_numpy(np.stack(frames)).movedim(-1, 1).float() / 255
        g = torch.Generator().manual_seed(seed % 2**31)
        return (video + self.noise * torch.randn(video.shape, generator=g)).clamp(0, 1)

    def _draw(self, body: np.ndarray, thing: np.ndarray) -> np.ndarray:
        if self.broken == "forgets":
            return draw(body, np.array([-20.0, -20.0]))
        frame = draw(body, thing)
        if self.slips:  # too large by a pixel
            frame = np.minimum(frame, np.roll(frame, 1, axis=1))
            frame = np.minimum(frame, np.roll(frame, 1, axis=0))
        return np.rint(255 - self.ink * (255.0 - frame)).astype(np.uint8)

    @staticmethod
    def _scene() -> Scene:
        world = PushWorld()
        world.reset("push", [0])
        scene = world.objects()
        assert scene is not None
        return scene


def figures(rows: Any) -> dict[tuple[str, str], float]:
    """Return the values over everything, by metric and condition."""
    return {(r.metric, r.condition): r.estimate.value for r in rows if r.time_s is None and r.dimension is None}
