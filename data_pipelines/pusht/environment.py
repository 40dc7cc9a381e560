"""PushT as a world to act in; the same starts, pictures and physics as those of the source."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipelines.options import NoOptions, build_options
from data_pipelines.pusht import geometry as geo
from data_pipelines.pusht.episode import SUCCESS, draw_start
from data_pipelines.pusht.pusher import SKILLS, Pusher
from data_pipelines.pusht.render import COLOURS, SCENERY, render
from data_pipelines.pusht.simulator import Table, load_simulator
from data_pipelines.pusht.source import EMBODIMENT, PROMPTS
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.simulation import Controller, Outcome, Scene, Thing
from wam_video.errors import ConfigError

_TASK = "pusht"


class PushTEnvironment:
    """`--env pusht`: push the T onto its goal; progress is the covered share of it."""

    name: ClassVar[str] = "pusht"
    looks_like: ClassVar[str] = "pusht"
    max_steps: ClassVar[int] = 300
    """30 s at 10 Hz, as gym-pusht has it."""

    def __init__(self, what: str = "", *, size: tuple[int, int] = (96, 96), **options: object) -> None:
        build_options(NoOptions, "pusht", options)
        if what not in ("", _TASK):
            raise ConfigError(f"environment is 'pusht:{what}'; PushT has one task: write pusht")
        if size[0] != size[1]:
            raise ConfigError(
                f"size of environment 'pusht' is {size[0]}x{size[1]}; its table is square: give e.g. 96x96"
            )
        load_simulator()  # fail here and not at the first episode
        self.size = size
        self._table: Table | None = None

    @property
    def spec(self) -> EmbodimentSpec:
        """The pusher."""
        return EMBODIMENT

    @property
    def tasks(self) -> tuple[str, ...]:
        """The one there is."""
        return (_TASK,)

    @property
    def prompt(self) -> str:
        """The first of the source's paraphrases."""
        return PROMPTS[0]

    @property
    def table(self) -> Table:
        """The simulator of this episode."""
        if self._table is None:
            raise ConfigError("environment 'pusht' was not reset; call reset(task, seed) first")
        return self._table

    def reset(self, task: str, seed: Sequence[int]) -> None:
        """Draw pusher and block as the source does."""
        self._table = Table(*draw_start(np.random.default_rng(list(seed))))

    def fingerprint(self) -> bytes:
        """Return the poses."""
        return np.concatenate([self.table.pusher, self.table.block]).tobytes()

    def state(self) -> Float32[np.ndarray, " ds"]:
        """Return the pusher's centre, px."""
        return self.table.pusher.astype(np.float32)

    def frames(self, size: tuple[int, int] | None = None) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Draw the table from above."""
        # poses as the source stores them: the same bits, so the same picture
        pusher, block = (x.astype(np.float32).astype(np.float64) for x in (self.table.pusher, self.table.block))
        return {"top": render(pusher, block, (size or self.size)[0])}

    def step(self, action: Float32[np.ndarray, " da"]) -> Outcome:
        """Send the pusher towards a place for 0.1 s."""
        reward, covered = self.table.step(np.clip(action, 0.0, geo.WORKSPACE).astype(np.float64))
        return Outcome(reward=reward, success=covered > SUCCESS, progress=min(1.0, covered / SUCCESS))

    def hold(self) -> Float32[np.ndarray, " da"]:
        """Return where the pusher is."""
        return self.state()

    def random(self, rng: np.random.Generator) -> Float32[np.ndarray, " da"]:
        """Draw a place on the table."""
        return rng.uniform(*geo.PUSHER_BOUNDS, 2).astype(np.float32)

    def expert(self, rng: np.random.Generator) -> Controller:
        """Return the best scripted pusher, which sees the poses."""
        player = Pusher(SKILLS["expert"], rng)
        return lambda: player.act(self.table.pusher, self.table.block).astype(np.float32)

    def objects(self) -> Scene:
        """Return the pusher and the block, by the middle of its area."""
        block = geo.to_world(geo.CENTRE_OF_AREA[None], self.table.block)[0]
        places = {"pusher": self.table.pusher, "block": block}
        body, thing = (
            Thing(name=n, colour=COLOURS[n], place=(float(x) / geo.WORKSPACE, float(y) / geo.WORKSPACE))
            for n, (x, y) in places.items()
        )
        return Scene(view="top", body=body, things=(thing,), scenery=SCENERY, flat=True)

    def contacts(self) -> frozenset[str]:
        """Return whether the pusher touched the block."""
        return frozenset({"block"} if self.table.touched else ())

    def way_back(self, states: Float32[np.ndarray, "s 2"]) -> Float32[np.ndarray, "t 2"]:
        """Send the pusher where it was, last place first."""
        return states[::-1].copy()

    def close(self) -> None:
        """Forget the table."""
        self._table = None
