"""The simulated PushT source: reproducible, physical, and within the contract of a source."""

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="needs the extra 'sim'")

from data_pipelines.pusht import PushTSource
from data_pipelines.pusht import geometry as geo
from data_pipelines.pusht.pushes import Planner, apply_moves, pose_error, push_table
from data_pipelines.pusht.render import render
from data_pipelines.pusht.simulator import Table
from wam_video.data.sources import Source, detect, open_source
from wam_video.errors import ConfigError, DataError


def _play(**options):
    return list(PushTSource("pusht:", **{"episodes": 3, "max_steps": 40, "image_size": 32, **options}).episodes())


def _frames(episode):
    return np.stack(list(episode.views["top"].frames()))


def _same(left, right):
    return (
        left.episode_id == right.episode_id
        and np.array_equal(left.actions, right.actions)
        and np.array_equal(left.state, right.state)
        and left.extra == right.extra
        and np.array_equal(_frames(left), _frames(right))
    )


@pytest.fixture(scope="module")
def episodes():
    return _play(episodes=12, max_steps=80)


def test_an_episode_depends_on_seed_and_index_alone():
    few, many = _play(seed=3), _play(seed=3, episodes=5)
    assert all(_same(a, b) for a, b in zip(few, many[:3], strict=True))
    assert not any(np.array_equal(a.actions, b.actions) for a, b in zip(few, _play(seed=4), strict=True))


def test_worker_processes_yield_the_same_episodes_in_the_same_order():
    alone, together = _play(episodes=6, max_steps=15), _play(episodes=6, max_steps=15, workers=2)
    assert len(together) == 6
    assert all(_same(a, b) for a, b in zip(alone, together, strict=True))


def test_workers_stop_when_the_reader_does():
    reader = PushTSource("pusht:", episodes=1000, max_steps=5, image_size=16, workers=2).episodes()
    assert next(reader).episode_id == "seed0-000000"
    reader.close()


def test_shapes_and_ranges_follow_the_contract(episodes):
    for episode in episodes:
        steps = len(episode.actions)
        assert 1 <= steps <= 80
        assert episode.actions.shape == (steps, 2)
        assert episode.state.shape == (steps + 1, 2)
        assert episode.reward.shape == (steps,)
        assert {array.dtype for array in (episode.actions, episode.state, episode.reward)} == {np.dtype(np.float32)}
        assert _frames(episode).shape == (steps + 1, 32, 32, 3)
        assert np.allclose(episode.views["top"].times, np.arange(steps + 1) / 10)
        assert 0 <= episode.actions.min() <= episode.actions.max() <= 512
        assert 0 <= episode.reward.min() <= episode.reward.max() <= 1
        assert len(episode.prompts) > 1


def test_stored_actions_replayed_in_the_simulator_give_the_stored_states(episodes):
    episode = episodes[0]
    table = Table(episode.state[0].astype(float), np.array(episode.extra["block_pose"][0]))
    for action, after in zip(episode.actions, episode.state[1:], strict=True):
        table.step(action.astype(float))
        assert np.abs(table.pusher - after).max() < 0.1


def test_the_pusher_moves_smoothly_towards_targets_ahead_of_it(episodes):
    for episode in episodes:
        assert np.linalg.norm(np.diff(episode.actions, axis=0), axis=1).max() < 45
        ahead = np.linalg.norm(episode.actions - episode.state[:-1], axis=1)
        assert ahead.max() < 120
        assert np.median(ahead) > 5


def test_the_block_moves_in_a_third_of_the_frames_and_rests_in_others(episodes):
    moves = [np.abs(np.diff(np.array(e.extra["block_pose"]), axis=0)) @ [1, 1, 30] > 0.5 for e in episodes]
    assert 0.3 < np.concatenate(moves).mean() < 0.7


def test_an_expert_brings_the_block_nearer_to_its_goal():
    gains = [
        pose_error(np.array(e.extra["block_pose"][0])) - pose_error(np.array(e.extra["block_pose"][-1]))
        for e in _play(episodes=6, max_steps=80, skills="expert=1")
    ]
    assert np.mean(np.array(gains) > 10) >= 0.8


def test_a_tabulated_push_is_what_the_simulator_does():
    pose = np.array([230.0, 200.0, 0.3])
    push = Planner(push_table(), 0.6, 0).candidates(np.array([60.0, 60.0]), pose, 1)[0]
    start, end = push.path[-2], push.path[-1]
    table = Table(start, pose)
    for share in np.linspace(0, 1, 15):
        table.step(start + share * (end - start))
    for _ in range(8):
        table.step(end)
    assert pose_error(pose) - push.error > 5
    assert abs(pose_error(table.block) - push.error) < 3


def test_detours_keep_clear_of_the_block():
    table, pose, start = push_table(), np.array([256.0, 230.0, 1.0]), np.array([100.0, 300.0])
    lengths, chains, last = table.detours.from_point(start, pose)
    assert np.isfinite(lengths).mean() > 0.8
    for k in np.flatnonzero(np.isfinite(lengths)):
        hubs = table.detours.hubs[chains[last[k]]] if last[k] >= 0 else np.zeros((0, 2))
        way = np.concatenate([geo.to_block(start[None], pose), hubs, table.starts[k][None]])
        for a, b in pairwise(way):
            line = a + np.linspace(0, 1, 50)[:, None] * (b - a)
            assert geo.surface_distance(line).min() > geo.PUSHER_RADIUS + 5


def test_composing_a_move_with_a_turned_pose_turns_the_move():
    moved = apply_moves(np.array([10.0, 20.0, np.pi / 2]), np.array([3.0, 0.0, 0.1]))
    assert np.allclose(moved, [10.0, 23.0, np.pi / 2 + 0.1])


def test_pictures_show_pusher_block_and_goal_where_they_are():
    image = render(np.array([100.0, 400.0]), np.array([400.0, 60.0, 0.0]), 128).astype(int)
    assert (image[32, 32] == 255).all()
    red, green, blue = image[100, 25]
    assert blue > 200
    assert blue > red + 100
    assert np.ptp(image[25, 100]) < 60
    red, green, blue = image[70, 64]
    assert green > 200
    assert green > red + 50


def test_options_come_from_the_scheme_a_file_or_keywords_and_keywords_win(tmp_path):
    file = tmp_path / "toy.pusht.yaml"
    file.write_text("episodes: 7\nseed: 2\nskills: {expert: 3, lazy: 1}\n")
    assert detect(file) is PushTSource
    assert detect("pusht:") is PushTSource
    assert not PushTSource.matches(tmp_path / "video.mp4")
    source = open_source(file, seed=5)
    assert isinstance(source, Source)
    assert (source.len_hint, source.config.seed) == (7, 5)
    assert source.config.skill_weights == {"expert": 3.0, "lazy": 1.0}
    assert PushTSource("pusht:episodes=9,image_size=64").config.image_size == 64


@pytest.mark.parametrize(
    "text", ["skills: 3", "skills: [expert, lazy]", "- episodes", "skills: {expert: many}", "a: [", "3"]
)
def test_bad_option_files_are_one_line_errors(tmp_path, text):
    file = tmp_path / "toy.pusht.yaml"
    file.write_text(text)
    with pytest.raises((ConfigError, DataError)):
        PushTSource(file)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("pusht:", {"episode": 3}, "Did you mean 'episodes'"),
        ("pusht:", {"episodes": "many"}, "whole number"),
        ("pusht:", {"episodes": 0}, "allowed: 1 to"),
        ("pusht:", {"skills": "exprt=1"}, "Did you mean 'expert'"),
        ("pusht:", {"skills": "expert=-1"}, "weight >= 0"),
        ("pusht:", {"skills": "expert=0"}, "no weight above 0"),
        ("pusht:200", {}, "pusht:episodes=200"),
        ("absent.pusht.yaml", {}, "can't be read"),
    ],
)
def test_bad_options_are_one_line_errors(path, options, message):
    with pytest.raises((ConfigError, DataError)) as caught:
        PushTSource(path, **options)
    assert message in str(caught.value)
