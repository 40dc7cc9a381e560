"""What a dataset is made of: embodiments, episodes, and the names and types of a shard's members.

A source (`data_pipelines/<name>`) yields `Episode`s; the writer cuts, encodes and validates them into shards. This module
holds the records both sides agree on, and their validation; it does no IO.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from wam_video.errors import DataError

SCHEMA_VERSION = 1
"""Of the shards, the manifest and the statistics; a reader refuses newer ones."""

MEMBER_SUFFIXES = ("mp4", "actions.npy", "state.npy", "reward.npy", "latents", "teacher", "source", "text.npy", "json")
"""The only kinds of member that a shard may hold; nothing else is ever decoded.

`data encode` writes `latents.<view>.npy`, which the loader reads in place of pixels, and `teacher.<view>.npy` beside them; `latent-actions label` keeps the
recording's arrays as `source.actions.npy` and so on, which only probes read. `text.npy` is reserved for encoded
prompts: a shard may carry it, and nothing reads it yet, so its bytes are neither parsed nor checked (`data verify` compares
the whole shard's hash).
"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_name(what: str, name: str) -> str:
    """Return `name` if it can stand in a shard: letters, digits, `_` and `-`; no dots, for webdataset splits keys there.

    Raises:
        DataError: The name holds anything else.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"{what} is {name!r}; allowed: letters, digits, '_' and '-', no dots or spaces; rename it")
    return name


@dataclass(frozen=True, kw_only=True)
class EmbodimentSpec:
    """A body: what its numbers are called, measured in and how often they come."""

    name: str
    action_dim: int
    """0 for video without actions."""
    state_dim: int
    """0 without proprioception."""
    views: tuple[str, ...]
    """Camera names, in the order in which the model sees them."""
    fps: float
    """Stored video frames per second."""
    action_rate: float
    """Actions per second; 0 without actions."""
    action_names: tuple[str, ...] = ()
    action_units: tuple[str, ...] = ()
    """SI units or `normalised`, `unknown`; one a dimension or empty."""
    state_names: tuple[str, ...] = ()
    description: str = ""
    action_kinds: tuple[str, ...] = ()
    """`absolute` (where to be), `delta` (by how much to move) or empty (not known), one a dimension."""
    action_frames: tuple[str, ...] = ()
    """What each dimension is measured in, e.g. `base` or `tool`; empty: not known."""
    action_rotations: tuple[str, ...] = ()
    """Name of `rotations.WIDTHS` for each dimension that is part of a rotation, empty for the others."""
    state_units: tuple[str, ...] = ()
    state_rotations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("embodiment", self.name)
        for view in self.views:
            check_name(f"view of embodiment {self.name!r}", view)
        for what, names, dim in (
            ("action_names", self.action_names, self.action_dim),
            ("action_units", self.action_units, self.action_dim),
            ("state_names", self.state_names, self.state_dim),
            ("action_kinds", self.action_kinds, self.action_dim),
            ("action_frames", self.action_frames, self.action_dim),
            ("action_rotations", self.action_rotations, self.action_dim),
            ("state_units", self.state_units, self.state_dim),
            ("state_rotations", self.state_rotations, self.state_dim),
        ):
            if names and len(names) != dim:
                raise DataError(
                    f"embodiment {self.name!r}: {what} has {len(names)} entries for {dim} dimensions; give one each"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EmbodimentSpec":
        """Rebuild a spec from its JSON form (lists become tuples)."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


class ViewSource(Protocol):
    """One camera's frames of one episode, read when needed."""

    @property
    def times(self) -> Float[np.ndarray, " f"]:
        """Seconds of each frame on the episode's own clock, rising from about 0."""
        ...

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yield every frame once, in order, at the recorded size."""
        ...


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recording, as a source yields it: nothing resized, resampled or normalised yet."""

    episode_id: str
    """Unique in its dataset; letters, digits, `_` and `-`."""
    embodiment: EmbodimentSpec
    """Of the recording: `fps` here is the recorded rate, the writer stores its own."""
    views: Mapping[str, ViewSource]
    actions: Float[np.ndarray, "ta da"] | None
    """float32, physical units; action i starts at `i / action_rate` seconds. None for video without actions."""
    state: Float[np.ndarray, "ta1 ds"] | None
    """float32, one row more than `actions`: the state before each action and after the last."""
    prompts: tuple[str, ...] = ()
    """Paraphrases of the one instruction; empty if there is none."""
    reward: Float[np.ndarray, " ta"] | None = None
    success: bool | None = None
    """None where the recording does not say."""
    notes: tuple[str, ...] = ()
    """Oddities that were met and survived, for the manifest, e.g. `last_action_without_frame`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able facts kept in the sample's json under `extra`."""
    spans: tuple[tuple[float, float], ...] | None = None
    """Seconds from and to of the parts to keep, rising and apart; each has clips of its own, so that no window crosses a cut.
    None keeps all of it."""
