"""A world that fits on a line of code: a point that must come to the origin, and a picture of where it is."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from wam_video.data.schema import EmbodimentSpec
from wam_video.data.simulation import Controller, Outcome

SPEC = EmbodimentSpec(name="arm", action_dim=2, state_dim=2, views=("front",), fps=10.0, action_rate=10.0)


class LineWorld:
    """Actions are steps of the point; it starts some 0.5 away in x."""

    name: ClassVar[str] = "line"
    looks_like: ClassVar[str] = "line"
    spec = SPEC
    max_steps = 12

    def __init__(self, what: str = "", *, size: tuple[int, int] = (32, 32), **options: Any) -> None:
        self.size, self.tasks = size, tuple((what or "near").split(","))
        self.drawn = 0

    @property
    def prompt(self) -> str:
        return "come <home>"

    def reset(self, task: str, seed: Sequence[int]) -> None:
        self.at = np.array([0.5 + 0.1 * np.random.default_rng(list(seed)).random(), 0.0])
        self.actions: list[np.ndarray] = []

    def fingerprint(self) -> bytes:
        return self.at.tobytes()

    def state(self) -> np.ndarray:
        return self.at.astype(np.float32)

    def frames(self, size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        self.drawn += 1
        frame = np.zeros((*(size or self.size), 3), np.uint8)
        frame[:, : max(0, int(abs(self.at[0]) * frame.shape[1]))] = 200
        return {"front": frame}

    def step(self, action: np.ndarray) -> Outcome:
        self.actions.append(action)
        self.at = self.at + np.clip(action, -0.2, 0.2)
        distance = float(np.abs(self.at).max())
        return Outcome(reward=-distance, success=distance < 0.05, progress=max(0.0, 1.0 - distance))

    def hold(self) -> np.ndarray:
        return np.zeros(2, np.float32)

    def random(self, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-0.2, 0.2, 2).astype(np.float32)

    def expert(self, rng: np.random.Generator) -> Controller:
        return lambda: (-self.at).astype(np.float32)

    def close(self) -> None:
        self.at = np.zeros(2)
