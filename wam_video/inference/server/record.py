"""What robots lived through, as shards: `wam-video serve --record DIR`, so that deployment flows back into training.

An episode begins with a session or a reset and ends with the next; it is kept in memory until then and encoded in a thread.
Only what was really seen gets in: where frames between two requests are missing, one episode ends and another begins, and
what is too short or too sparse is named in the manifest with the reason.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Queue

import numpy as np
from jaxtyping import Float, UInt8

from wam_video.data.encode import WriterConfig, encode_episode
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.video import ArrayView
from wam_video.data.writer import ShardWriter
from wam_video.errors import DataError, first_line
from wam_video.inference.server.dialects import Answer, Asked
from wam_video.inference.server.policy import Policy
from wam_video.log import get_logger

_LOG = get_logger(__name__)


@dataclass(kw_only=True)
class _Take:
    """An episode that goes on."""

    number: int
    prompt: str = ""
    seconds: list[float] = field(default_factory=list)
    frames: list[tuple[UInt8[np.ndarray, "h w 3"], ...]] = field(default_factory=list)
    actions: list[Float[np.ndarray, "k da"]] = field(default_factory=list)
    states: dict[int, Float[np.ndarray, " ds"]] = field(default_factory=dict)
    steps: int = 0
    given: Float[np.ndarray, "ta da"] | None = None


class Recorder:
    """Writes sessions; `seen` after each decision, `ended` when a row is forgotten, `close` at the end.

    Args:
        folder: The shards' folder, to be made.
        policy: What decides.

    Raises:
        DataError: The folder is there already.
    """

    def __init__(self, folder: Path, policy: Policy) -> None:
        window, spec = policy.window, policy.spec
        self._spec: EmbodimentSpec = replace(spec, fps=1 / policy.stride, views=tuple(policy.views))
        self._stride, self._prompt = policy.stride, policy.config.prompt
        self._takes: dict[int, _Take] = {}
        self._count = self.written = 0
        even = [(side or 64) + (side or 64) % 2 for side in (window.height, window.width)]
        config = WriterConfig(
            dataset=folder.name, height=even[0], width=even[1], source="wam-video serve", converter="wam-video serve"
        )
        self._config, self._folder, self._writer = config, folder, ShardWriter(folder, config)
        self._writer.__enter__()
        self._queue: Queue[_Take | None] = Queue()
        self._thread = threading.Thread(target=self._run, name="wam-video-recorder", daemon=True)
        self._thread.start()

    def seen(self, row: int, asked: Asked, answer: Answer) -> None:
        """Take up a decision and what it was made from."""
        if answer.memory != "continued":
            self.ended(row)
        take = self._takes.get(row)
        if take is None:
            take = self._takes[row] = _Take(number=self._count, prompt=asked.prompt or self._prompt)
            self._count += 1
        elif take.given is not None:
            executed = len(take.given) if asked.executed is None else asked.executed
            done = take.given[:executed] if asked.executed_actions is None else asked.executed_actions
            take.actions.append(done)
            take.steps += len(done)
        now, last = take.steps / self._spec.action_rate, take.seconds[-1] if take.seconds else -np.inf
        frames = list(zip(*asked.frames, strict=True))
        if not take.seconds:
            frames = frames[-1:]  # the states before it are unknown
        for i, pictures in enumerate(frames):
            second = now - (len(frames) - 1 - i) * self._stride
            if second > last + self._stride / 2:
                take.seconds.append(second)
                take.frames.append(tuple(np.array(picture) for picture in pictures))
        if asked.state is not None:
            take.states[take.steps] = asked.state
        take.given = answer.actions

    def ended(self, row: int) -> None:
        """Note that a row's episode is over."""
        if (take := self._takes.pop(row, None)) is not None:
            self._queue.put(take)

    def close(self) -> None:
        """End all episodes and make the folder."""
        for row in list(self._takes):
            self.ended(row)
        self._queue.put(None)
        self._thread.join()
        try:
            self._writer.__exit__(None, None, None)
            _LOG.info("recorded %d episodes of %d in %s", self.written, self._count, self._folder)
        except DataError as error:
            _LOG.warning("nothing was recorded: %s", first_line(error))

    def _run(self) -> None:
        while (take := self._queue.get()) is not None:
            name = f"session-{take.number:06d}"
            try:
                self._writer.add(encode_episode(self._episode(name, take), self._config))
                self.written += 1
            except Exception as error:  # noqa: BLE001 - a full disk must not stop the robots
                self._writer.skip(name, first_line(error))
                _LOG.warning("%s is not recorded: %s", name, first_line(error))

    def _episode(self, name: str, take: _Take) -> Episode:
        if len(take.seconds) < 2:
            raise DataError(
                f"{len(take.seconds)} frame, and none {self._stride:g} s after it; robots that send every frame are recorded"
            )
        sparse = float(np.diff(take.seconds).max())
        if sparse > 1.5 * self._stride:
            raise DataError(
                f"frames are up to {sparse:g} s apart; one every {self._stride:g} s is needed: send them all"
            )
        views: Mapping[str, ArrayView] = {
            view: ArrayView(np.stack([pictures[i] for pictures in take.frames]), np.asarray(take.seconds))
            for i, view in enumerate(self._spec.views)
        }
        states, known = None, sorted(take.states)
        if known:
            table = np.stack([take.states[step] for step in known])
            steps = np.arange(take.steps + 1)
            states = np.stack([np.interp(steps, known, column) for column in table.T], axis=1).astype(np.float32)
        return Episode(
            episode_id=name,
            embodiment=self._spec,
            views=views,
            actions=np.concatenate(take.actions).astype(np.float32),
            state=states,
            prompts=(take.prompt,) if take.prompt else (),
            notes=() if len(known) == take.steps + 1 else ("states_between_requests_interpolated",),
            extra={"decisions": len(take.actions) + 1},
        )
