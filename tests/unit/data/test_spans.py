"""Parts of recordings: idle stretches and cuts go, and no window crosses where something went; successes; near-duplicates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wam_video.data.convert import convert, encode_recording, plan
from wam_video.data.encode import WriterConfig
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset
from wam_video.data.manifest import load_manifest
from wam_video.data.reader import load_clip
from wam_video.data.refine import RefineConfig, refine
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.sources import SkippedEpisode
from wam_video.data.spans import encode_spans, merge_spans, moving_spans, scene_spans
from wam_video.data.video import ArrayView, FileView, encode_mp4
from wam_video.data.windows import WindowConfig
from wam_video.errors import ConfigError

FPS, RATE = 10.0, 20.0
WRITER = WriterConfig(dataset="toy", height=16, width=16, fit="stretch", val_fraction=0)


class Recorded:
    """A source of episodes that are there."""

    name, looks_like, licence, notes = "recorded", "", "", ()

    def __init__(self, *episodes: Episode) -> None:
        self._episodes = episodes
        self.len_hint = len(episodes)

    def episodes(self):
        return iter(self._episodes)


def robot(moves: np.ndarray, name: str = "ep0", *, state: bool = True, kinds: tuple[str, ...] = ()) -> Episode:
    """Frame i has brightness 20 + 2 i; a number goes up in the steps that `moves` says, the second one only jitters."""
    count = len(moves)
    frames = count // 2 + 1
    rows = np.zeros((count + 1, 2), np.float32)
    rows[1:, 0] = np.cumsum(moves)
    rows[:, 1] = 5 + 0.001 * np.sin(np.arange(count + 1))
    rows[:2, 1] = 4
    light = np.broadcast_to((20 + 2 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, 16, 16, 3))
    spec = EmbodimentSpec(
        name="arm",
        action_dim=2,
        state_dim=2 if state else 0,
        views=("cam",),
        fps=FPS,
        action_rate=RATE,
        action_kinds=kinds,
    )
    return Episode(
        episode_id=name,
        embodiment=spec,
        views={"cam": ArrayView(light, np.arange(frames) / FPS)},
        actions=rows[1:],
        state=rows if state else None,
    )


def half_idle() -> Episode:
    """Moves from 0 to 2 s, stands to 4 s, moves to 6 s."""
    moves = np.ones(120)
    moves[40:80] = 0
    return robot(moves)


def test_a_stretch_without_motion_is_found_to_the_step() -> None:
    spans = moving_spans(half_idle(), 1.0, 0.01)
    assert spans is not None
    (a, b), (c, d) = spans
    assert (a, c, d) == (0, 4.0, np.inf)
    assert 2.0 < b < 2.05  # the frame after the last action is the first part's
    assert moving_spans(half_idle(), 3.0, 0.01) is None
    assert moving_spans(robot(np.ones(40)), 1.0, 0.01) is None


def test_slow_motion_is_no_rest() -> None:
    moves = np.full(400, 0.001)  # a tenth of a percent of its range a step
    moves[:50] = 0.02
    assert moving_spans(robot(moves), 0.5, 0.01) is None


def test_without_a_state_the_kinds_of_actions_must_be_known() -> None:
    moves = np.ones(120)
    moves[40:80] = 0
    with pytest.raises(ConfigError, match="kind"):
        moving_spans(robot(moves, state=False), 1.0, 0.01)
    absolute = moving_spans(robot(moves, state=False, kinds=("absolute", "absolute")), 1.0, 0.01)
    assert absolute is not None
    assert len(absolute) == 2
    deltas = replace(
        robot(moves, state=False, kinds=("delta", "delta")), actions=np.stack([moves, 0 * moves], 1).astype(np.float32)
    )
    assert moving_spans(deltas, 1.0, 0.01) == absolute


def test_no_window_holds_frames_or_actions_of_both_sides_of_a_cut(tmp_path: Path) -> None:
    refining = RefineConfig(drop_idle_s=1.0)
    manifest = convert(Recorded(half_idle()), tmp_path / "out", WRITER, refining=refining)  # type: ignore[arg-type]
    assert manifest.notes["idle_parts_left_out"] == 1
    (shard,) = manifest.shards
    clips = [load_clip(tmp_path / "out", shard, sample) for sample in shard.samples]
    assert [(c.info["clip_start_s"], c.info["num_frames"], c.info["num_actions"]) for c in clips] == [
        (0, 21, 40),
        (4.0, 21, 40),
    ]
    first, second = clips
    assert np.allclose(first.actions[:, 0], np.arange(1, 41))
    assert np.allclose(second.actions[:, 0], np.arange(41, 81))
    assert np.array_equal(second.state[1:], second.actions)
    assert np.abs(second.video["cam"].mean((1, 2, 3)) - (20 + 2 * np.arange(40, 61))).max() < 2
    window = WindowConfig(num_context_frames=3, num_future_frames=6, context_stride_s=0.1, future_stride_s=0.1)
    data = DataConfig(datasets={"toy": DatasetConfig(path=str(tmp_path / "out"))}, window=window)
    dataset = WindowDataset(data, shuffle=False)
    batch = dataset.batch(range(len(dataset)))
    light = batch.video.float().mean((1, 2, 4, 5))
    sides = [
        {bool(value > 70) for value, real in zip(row, mask, strict=True) if real}
        for row, mask in zip(light, batch.frame_mask[:, 0], strict=True)
    ]
    assert {len(side) for side in sides} == {1}
    acted = [
        {bool(a > 40.5) for a, real in zip(row, mask, strict=True) if real}
        for row, mask in zip(batch.actions[..., 0], batch.action_mask[..., 0], strict=True)
    ]
    assert all(side == side_acted for side, side_acted in zip(sides, acted, strict=True))


def test_parts_begin_where_a_frame_and_an_action_begin_together() -> None:
    episode = replace(robot(np.ones(120)), spans=((1.05, 3.0), (3.33, 3.36), (4.0, 9.0)))  # 3.33: no two frames
    encoded = encode_spans(episode, WRITER)
    starts = [(clip.key, clip.num_frames, clip.num_actions) for clip in encoded.clips]
    assert starts == [("ep0-0000", 19, 36), ("ep0-0001", 21, 40)]


@pytest.mark.parametrize(("period", "shake"), [(1 / 19.98, 0.0), (0.05, 0.002)])
def test_clocks_that_drift_or_shake_cost_a_part_a_second_at_most(period: float, shake: float) -> None:
    rng = np.random.default_rng(0)
    times = np.arange(800) * period + rng.uniform(0, shake, 800)
    episode = robot(np.ones(800))
    view = ArrayView(np.zeros((800, 16, 16, 3), np.uint8), times)
    spec = replace(episode.embodiment, fps=1 / period)
    episode = replace(episode, embodiment=spec, views={"cam": view}, spans=((4.0, 36.0),))
    encoded = encode_spans(episode, replace(WRITER, clip_frames=10_000))
    (clip,) = encoded.clips
    assert clip.num_actions >= 30 / period
    assert clip.num_frames >= 30 / period


def test_an_episode_that_never_moves_or_failed_is_left_out_by_name() -> None:
    still = robot(np.zeros(40))
    still.state[:] = still.state[:1]  # type: ignore[index]
    gone = refine(still, RefineConfig(drop_idle_s=1.0))
    assert isinstance(gone, SkippedEpisode)
    assert gone.reason == "the robot never moves"
    only = RefineConfig(only_success=True)
    reasons = [refine(replace(half_idle(), success=success), only) for success in (False, None)]
    assert ["failed" in r.reason for r in reasons if isinstance(r, SkippedEpisode)] == [True, False]
    assert isinstance(refine(replace(half_idle(), success=True), only), Episode)


def test_a_recording_without_a_wanted_view_is_left_out_by_name() -> None:
    lacks = replace(half_idle(), views={})
    for refining in (RefineConfig(), RefineConfig(drop_idle_s=1.0)):
        (skipped,) = plan(Recorded(lacks), refining=refining).skipped  # type: ignore[arg-type]
        assert "no views" in skipped.reason
        assert isinstance(encode_recording(lacks, WRITER, refining), SkippedEpisode)


def test_rows_that_do_not_fit_each_other_are_refused_though_parts_would_fit() -> None:
    good = half_idle()
    assert good.state is not None
    for wrong in (
        replace(good, state=np.concatenate([good.state] * 2)),
        replace(good, reward=np.zeros(130, np.float32)),
    ):
        skipped = encode_recording(wrong, WRITER, RefineConfig(drop_idle_s=1.0))
        assert isinstance(skipped, SkippedEpisode)
        assert "expected 12" in skipped.reason


def scene(seed: int, frames: int, flash: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((8, 8, 1)))
    film = np.stack([np.roll(ground, i, axis=1) for i in range(frames)]).astype(np.uint8)
    if flash is not None:
        film[flash] = 255
    return film


def film(*scenes: np.ndarray) -> ArrayView:
    frames = np.concatenate(scenes)
    return ArrayView(frames, np.arange(len(frames)) / FPS)


def test_a_film_is_cut_where_its_scene_changes_and_nowhere_else() -> None:
    assert scene_spans(film(scene(0, 20), scene(1, 15), scene(2, 30))) == ((0.0, 2.0), (2.0, 3.5), (3.5, np.inf))
    assert scene_spans(film(scene(0, 40))) is None
    assert scene_spans(film(scene(0, 40, flash=20))) is None  # light, not a cut
    assert scene_spans(film(np.full((20, 32, 32, 3), 90, np.uint8))) is None
    noise = np.random.default_rng(0).integers(0, 255, (30, 4, 4, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    assert scene_spans(film(noise)) is None  # where all changes all the time nothing stands out
    assert scene_spans(film(scene(0, 20), scene(1, 3), scene(2, 20))) == (
        (0.0, 2.0),
        (2.3, np.inf),
    )  # too short to keep


def test_films_with_cuts_become_clips_of_one_scene_each(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(encode_mp4(np.concatenate([scene(0, 20), scene(1, 15)]), FPS))
    spec = EmbodimentSpec(name="video", action_dim=0, state_dim=0, views=("camera",), fps=FPS, action_rate=0)
    episode = Episode(episode_id="film", embodiment=spec, views={"camera": FileView(path)}, actions=None, state=None)
    source = Recorded(episode)
    assert plan(source, refining=RefineConfig(split_scenes=True)).episodes == 1  # type: ignore[arg-type]
    manifest = convert(source, tmp_path / "out", WRITER, refining=RefineConfig(split_scenes=True))  # type: ignore[arg-type]
    assert [s.num_frames for s in manifest.shards[0].samples] == [20, 15]
    assert {s.episode_id for s in manifest.shards[0].samples} == {"film"}  # and so one split
    assert manifest.notes["split_at_cuts"] == 1
    second = load_clip(tmp_path / "out", manifest.shards[0], manifest.shards[0].samples[1])
    assert second.info["clip_start_s"] == 2.0


def moving_block(seed: int, offset: int = 0, frames: int = 40) -> np.ndarray:
    """The same table, another path of the block."""
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.normal(0, 2, (frames, 2)), axis=0)
    out = np.full((frames, 64, 64, 3), 60 + offset, np.uint8)
    for i, (y, x) in enumerate((path % 48).astype(int)):
        out[i, y : y + 16, x : x + 16] = 200 + offset
    return out


def block(name: str, video: np.ndarray, actions: np.ndarray | None) -> Episode:
    spec = EmbodimentSpec(
        name="arm", action_dim=0 if actions is None else 2, state_dim=0, views=("cam",), fps=FPS, action_rate=FPS
    )
    times = np.arange(len(video)) / FPS
    return Episode(
        episode_id=name, embodiment=spec, views={"cam": ArrayView(video, times)}, actions=actions, state=None
    )


def recoded(video: np.ndarray) -> np.ndarray:
    from wam_video.data.video import open_video

    return open_video(encode_mp4(video, FPS, crf=32)).get(range(len(video)))


@pytest.mark.parametrize("acting", [True, False])
def test_near_duplicates_are_left_out_and_named_and_the_same_scene_is_not(acting: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    actions = {n: rng.normal(0, 1, (39, 2)).astype(np.float32) if acting else None for n in range(3)}
    copy = None if actions[0] is None else actions[0] + np.float32(0.01)
    episodes = [
        block("a", moving_block(0), actions[0]),
        block("other", moving_block(1), actions[1]),
        block("copy", recoded(moving_block(0, offset=6)), copy),
        block("cut", moving_block(0)[:39], None if actions[0] is None else actions[0][:38]),
    ]
    manifest = convert(
        Recorded(*episodes),
        tmp_path / "out",
        WriterConfig(dataset="toy", height=64, width=64),
        refining=RefineConfig(drop_duplicates=True),  # type: ignore[arg-type]
    )
    assert {s.episode_id: s.reason for s in manifest.skipped} == {
        "copy": "a near-duplicate of a",
        "cut": "a near-duplicate of a",
    }
    assert manifest.notes["near_duplicates_left_out"] == 2
    assert load_manifest(tmp_path / "out").counts["total"]["episodes"] == 2


def test_episodes_that_look_the_same_but_act_otherwise_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    episodes = [block(name, moving_block(0), rng.normal(0, 1, (39, 2)).astype(np.float32)) for name in ("a", "b")]
    episodes += [block(name, np.full((20, 64, 64, 3), 90, np.uint8), None) for name in ("still0", "still1")]
    episodes[2:] = [replace(e, embodiment=replace(e.embodiment, name="film")) for e in episodes[2:]]
    writer = WriterConfig(dataset="toy", height=64, width=64)
    manifest = convert(Recorded(*episodes), tmp_path / "out", writer, refining=RefineConfig(drop_duplicates=True))  # type: ignore[arg-type]
    assert not manifest.skipped


def test_choices_of_parts_are_combined() -> None:
    assert merge_spans([None, None]) is None
    assert merge_spans([None, ((0, 2), (3, 5)), ((1, 4),)]) == ((1, 2), (3, 4))
    assert merge_spans([(), ((1, 4),)]) == ()


@pytest.mark.parametrize("options", [{"drop_idle_s": -1}, {"drop_idle_s": float("nan")}, {"idle_tolerance": 1.0}])
def test_numbers_without_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="drop_idle"):
        RefineConfig(**options)


def test_only_what_differs_from_the_defaults_is_written_down() -> None:
    assert RefineConfig().to_options() == {}
    options = RefineConfig(drop_idle_s=2.0).to_options()
    assert options == {"drop_idle_s": 2.0}
    assert RefineConfig(**options) == RefineConfig(drop_idle_s=2.0)
