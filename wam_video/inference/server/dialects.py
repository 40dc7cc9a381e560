"""What robot clients say, and what they expect to hear: one reading of a request, three ways to answer.

openpi sends a flat or nested map without `endpoint` and reads a map with `actions`. RoboArena adds `endpoint` and
`session_id`, numbers its cameras from 0 and wants exactly six keys as metadata. DreamZero is RoboArena with several frames a
camera and a bare array as the answer. Which one is spoken is decided by the path of the URL, for the server speaks first.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from wam_video.data.schema import EmbodimentSpec
from wam_video.errors import ConfigError, DataError, one_of
from wam_video.inference.server.wire import pack

DIALECTS = ("openpi", "roboarena", "dreamzero")
ACTION_SPACES = ("joint_position", "joint_velocity", "cartesian_position", "cartesian_velocity")
RESET_DONE = "reset successful"

_STATES = (
    ("observation/state",),
    ("state",),
    ("observation.state",),
    ("observation/joint_position", "observation/gripper_position"),
    ("observation/cartesian_position", "observation/gripper_position"),
    ("observation/joint_position",),
)
"""Where a state may be, the first that has the body's width counts."""
_SPARE = re.compile(
    r"observation/((joint|cartesian|gripper)_(position|velocity)|(exterior_image_\d|wrist_image)_(left|right)|image|wrist_image|state)"
    r"|images/\w+|state"
)
"""What these clients send to every policy, whether it reads it or not."""
_CONTROL = ("endpoint", "session_id", "prompt", "executed", "committed")
_MAX_STEPS = 4096
"""Actions that a request may speak of."""
_FAR = 10.0
"""Spans of the training data outside of it: a state so far away is in other units."""


@dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """Where a request holds what a checkpoint reads."""

    images: Mapping[str, str] = field(default_factory=dict)
    """Key of a request -> view; replaces the usual keys of that view."""
    state: tuple[str, ...] = ()
    """Keys whose numbers, one after the other, are the state; empty: the usual ones."""
    action_space: str = "joint_position"
    """What RoboArena's clients are told."""
    max_frames: int = 64
    """Of a camera in a request."""
    max_side: int = 4096
    """Pixels."""
    max_prompt: int = 2000
    """Characters."""

    def __post_init__(self) -> None:
        if self.action_space not in ACTION_SPACES:
            raise ConfigError(one_of("--action-space", self.action_space, ACTION_SPACES))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, checked."""

    frames: tuple[UInt8[np.ndarray, "f h w 3"], ...] = ()
    """One a view, the newest last."""
    state: Float[np.ndarray, " ds"] | None = None
    prompt: str | None = None
    """None: as before."""
    executed: int | None = None
    """Actions carried out since the last answer; None: all of it."""
    executed_actions: Float[np.ndarray, "k da"] | None = None
    """Those that really were, where the robot tells."""
    committed: int = 0
    """Actions, after those carried out, that will be while this one is made: of the last answer, or the next one's."""
    committed_actions: Float[np.ndarray, "d da"] | None = None
    """These, where the robot tells."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A decision."""

    actions: Float[np.ndarray, "ta da"]
    out_of_range: tuple[int, ...] = ()
    """Dimensions in which they leave the range of the training data."""
    memory: str = "new"
    """`new`, `continued` or `restarted`: frames were missing between the last request and this one."""
    infer_ms: float = 0.0


def dialect_of(path: str, default: str) -> str:
    """Return the dialect of a URL's path: `/`, or `/<dialect>`.

    Raises:
        DataError: There is no such path.
    """
    name = path.strip("/") or default
    if name not in DIALECTS:  # the default is one
        raise DataError(one_of("path", path, ["/", *(f"/{d}" for d in DIALECTS)]))
    return name


def flatten(message: Any) -> dict[str, Any]:
    """Return a request's entries, those of maps inside it with their keys joined by `/`.

    Raises:
        DataError: It is no map.
    """
    if not isinstance(message, dict):
        raise DataError(f"request is a {type(message).__name__}; send a map with cameras, state and prompt")
    flat: dict[str, Any] = {}
    for key, value in message.items():
        inner = {f"{key}/{k}": v for k, v in flatten(value).items()} if isinstance(value, dict) else {key: value}
        if twice := flat.keys() & inner.keys():
            raise DataError(f"request holds {min(twice)[:80]!r} twice; send it once")
        flat |= inner
    return flat


class ObservationMap:
    """Reads requests for one body of a checkpoint.

    Args:
        spec: The body.
        views: The cameras that the checkpoint reads of it.
        config: Where things are.
        state_range: Least and greatest state of the training data, `2 ds`; None: unknown.

    Raises:
        ConfigError: The mapping names a view that the body does not have.
    """

    def __init__(
        self,
        spec: EmbodimentSpec,
        views: Sequence[str],
        config: MappingConfig,
        state_range: Float[np.ndarray, "2 ds"] | None = None,
    ) -> None:
        self._spec, self._views, self._config, self._range = spec, tuple(views), config, state_range
        for key, view in config.images.items():
            if view not in self._views:
                raise ConfigError(one_of(f"--map {key}", view, self._views))

    def keys(self, dialect: str) -> dict[str, str]:
        """Return which key of a request holds which view."""
        given = self._config.images
        usual = _usual_keys(self._views, first=1 if dialect == "openpi" else 0)
        return {key: view for key, view in usual.items() if view not in given.values()} | dict(given)

    def read(self, flat: Mapping[str, Any], dialect: str) -> Asked:
        """Check a request.

        Args:
            flat: As `flatten` returns it.
            dialect: Which cameras' names hold.

        Raises:
            DataError: Something is missing, unknown, or of another kind, shape or range; one line.
        """
        keys = self.keys(dialect)
        states = [self._config.state] if self._config.state else list(_STATES)
        known = {*keys, *(key for group in states for key in group), *_CONTROL}
        for key in flat:
            if key not in known and not _SPARE.fullmatch(key):
                raise DataError(one_of("key of the request", key[:80], known))
        done, bound = (self._actions(flat, name) for name in ("executed", "committed"))
        return Asked(
            frames=self._frames(flat, keys),
            state=self._state(flat, states) if self._spec.state_dim else None,
            prompt=self._prompt(flat.get("prompt")),
            executed=_count(flat.get("executed"), "executed") if done is None else len(done),
            executed_actions=done,
            committed=(_count(flat.get("committed"), "committed") or 0) if bound is None else len(bound),
            committed_actions=bound,
        )

    def metadata(self, dialect: str, facts: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
        """Return what a client is told first.

        Args:
            dialect: Of the client; RoboArena's and DreamZero's read six keys and no other.
            facts: What openpi's clients are told beside the mapping.
            size: Height and width of the pictures that the checkpoint reads, if it says.
        """
        wrists = _wrists(self._views)
        if dialect != "openpi":
            return {
                "image_resolution": None if size is None else list(size),
                "needs_wrist_camera": bool(wrists),
                "n_external_cameras": len(self._views) - len(wrists),
                "needs_stereo_camera": False,
                "needs_session_id": dialect == "dreamzero",
                "action_space": self._config.action_space,
            }
        images: dict[str, list[str]] = {view: [] for view in self._views}
        for key, view in self.keys(dialect).items():
            images[view].append(key)
        states = [list(self._config.state)] if self._config.state else [list(group) for group in _STATES]
        return {**facts, "images": images, "state": states if self._spec.state_dim else []}

    def _frames(self, flat: Mapping[str, Any], keys: Mapping[str, str]) -> tuple[UInt8[np.ndarray, "f h w 3"], ...]:
        frames = []
        for view in self._views:
            there = [key for key, name in keys.items() if name == view and key in flat]
            if len(there) != 1:
                allowed = ", ".join(sorted(key for key, name in keys.items() if name == view))
                raise DataError(f"request holds view {view!r} {len(there)} times; send exactly one of: {allowed}")
            frames.append(self._image(there[0], flat[there[0]]))
        if len({len(one) for one in frames}) > 1:
            counts = ", ".join(f"{view} {len(one)}" for view, one in zip(self._views, frames, strict=True))
            raise DataError(f"request holds different numbers of frames ({counts}); send as many of each camera")
        return tuple(frames)

    def _image(self, key: str, value: Any) -> UInt8[np.ndarray, "f h w 3"]:
        config = self._config
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (3, 4):
            what = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise DataError(f"{key} is {what}; send uint8 pictures [f] h w 3 or [f] 3 h w")
        if value.shape[-1] != 3 and value.shape[-3] == 3:
            value = np.moveaxis(value, -3, -1)
        if value.shape[-1] != 3:
            raise DataError(f"{key} is of shape {value.shape}; send uint8 pictures [f] h w 3 or [f] 3 h w")
        value = value[None] if value.ndim == 3 else value
        if not (
            1 <= len(value) <= config.max_frames and all(2 <= side <= config.max_side for side in value.shape[1:3])
        ):
            raise DataError(
                f"{key} is of shape {value.shape}; allowed: 1 to {config.max_frames} frames of 2 to {config.max_side} pixels a side"
            )
        return value

    def _state(self, flat: Mapping[str, Any], groups: Sequence[Sequence[str]]) -> Float[np.ndarray, " ds"]:
        width, widths = self._spec.state_dim, []
        for group in groups:
            if all(key in flat for key in group):
                state = np.concatenate([_vector(key, flat[key]) for key in group])
                if len(state) == width:
                    return self._in_range(state)
                widths.append(f"{' + '.join(group)} is {len(state)} wide")
        allowed = "; or ".join(" + ".join(group) for group in groups)
        raise DataError(
            f"request holds no state of {width} numbers ({', '.join(widths) or 'none at all'}); send: {allowed}"
        )

    def _in_range(self, state: Float[np.ndarray, " ds"]) -> Float[np.ndarray, " ds"]:
        if self._range is not None:
            low, high = self._range
            far = _FAR * np.maximum(high - low, 1e-3 * np.maximum(np.abs(low), np.abs(high)) + 1e-6)
            for i in np.flatnonzero((state < low - far) | (state > high + far)):
                raise DataError(
                    f"state number {i} is {state[i]:.6g}; the training data has {low[i]:.6g} to {high[i]:.6g}: send it in the same units"
                )
        return state

    def _prompt(self, prompt: Any) -> str | None:
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if prompt is not None and (not isinstance(prompt, str) or len(prompt) > self._config.max_prompt):
            raise DataError(f"prompt is no text of at most {self._config.max_prompt} characters; send one")
        return prompt

    def _actions(self, flat: Mapping[str, Any], key: str) -> Float[np.ndarray, "k da"] | None:
        """Return actions that a robot tells of; None where it gives no more than their number."""
        value = flat.get(key)
        if not isinstance(value, list | np.ndarray) or (isinstance(value, np.ndarray) and value.ndim == 0):
            return None
        array = _numbers(key, value)
        if array.ndim != 2 or array.shape[1] != self._spec.action_dim or len(array) > _MAX_STEPS:
            raise DataError(
                f"{key} is of shape {array.shape}; send how many actions, or these: k {self._spec.action_dim}"
            )
        return array


def reply(dialect: str, answer: Answer, timing: Mapping[str, float]) -> bytes:
    """Return a decision as a client of this dialect reads it; of a map only `actions` is an array (clients slice them all)."""
    if dialect == "dreamzero":
        return pack(answer.actions)
    return pack(
        {
            "actions": answer.actions,
            "out_of_range": list(answer.out_of_range),
            "memory": answer.memory,
            "policy_timing": {"infer_ms": answer.infer_ms},
            "server_timing": dict(timing),
        }
    )


def session_id_of(flat: Mapping[str, Any]) -> str | None:
    """Return a request's session id.

    Raises:
        DataError: It is no short text.
    """
    given = flat.get("session_id")
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if given is None or (isinstance(given, str) and 0 < len(given) <= 128 and given.isprintable()):
        return given
    raise DataError("session_id is no printable text of 1 to 128 characters; send one, or none")


def endpoint_of(flat: Mapping[str, Any]) -> str:
    """Return what is asked for; openpi's clients don't say and mean `infer`.

    Raises:
        DataError: It is something else.
    """
    given = flat.get("endpoint", "infer")
    if not isinstance(given, str) or given not in ("infer", "reset"):
        raise DataError(one_of("endpoint", str(given)[:80], ("infer", "reset")))
    return given


def _wrists(views: Sequence[str]) -> list[str]:
    return [view for view in views if "wrist" in view or "hand" in view]


def _usual_keys(views: Sequence[str], first: int) -> dict[str, str]:
    wrists = _wrists(views)
    outside = [view for view in views if view not in wrists]
    keys = {
        form.format(view): view
        for view in views
        for form in ("observation/{}", "observation/images/{}", "observation.images.{}", "images/{}", "{}")
    }
    for i, view in enumerate(outside):
        keys.setdefault(f"observation/exterior_image_{i + first}_left", view)
    for view, names in (
        (outside[:1], ("observation/image", "images/cam_high")),
        (wrists[:1], ("observation/wrist_image_left", "observation/wrist_image")),
    ):
        for name in names if view else ():
            keys.setdefault(name, view[0])
    return keys


def _numbers(key: str, value: Any) -> Float[np.ndarray, "..."]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{key} is a list of lists of different lengths; send an array of numbers") from error
    with np.errstate(over="ignore"):
        single = array.astype(np.float32) if array.dtype.kind in "iuf" else np.full(1, np.nan, np.float32)
    if not np.isfinite(single).all():
        raise DataError(f"{key} holds something that is no finite number; send numbers in the robot's units")
    return single


def _vector(key: str, value: Any) -> Float[np.ndarray, " n"]:
    array = _numbers(key, value)
    if array.ndim > 2 or (array.ndim == 2 and len(array) != 1):
        raise DataError(f"{key} is of shape {array.shape}; send one row of numbers")
    return array.reshape(-1)


def _count(value: Any, what: str) -> int | None:
    if value is None:
        return None
    number = value.item() if isinstance(value, np.ndarray) else value  # one number: others are actions
    if type(number) is not int or not 0 <= number <= _MAX_STEPS:
        raise DataError(
            f"{what} is {str(number)[:40]}; send a number of actions from 0 to {_MAX_STEPS}, or the actions"
        )
    return number
