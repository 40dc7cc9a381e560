"""What is done to recordings between a source and the writer: a robot's conventions, and the choice of episodes and of parts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from wam_video.data.body import BodyConfig, body_from_dict, with_body
from wam_video.data.schema import Episode
from wam_video.data.sources import SkippedEpisode
from wam_video.data.spans import check_tolerance, merge_spans, moving_spans, rows_misfit, scene_spans


@dataclass(frozen=True)
class RefineConfig:
    """All off by default."""

    body: Mapping[str, Any] | None = None
    """Of `body.body_to_dict`; None leaves recordings as the source gives them."""
    only_success: bool = False
    """Leave out episodes that failed, and those that do not say whether they did."""
    drop_idle_s: float = 0.0
    """Cut out stretches of so many seconds in which the robot stands; 0 cuts nothing."""
    idle_tolerance: float = 0.01
    """How much of its range each number may change while the robot stands."""
    split_scenes: bool = False
    """Cut videos without actions where their scene changes."""
    drop_duplicates: bool = False
    """Leave out episodes that look and act like an earlier one."""

    def __post_init__(self) -> None:
        check_tolerance(self.drop_idle_s, self.idle_tolerance)

    def to_options(self) -> dict[str, Any]:
        """Return what differs from the defaults, for a manifest or a recipe; `RefineConfig(**options)` reads it."""
        default = asdict(RefineConfig())
        return {key: value for key, value in asdict(self).items() if value != default[key]}

    @cached_property
    def parsed_body(self) -> BodyConfig | None:
        """The robot's conventions."""
        return None if self.body is None else body_from_dict(self.body)


NOTHING = RefineConfig()


def refine(item: Episode | SkippedEpisode, config: RefineConfig, *, look: bool = True) -> Episode | SkippedEpisode:
    """Return a recording as it is to be encoded, or why it is left out.

    Args:
        item: From a source.
        config: What to do.
        look: Decode video where a choice needs it; False: do without.

    Raises:
        ConfigError: The recording is not what the robot's file says, or idle parts can't be told.
        DataError: Its video can't be decoded.
    """
    if isinstance(item, SkippedEpisode):
        return item
    if config.only_success and item.success is not True:
        reason = "it failed" if item.success is False else "it does not say whether it succeeded"
        return SkippedEpisode(episode_id=item.episode_id, reason=f"{reason}, and only successes are asked for")
    episode = item if config.parsed_body is None else with_body(item, config.parsed_body)
    if not episode.views:
        reason = "it has no views; a sample needs at least one video"
        return SkippedEpisode(episode_id=item.episode_id, reason=reason)
    if config.drop_idle_s and (misfit := rows_misfit(episode)):
        return SkippedEpisode(episode_id=item.episode_id, reason=misfit)
    idle = moving_spans(episode, config.drop_idle_s, config.idle_tolerance) if config.drop_idle_s else None
    if idle == ():
        return SkippedEpisode(episode_id=item.episode_id, reason="the robot never moves")
    scenes = None
    if config.split_scenes and look and episode.actions is None:
        scenes = scene_spans(next(iter(episode.views.values())))
    spans = merge_spans([episode.spans, idle, scenes])
    notes = [note for note, given in (("idle_parts_left_out", idle), ("split_at_cuts", scenes)) if given is not None]
    return replace(episode, spans=spans, notes=(*episode.notes, *notes))
