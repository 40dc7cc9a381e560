"""Decisions for many robots: each has a row of one streaming session; this module keeps their time and what they carried out.

Nothing here knows of sockets or threads: one thread calls `Policy.decide` with whoever asks at that moment.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from wam_video.data.normalize import recorded_actions
from wam_video.data.video import resize
from wam_video.errors import ConfigError, WamError, one_of
from wam_video.flow.continuation import check_continuation
from wam_video.flow.modes import PathConfig
from wam_video.flow.scheduler import check_policy_path
from wam_video.inference.inputs import horizon
from wam_video.inference.pipeline import WAMPipeline
from wam_video.inference.server.dialects import Answer, Asked
from wam_video.models.video_codec import num_latents, temporal_factor

GAPS = ("restart", "refuse")
_NEAR = 0.25
"""Of the stride: a frame so near to the wanted time is taken for it."""
_MARGIN = 0.05
"""Of the range: an action is outside of it from so much on."""
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How a checkpoint is served."""

    embodiment: str | None = None
    """None: the only one."""
    prompt: str = ""
    """Until a robot brings its own."""
    num_inference_steps: int | None = None
    path: str | None = None
    guidance_scale: float | None = None
    seed: int = 0
    """Decision k after a session's start is drawn with seed + k, whoever else is there."""
    execute: int | None = None
    """Actions of a chunk that robots are given; None: all."""
    clip: bool = False
    """Whether actions are kept within the range of the training data."""
    gaps: str = "restart"
    """What happens to a network that remembers when frames are missing: begin anew from those that came, or `refuse`."""
    continuation: str | None = None
    """How a chunk goes on from actions that a robot is committed to; None: the checkpoint's own."""
    max_sessions: int = 16
    """Robots at a time; a network that remembers keeps room for each."""

    def __post_init__(self) -> None:
        if self.gaps not in GAPS:
            raise ConfigError(one_of("--gaps", self.gaps, GAPS))
        if self.path is not None:
            check_policy_path(self.path)
        if self.continuation is not None:
            check_continuation(self.continuation)
        if self.num_inference_steps is not None:
            PathConfig(num_inference_steps=self.num_inference_steps)


@dataclass(kw_only=True)
class _Row:
    """Where a robot is."""

    prompt: str
    begun: bool = False
    decisions: int = 0
    time_s: float = 0.0
    frames: int = 0
    """Since the context, of a network with chunks."""
    past: list[tuple[float, UInt8[np.ndarray, "v h w 3"]]] = field(default_factory=list)
    """Of a network without."""
    since_s: float = 0.0
    """Time of the first of them."""
    given: Float[np.ndarray, "ta da"] | None = None
    """The last answer."""
    changed: bool = False
    """Whether it is not what the network said."""


@dataclass(frozen=True, kw_only=True)
class _Show:
    """What a row's session is to be shown."""

    frames: UInt8[np.ndarray, "v f h w 3"] | None
    """None: nothing new."""
    times: Float[np.ndarray, " f"] | None = None
    actions: Float[np.ndarray, "k da"] | None = None
    memory: str = "new"
    reset: bool = False
    after: int = 0
    """`_Row.frames` then."""


class Policy:
    """A checkpoint that decides for `max_sessions` robots.

    Args:
        pipe: The checkpoint.
        config: How.

    Raises:
        ConfigError: An option does not fit the checkpoint.
    """

    def __init__(self, pipe: WAMPipeline, config: PolicyConfig) -> None:
        self.config = config
        self._continuation: str = config.continuation or pipe.scheduler.config["continuation"]
        self.session = pipe.stream(
            embodiment=config.embodiment,
            prompt=config.prompt,
            batch_size=config.max_sessions,
            guidance_scale=config.guidance_scale,
        )
        processor = pipe.processor
        self.spec, self.window = processor.spec(self.session.embodiments[0]), processor.window
        if self.spec.action_dim == 0:
            raise ConfigError(
                f"embodiment {self.spec.name!r} has no actions; choose a body that acts with --embodiment"
            )
        self.views = self.spec.views[: self.window.max_views]
        self.horizon = horizon(self.window, self.spec.name)
        self._fit = processor.fit(self.spec.name)
        self._rhythm(pipe)
        stats = processor.config["stats"][self.spec.name]
        acted = recorded_actions(stats)
        self._low, self._high = (np.asarray(acted[end], np.float32) for end in ("min", "max"))
        self.state_range = np.asarray([stats["state"]["min"], stats["state"]["max"]]) if self.spec.state_dim else None
        self._rows = [_Row(prompt=config.prompt) for _ in range(config.max_sessions)]

    def _rhythm(self, pipe: WAMPipeline) -> None:
        """Learn how frames and actions follow each other."""
        rule, count, execute = pipe.transformer.attention, self.window.num_context_frames, self.config.execute
        self.chunks: bool = rule.causal
        self.stride = self.window.future_stride_s if self.chunks else self.window.context_stride_s
        self.ratio = self.spec.action_rate * self.stride
        if execute is not None and not 1 <= execute <= self.horizon:
            raise ConfigError(f"--execute is {execute}; allowed: 1 to {self.horizon}, the actions of a chunk")
        if not self.chunks:
            return
        factor = temporal_factor(pipe.vae)
        self._needed = min(1 if num_latents(pipe.vae, count) == count else factor, count)
        self.per_chunk = rule.chunk_frames * factor
        if execute is not None and abs(execute / self.ratio - round(execute / self.ratio)) > 1e-6:
            raise ConfigError(
                f"--execute is {execute}; this checkpoint reads a frame every {self.stride:g} s, which are {self.ratio:g} actions: "
                "give a multiple"
            )

    def begun(self, row: int) -> bool:
        """Say whether a robot has asked since its row was reset."""
        return self._rows[row].begun

    def reset(self, row: int) -> None:
        """Forget a robot; another may have the row."""
        if self._rows[row].prompt != self.config.prompt:
            self.session.prompt(self.config.prompt, rows=[row])
        self.session.reset([row])
        self._rows[row] = _Row(prompt=self.config.prompt)

    def decide(self, asked: Sequence[tuple[int, Asked]]) -> list[Answer | Exception]:
        """Decide for several robots, together where they are alike.

        Args:
            asked: Row and request, each row once.

        Returns:
            For each a decision, or what was wrong with the request; a robot's mistake does not touch the others.
        """
        began = perf_counter()
        results: dict[int, Answer | Exception] = {}
        shows: dict[int, _Show] = {}
        requests = dict(asked)

        def each(rows: Iterable[int], alike: Callable[[int], Hashable], work: Callable[[list[int]], None]) -> None:
            for group in _groups([row for row in rows if row not in results], alike):
                self._try(group, work, results)

        def plan(rows: list[int]) -> None:
            shows.update({row: self._show(self._rows[row], requests[row]) for row in rows})

        each(requests, lambda row: row, plan)
        each(requests, lambda row: row, lambda rows: self._prompt(rows, requests))
        each(requests, lambda row: _kind(shows[row], requests[row]), lambda rows: self._observe(rows, shows, requests))
        memories = {row: show.memory for row, show in shows.items()}
        each(
            requests,
            lambda row: self._rows[row].frames % self.per_chunk if self.chunks else 0,
            lambda rows: results.update(self._act(rows, memories, requests)),
        )
        milliseconds = (perf_counter() - began) * 1000
        answers = (results[row] for row, _ in asked)
        return [replace(one, infer_ms=milliseconds) if isinstance(one, Answer) else one for one in answers]

    def _try(self, rows: list[int], work: Callable[[list[int]], None], results: dict[int, Answer | Exception]) -> None:
        """Work on rows together; if that fails one by one, so that it is known whose fault it was."""
        try:
            work(rows)
        except Exception as error:  # noqa: BLE001 - a robot is told, the others go on
            if len(rows) > 1 and isinstance(error, WamError):  # nothing has changed
                for row in rows:
                    self._try([row], work, results)
                return
            for row in rows:
                results[row] = error
                self.reset(row)

    def _prompt(self, rows: list[int], requests: dict[int, Asked]) -> None:
        for row in rows:
            wanted = requests[row].prompt
            if wanted is not None and wanted != self._rows[row].prompt:
                self.session.prompt(wanted, rows=[row])
                self._rows[row].prompt = wanted

    def _observe(self, rows: list[int], shows: dict[int, _Show], requests: dict[int, Asked]) -> None:
        if again := [row for row in rows if shows[row].reset]:
            self.session.reset(again)
        first = shows[rows[0]]
        if first.frames is not None:
            states = [s for s in (requests[row].state for row in rows) if s is not None]
            self.session.observe(
                np.stack([shows[row].frames for row in rows]),  # type: ignore[arg-type] - none of them is None
                np.stack(states) if states else None,
                None if first.actions is None else np.stack([shows[row].actions for row in rows]),  # type: ignore[arg-type]
                times=None if first.times is None else np.stack([shows[row].times for row in rows]),  # type: ignore[arg-type]
                rows=rows,
            )
        for row in rows:
            self._rows[row].begun, self._rows[row].frames = True, shows[row].after

    def _act(
        self, rows: list[int], memories: dict[int, str], requests: dict[int, Asked]
    ) -> dict[int, Answer | Exception]:
        config, width = self.config, self.spec.action_dim
        committed, planned = zip(
            *(_plan_before(self._rows[row].given, requests[row], width) for row in rows), strict=True
        )
        told: dict[str, Any] = {"committed_actions": list(committed)} if any(map(len, committed)) else {}
        if told and self._continuation == "guided":
            told["planned_actions"] = list(planned)
        out = self.session.act(
            rows=rows,
            path=config.path,
            num_inference_steps=config.num_inference_steps,
            generator=[config.seed + self._rows[row].decisions for row in rows],
            decode=False,
            continuation=self._continuation,
            **told,
        )
        assert out.actions is not None, "a policy generates actions"
        chunks = np.asarray(out.actions)
        return {
            row: self._answer(self._rows[row], chunk, memories[row]) for row, chunk in zip(rows, chunks, strict=True)
        }

    def _answer(self, row: _Row, actions: Float[np.ndarray, "ta da"], memory: str) -> Answer:
        actions = np.array(actions[: self.config.execute or self.horizon, : self.spec.action_dim], np.float32)
        margin = _MARGIN * (self._high - self._low)
        outside = ((actions < self._low - margin) | (actions > self._high + margin)).any(0)
        if self.config.clip:
            actions = actions.clip(self._low, self._high)
        row.given, row.changed = actions, self.config.clip
        row.decisions += 1
        return Answer(actions=actions, out_of_range=tuple(int(i) for i in np.flatnonzero(outside)), memory=memory)

    # What a robot's frames mean

    def _show(self, row: _Row, asked: Asked) -> _Show:
        frames = self._pixels(asked)
        executed = asked.executed
        if executed is None:
            executed = 0 if row.given is None else len(row.given)
        if not self.chunks:
            return self._last_frames(row, frames, executed)
        due = executed / self.ratio
        if row.begun and abs(due - round(due)) > 1e-6:
            raise ConfigError(
                f"executed is {executed}; this checkpoint reads a frame every {self.stride:g} s, which are {self.ratio:g} actions: "
                "carry out a multiple between requests (serve --execute)"
            )
        return self._next_frames(row, frames, round(due), asked)

    def _pixels(self, asked: Asked) -> UInt8[np.ndarray, "v f h w 3"]:
        height, width = self.window.height, self.window.width
        if height is None or width is None:
            if len({one.shape for one in asked.frames}) > 1:
                raise ConfigError(
                    f"cameras are of sizes {[one.shape[1:3] for one in asked.frames]}; send all in one size"
                )
            return np.stack(asked.frames)
        return np.stack([[resize(frame, height, width, self._fit) for frame in view] for view in asked.frames])

    def _next_frames(self, row: _Row, frames: UInt8[np.ndarray, "v f h w 3"], due: int, asked: Asked) -> _Show:
        """Return what a network that remembers is shown: every frame since the last ones, or a new beginning."""
        count, context = frames.shape[1], self.window.num_context_frames
        if row.begun and count >= due:
            actions = asked.executed_actions
            if actions is None and row.changed and row.given is not None and due:
                actions = row.given[: round(due * self.ratio)]
            shown = frames[:, count - due :] if due else None
            return _Show(frames=shown, actions=actions, memory="continued", after=row.frames + due)
        if row.begun and self.config.gaps == "refuse":
            raise ConfigError(
                f"request holds {count} frames a camera; {due} are due since the last answer, one every {self.stride:g} s: send them all, "
                "tell 'executed', or serve with --gaps restart"
            )
        missing = max(self._needed - count, 0)  # the scene is taken to have been still before the first frame
        frames = np.concatenate([frames[:, :1].repeat(missing, axis=1), frames], axis=1)[:, -context:]
        return _Show(frames=frames, memory="restarted" if row.begun else "new", reset=row.begun)

    def _last_frames(self, row: _Row, frames: UInt8[np.ndarray, "v f h w 3"], executed: int) -> _Show:
        """Return what a network without memory is shown: its context frames, as far as they are known."""
        if row.begun:
            row.time_s += executed / self.spec.action_rate
        now, count = row.time_s, frames.shape[1]
        begun = row.past[-1][0] if row.past else -np.inf
        new = [(now - (count - 1 - i) * self.stride, frames[:, i]) for i in range(count)]
        row.since_s = row.since_s if row.begun else new[0][0]
        row.past = [one for one in row.past if one[0] < now] + [one for one in new if one[0] > begun or one[0] == now]
        wanted = now - np.arange(self.window.num_context_frames - 1, -1, -1) * self.stride
        picked = []
        for time in wanted:
            near = min(row.past, key=lambda one: abs(one[0] - time))
            if abs(near[0] - time) <= _NEAR * self.stride:
                picked.append((float(time), near[1]))
        row.past = [one for one in row.past if one[0] >= wanted[0] - _NEAR * self.stride]
        lived = int((wanted >= row.since_s - _NEAR * self.stride).sum())  # nothing before the first frame is missing
        memory = "new" if not row.begun else "continued" if len(picked) >= lived else "restarted"
        return _Show(
            frames=np.stack([frame for _, frame in picked], axis=1),
            times=np.asarray([time for time, _ in picked]),
            memory=memory,
            reset=True,
        )


def _plan_before(
    last: Float[np.ndarray, "ta da"] | None, asked: Asked, width: int
) -> tuple[Float[np.ndarray, "d da"], Float[np.ndarray, "k da"]]:
    """Return what a robot carries out while a decision is made, and what it would have done after that."""
    given = np.zeros((0, width), np.float32) if last is None else last
    begin = len(given) if asked.executed is None else asked.executed
    end = begin + asked.committed
    if asked.committed_actions is not None:
        return asked.committed_actions, given[end:]
    if asked.committed and end > len(given):
        raise ConfigError(
            f"committed is {asked.committed}; the last answer has {max(len(given) - begin, 0)} actions after those carried out: "
            "say 'executed', and commit to no more than is left, or send the actions"
        )
    return (given[begin:end], given[end:]) if asked.committed else (given[:0], given[:0])


def _kind(show: _Show, asked: Asked) -> Hashable:
    """Rows that are shown the same kind of thing are shown it together."""
    parts: tuple[Any, ...] = (show.frames, show.times, show.actions, asked.state)
    return tuple(None if part is None else part.shape for part in parts)


def _groups(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())
