"""What a robot does at each control step while its next chunk is being decided: the pure part of real-time chunking.

Time is counted in the steps of a chunk that were carried out. A decision that is asked for at one of them is expected `delay`
steps later; so many actions are committed. Is it late, `late` says what happens until it comes:

    hold      stop where the robot is        the new chunk is entered where the old one was left, and its actions still fit
    slow      go on at a part of the speed   the same, for targets: positions between two actions are gone through
    continue  go on as planned               further than was committed: the new chunk is entered later, at a larger seam

Nothing here knows of threads, networks or clocks; `real_time` and the simulator's `evaluation.real_time` drive it.
"""

from collections import Counter
from dataclasses import dataclass
from math import floor, inf

import numpy as np
from jaxtyping import Float

from wam_video.errors import ConfigError, one_of

LATE = ("hold", "continue", "slow")


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """How chunks follow each other."""

    delay: int = 0
    """Control steps that a decision may take; the first so many actions of each chunk are committed."""
    execute: int | None = None
    """Steps from one question to the next; None: all of a chunk that the delay leaves."""
    late: str = "continue"
    """What happens when a decision takes longer: `hold`, `continue` or `slow`."""
    slow: float = 0.5
    """Speed until it comes, with `slow`."""
    blend: int = 0
    """So many actions after a seam go over from the old chunk to the new, or as many as the old one has."""
    ensemble: float | None = None
    """Instead: each action is the mean of what all chunks say of its step, a chunk that is i decisions younger than the oldest
    by the weight exp(-ensemble * i) (temporal ensembling: Zhao et al. 2023, arXiv 2304.13705, section IV-C; theirs is 0.01)."""

    def __post_init__(self) -> None:
        if self.late not in LATE:
            raise ConfigError(one_of("late", self.late, LATE))
        for name, low in (("delay", 0), ("blend", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: {low} or more")
        if self.execute is not None and self.execute < max(self.delay, 1):
            raise ConfigError(
                f"execute is {self.execute}; allowed: at least the delay ({self.delay}) and 1, for one decision is made at a time"
            )
        if not 0 < self.slow < 1:
            raise ConfigError(f"slow is {self.slow}; allowed: between 0 and 1")
        if self.ensemble is not None and not (0 <= self.ensemble < inf and self.blend == 0):
            raise ConfigError(
                f"ensemble is {self.ensemble} and blend {self.blend}; allowed: 0 (all chunks alike) or more, and one of the two"
            )


@dataclass(frozen=True, kw_only=True)
class Before:
    """What the old chunk says from a question on."""

    done: Float[np.ndarray, "e da"]
    """What was carried out since the question before, in whole actions of the plan (a robot that slows down takes more steps)."""
    committed: Float[np.ndarray, "d da"]
    planned: Float[np.ndarray, "k da"]
    """After the committed ones."""

    @property
    def executed(self) -> int:
        """How many were carried out."""
        return len(self.done)


class ChunkPlayer:
    """Says what to do at each control step; one robot's.

    Args:
        config: How.

    Attributes:
        counts: What happened, in steps (`planned`, `held`, `slowed`, `continued`) and decisions (`asked`, `late`).
        seams: Distance from each chunk's last action to the next one's first, in the units of actions.
        strides: Distance between two actions of the same chunk that follow each other.
    """

    def __init__(self, config: PlayConfig) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        self.seams: list[float] = []
        self.strides: list[float] = []
        self.reset()

    def reset(self) -> None:
        """Begin an episode; what was counted stays."""
        self._chunk: Float[np.ndarray, "ta da"] | None = None
        self._said: list[Float[np.ndarray, "ta da"]] = []
        self._at = 0.0
        self._asked: float | None = None
        self._waited = 0
        self._last: Float[np.ndarray, " da"] | None = None
        self._fresh = False

    @property
    def waiting(self) -> bool:
        """Whether a decision is being made."""
        return self._asked is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was planned in this episode yet."""
        return self._chunk is None

    @property
    def is_due(self) -> bool:
        """Whether the next decision is to be asked for now."""
        if self.waiting:
            return False
        if self._chunk is None:
            return True
        left = len(self._chunk) - self.config.delay if self.config.execute is None else self.config.execute
        return self._at >= left or self._at >= len(self._chunk)

    def ask(self) -> Before:
        """Note that a decision is asked for, on what is seen now."""
        place = floor(self._at + 1e-9)
        self._asked, self._waited = float(place), 0
        self.counts["asked"] += 1
        chunk = np.zeros((0, 0), np.float32) if self._chunk is None else self._chunk
        until = place + self.config.delay
        return Before(done=chunk[:place], committed=chunk[place:until], planned=chunk[until:])

    def fail(self) -> None:
        """Note that the decision will not come; the next one is due at once."""
        self._asked = None

    def receive(self, chunk: Float[np.ndarray, "ta da"]) -> None:
        """Take the decision that was asked for: its action i belongs to i steps after the question."""
        assert self._asked is not None, "a chunk is asked for before it comes"
        chunk = np.array(chunk, np.float32)
        ahead, asked = self._at - self._asked, int(self._asked)
        entered = floor(ahead + 1e-9)
        if self._chunk is not None:
            old = self._chunk[asked:]
            if self.config.ensemble is not None:
                chunk = self._ensembled(chunk, asked, self.config.ensemble)
            count = max(min(self.config.blend, len(old) - entered, len(chunk) - entered), 0)
            shares = (np.arange(count, dtype=np.float32) + 1)[:, None] / (count + 1)
            seam = slice(entered, entered + count)
            chunk[seam] = (1 - shares) * old[seam] + shares * chunk[seam]
            chunk[:entered] = old[
                : min(entered, len(chunk))
            ]  # what was carried out, whatever the new chunk would have done
        elif self.config.ensemble is not None:
            self._said = [chunk.copy()]
        self._chunk, self._at, self._asked = chunk, ahead, None
        self._fresh = True

    def _ensembled(self, chunk: Float[np.ndarray, "ta da"], asked: int, rate: float) -> Float[np.ndarray, "ta da"]:
        """Return the mean of all chunks that say something of its steps, the oldest first."""
        self._said = [*(said[asked:] for said in self._said if len(said) > asked), chunk.copy()]
        values = np.zeros((len(self._said), *chunk.shape))
        known = np.zeros((len(self._said), len(chunk), 1), bool)
        for i, said in enumerate(self._said):
            values[i, : len(said)], known[i, : len(said)] = said[: len(chunk)], True
        younger = np.arange(len(self._said))[:, None, None] - known.argmax(
            0
        )  # decisions, than the oldest that knows a step
        weights = known * np.exp(-rate * younger.clip(min=0))
        return ((weights * values).sum(0) / weights.sum(0)).astype(np.float32)

    def step(self, rest: Float[np.ndarray, " da"] | None = None) -> Float[np.ndarray, " da"]:
        """Return what to do now, and go on by one step.

        Args:
            rest: What keeps the robot where it is; None: its last action again (a target).

        Raises:
            ConfigError: Nothing is planned yet, and `rest` is not given.
        """
        late = self.waiting and self._waited >= self.config.delay
        if late and self._waited == self.config.delay and self._chunk is not None:
            self.counts["late"] += 1
        self._waited += self.waiting
        chunk, way = self._chunk, self.config.late if late else "planned"
        if chunk is None or way == "hold" or floor(self._at + 1e-9) >= len(chunk):
            self.counts["held"] += 1
            action = self._last if rest is None else rest
            if action is None:
                raise ConfigError("nothing is planned yet; give rest=, or wait for the first decision")
            return np.array(action, np.float32)
        if way == "slow":
            return self._went(chunk, self.config.slow, "slowed")
        return self._went(chunk, 1.0, "continued" if late else "planned")

    def _went(self, chunk: Float[np.ndarray, "ta da"], speed: float, kind: str) -> Float[np.ndarray, " da"]:
        place = floor(self._at + 1e-9)
        share = self._at - place
        after = chunk[min(place + 1, len(chunk) - 1)]
        action = (chunk[place] if share < 1e-9 else (1 - share) * chunk[place] + share * after).astype(np.float32)
        if self._last is not None:
            (self.seams if self._fresh else self.strides).append(float(np.linalg.norm(action - self._last)))
        self.counts[kind] += 1
        self._last, self._fresh, self._at = action, False, self._at + speed
        return action.copy()
