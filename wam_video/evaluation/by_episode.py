"""What is kept of an evaluation episode by episode, so that two models can be compared on the very same episodes later.

A score is a function of added sums (`metrics`); kept are the sums of each held-out episode, over all of its windows and over
the whole horizon. A difference of two models' scores is then computed anew from any multiset of episodes, the same for both.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import DataError
from wam_video.evaluation.intervals import episode_sums
from wam_video.evaluation.metrics import ACTION_SUMS, VIDEO_SUMS
from wam_video.evaluation.open_loop import Group, Key, Measured
from wam_video.page import write_whole

SCHEMA_VERSION = 1
NAME = "episodes.json"


@dataclass(frozen=True, kw_only=True)
class EpisodeSums:
    """The sums of one model on one body, episode by episode."""

    embodiment: str
    episodes: tuple[str, ...]
    action_scale: Float[Tensor, " da"]
    """Standard deviation in the model's training data, by which errors of actions are divided."""
    video: Mapping[Key, Float[Tensor, "e k 1"]] = field(default_factory=dict[Key, Tensor])
    actions: Mapping[Key, Float[Tensor, "e k 1 da"]] = field(default_factory=dict[Key, Tensor])

    def targets(self) -> list[Float[Tensor, "e _"]]:
        """Return what depends on the recordings alone: it is equal where two models met the same windows."""
        videos = [s[:, [VIDEO_SUMS.index("frames"), VIDEO_SUMS.index("true_motion")], 0] for s in self.video.values()]
        actions = [s[:, ACTION_SUMS.index("n"), 0] for s in self.actions.values()]
        return [*videos[:1], *actions[:1]]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Everything that was kept of one model."""

    facts: Mapping[str, Any]
    """Of the data: `manifest_sha256`, `split`."""
    bodies: Mapping[str, EpisodeSums]


def sums_by_episode(measured: Measured, group: Group) -> EpisodeSums:
    """Add the windows of each episode and the whole horizon."""
    return EpisodeSums(
        embodiment=group.spec.name,
        episodes=tuple(sorted(set(group.episodes))),
        action_scale=group.action_scale,
        video={k: episode_sums(s.sum(-1, keepdim=True), group.episodes) for k, s in measured.video.items()},
        actions={k: episode_sums(s.sum(-2, keepdim=True), group.episodes) for k, s in measured.actions.items()},
    )


def write_episodes(folder: Path, found: Sequence[EpisodeSums], facts: Mapping[str, Any]) -> Path:
    """Write `episodes.json` of one model.

    Raises:
        DataError: The folder can't be written.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "data": {key: facts[key] for key in ("dataset", "manifest_sha256", "split")},
        "video_sums": VIDEO_SUMS,
        "action_sums": ACTION_SUMS,
        "bodies": [
            {
                "embodiment": s.embodiment,
                "episodes": s.episodes,
                "action_scale": s.action_scale.tolist(),
                "video": {":".join(key): x.squeeze(-1).tolist() for key, x in s.video.items()},
                "actions": {":".join(key): x.squeeze(-2).tolist() for key, x in s.actions.items()},
            }
            for s in found
        ],
    }
    return write_whole(folder, NAME, (json.dumps(document) + "\n").encode())


def read_episodes(path: Path) -> Scored:
    """Read what `write_episodes` wrote.

    Raises:
        DataError: The file is missing, broken, or of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        same = (document["schema_version"], document["video_sums"], document["action_sums"])
        if same != (SCHEMA_VERSION, list(VIDEO_SUMS), list(ACTION_SUMS)):
            raise DataError(f"{path} was written by another version of this library; evaluate again")
        bodies = [_body(raw) for raw in document["bodies"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} can't be read ({error}); evaluate again with --episode-sums") from error
    return Scored(facts=document["data"], bodies={body.embodiment: body for body in bodies})


def _body(raw: Mapping[str, Any]) -> EpisodeSums:
    def table(name: str, axis: int) -> dict[Key, Tensor]:
        found: dict[Key, Tensor] = {}
        for key, sums in raw[name].items():
            mode, _, condition = key.partition(":")
            found[mode, condition] = torch.tensor(sums, dtype=torch.float64).unsqueeze(axis)
        return found

    return EpisodeSums(
        embodiment=raw["embodiment"],
        episodes=tuple(raw["episodes"]),
        action_scale=torch.tensor(raw["action_scale"], dtype=torch.float64),
        video=table("video", -1),
        actions=table("actions", -2),
    )
