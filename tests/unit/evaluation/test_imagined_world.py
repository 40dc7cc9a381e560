"""The line world, imagined: by a dreamer that knows it, and by broken ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.evaluation.line_world import SPEC, LineWorld
from wam_video.errors import ConfigError
from wam_video.evaluation.agents import Control
from wam_video.evaluation.imagined_world import Foresight, Frozen, ImaginedWorld, Shuffled, WorldModel
from wam_video.evaluation.judge import LinearMotion, PictureJudge, choose_threshold
from wam_video.evaluation.moments import Frames, Moment
from wam_video.evaluation.rollout import Episode, Job, LoopConfig, Plan, Row, roll
from wam_video.evaluation.variants import Trembling, action_limits
from wam_video.evaluation.witness import Track, Witness
from wam_video.testing import tiny_pipeline

SIZE = (48, 48)


def picture(x: float) -> Frames:
    world = LineWorld(size=SIZE)
    world.at = np.array([x, 0.0])
    return world.frames()


class Oracle:
    """Knows how the point moves."""

    steps, looks_back = (2, 4), (2, 0)

    def __init__(self) -> None:
        self.asked: list[list[Moment]] = []

    def imagine(self, moments: Sequence[Moment], seeds: Sequence[int]) -> list[dict[int, Frames]]:
        self.asked.append(list(moments))
        futures = []
        for m in moments:
            at = m.state[0] + np.cumsum(np.clip(m.actions[:, 0], -0.2, 0.2))
            futures.append({s: picture(at[min(s, len(at)) - 1]) for s in self.steps})
        return futures


class Chunked:
    """Walks home at a pace of its own; plans four actions."""

    name, horizon, looks_back = "walker", 4, (2, 0)

    def __init__(self, pace: float = 0.08) -> None:
        self.pace = pace

    def begin(self, row: Row) -> None:
        pass

    def decide(self, rows: Sequence[Row]) -> list[Plan]:
        plans = []
        for row in rows:
            x, actions = float(row.environment.state()[0]), []
            for _ in range(4):
                actions.append([-np.sign(x) * min(self.pace, abs(x)), 0.0])
                x += actions[-1][0]
            plans.append(Plan(actions=np.array(actions, np.float32)))
        return plans


def watch(agent, starts: int = 6, seed: int = 1, worlds: list | None = None) -> tuple[list[Episode], list[Track]]:
    pace = min(4, agent.horizon)
    watched = [Witness(world, 2) for world in worlds or [LineWorld(size=SIZE) for _ in range(2)]]
    jobs = [Job(task="near", index=i, filmed=False) for i in range(starts)]
    episodes = roll(watched, agent, jobs, LoopConfig(rows=len(watched), execute=pace, max_steps=12, seed=seed))
    tracks = {t.seed[-1]: t for world in watched for t in world.tracks}
    return episodes, [tracks[i] for i in range(starts)]


@pytest.fixture(scope="module")
def lessons() -> list[Track]:
    limits = action_limits(LineWorld())
    agents = [
        *map(Chunked, (0.02, 0.035, 0.04, 0.05, 0.08)),
        Trembling(Control("expert"), np.array([0.1, 0.0]), limits),
    ]
    return [track for i, agent in enumerate(agents) for track in watch(agent, seed=50 + i)[1]]


@pytest.fixture(scope="module")
def judge(lessons: list[Track]) -> PictureJudge:
    return PictureJudge(lessons)


@pytest.fixture(scope="module")
def motion(lessons: list[Track]) -> LinearMotion:
    return LinearMotion(lessons)


def imagine(agent, dreamer, judge: PictureJudge, motion: LinearMotion) -> list[Track]:
    worlds = [ImaginedWorld(LineWorld(size=SIZE), dreamer, judge, motion) for _ in range(2)]
    return watch(Foresight(agent, dreamer), worlds=worlds)[1]


def test_a_judge_reads_progress_and_success_of_episodes_that_it_never_saw(judge: PictureJudge) -> None:
    for pace, wins in ((0.03, False), (0.07, True)):
        _, tracks = watch(Chunked(pace), seed=9)
        for track in tracks:
            success, best = judge.watch(track)
            assert success == track.succeeded == wins
            assert best == pytest.approx(max(o.progress for o in track.outcomes), abs=0.06)
    facts = judge.fits["near"].facts
    assert facts["progress_mae"] < 0.2 * facts["progress_mae_of_the_mean"]
    assert facts["success_agreement"] > 0.9


def test_the_start_is_not_judged_in_the_simulator_as_it_is_not_in_imagination(judge: PictureJudge, monkeypatch) -> None:
    _, (track, *_) = watch(Chunked(0.03), seed=9)
    monkeypatch.setattr(judge, "progress", lambda task, first, frames: [float(len(frames))])
    assert judge.watch(replace(track, pictures={0: track.pictures[0], 4: track.pictures[0]}))[1] == 1.0
    seen: list[int] = []
    monkeypatch.setattr(judge, "progress", lambda task, first, frames: [float(seen.append(len(frames)) or 0)])
    judge.watch(track)
    assert seen == [len(track.pictures) - 1]


def test_success_is_not_judged_where_all_episodes_ended_alike() -> None:
    _, tracks = watch(Chunked(0.01))
    blind = PictureJudge(tracks)
    assert blind.judged == ()
    assert not blind.success("near", 1.0)


def test_the_threshold_lies_in_the_middle_of_the_widest_best_gap() -> None:
    ends = np.array([0.1, 0.3, 0.7, 0.9])
    assert choose_threshold(ends, np.array([False, False, True, True])) == pytest.approx(0.5)
    assert choose_threshold(ends, np.array([True, True, True, True])) is None


def test_the_body_follows_the_actions_without_being_looked_at(motion: LinearMotion) -> None:
    _, tracks = watch(Chunked(0.06), seed=9)
    assert max(motion.error(tracks)[:1]) < 0.05


def test_a_world_that_is_imagined_rightly_gives_what_the_simulator_gives(
    judge: PictureJudge, motion: LinearMotion
) -> None:
    for pace in (0.03, 0.07):
        episodes, real = watch(Chunked(pace), seed=1)
        dreamt = imagine(Chunked(pace), Oracle(), judge, motion)
        assert [t.succeeded for t in dreamt] == [t.succeeded for t in real]
        for a, b in zip(real, dreamt, strict=True):
            np.testing.assert_array_equal(a.pictures[0]["front"], b.pictures[0]["front"])
            best = [max(o.progress for o in t.outcomes) for t in (a, b)]
            assert best[0] == pytest.approx(best[1], abs=0.07)
    assert all(e.start_hash for e in episodes)


def test_a_frozen_world_shows_its_start_and_one_told_other_actions_does_not_follow(
    judge: PictureJudge, motion: LinearMotion
) -> None:
    frozen = imagine(Chunked(0.07), Frozen(Oracle()), judge, motion)
    assert not any(t.succeeded for t in frozen)
    for track in frozen:
        assert all((p["front"] == track.pictures[0]["front"]).all() for p in track.pictures.values())
    away = np.full((1, 4, 2), 0.2, np.float32)
    assert not any(t.succeeded for t in imagine(Chunked(0.07), Shuffled(Oracle(), away), judge, motion))


def test_all_rows_that_decide_are_imagined_in_one_batch_with_their_whole_plans(
    judge: PictureJudge, motion: LinearMotion
) -> None:
    oracle = Oracle()
    imagine(Chunked(0.03), oracle, judge, motion)
    assert {len(moments) for moments in oracle.asked} == {2}
    later = oracle.asked[1][0]
    assert later.actions.shape == (4, 2)
    assert {0, 2} <= set(later.pictures)
    assert later.key == "near@4"


def test_what_was_not_foretold_is_imagined_from_what_was_done(judge: PictureJudge, motion: LinearMotion) -> None:
    oracle = Oracle()
    world = ImaginedWorld(LineWorld(size=SIZE), oracle, judge, motion)
    world.reset("near", [1])
    start = world.state()[0]
    told = np.tile(np.array([0.1, 0.0], np.float32), (4, 1))
    world.begin_moment()
    world.receive(told, oracle.imagine([world.moment(told)], [0])[0])
    for _ in range(2):  # the other way
        world.step(np.array([-0.1, 0.0], np.float32))
    np.testing.assert_array_equal(world.frames()["front"], picture(start - 0.2)["front"])
    assert len(oracle.asked) == 2
    world.step(np.array([-0.1, 0.0], np.float32))
    with pytest.raises(ConfigError, match="no picture"):
        world.begin_moment()


def test_noise_depends_on_start_and_step_alone(judge: PictureJudge, motion: LinearMotion) -> None:
    seeds = []
    for start in (1, 1, 2):
        world = ImaginedWorld(LineWorld(size=SIZE), Oracle(), judge, motion)
        world.reset("near", [7, 5, start])
        seeds.append(world.noise_seed())
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_checkpoint_imagines_pictures_of_its_window_whatever_else_is_in_the_batch() -> None:
    model = WorldModel(tiny_pipeline(size=32, seed=3), SPEC)
    moments = [
        Moment(pictures={0: picture_of(x, 32)}, state=np.array([x, 0], np.float32), prompt="come", key="k", actions=a)
        for x, a in ((0.5, np.zeros((4, 2), np.float32)), (0.8, np.ones((2, 2), np.float32)))
    ]
    both = model.imagine(moments, [1, 2])
    alone = model.imagine(moments[1:], [2])
    assert list(both[0]) == list(model.steps)
    last = model.steps[-1]
    assert both[1][last]["front"].shape == (32, 32, 3)
    gap = both[1][last]["front"].astype(int) - alone[0][last]["front"].astype(int)
    assert np.abs(gap).max() <= 1
    assert torch.get_rng_state().shape  # the generator of torch is left alone: every seed is given


def picture_of(x: float, side: int) -> Frames:
    world = LineWorld(size=(side, side))
    world.at = np.array([x, 0.0])
    return world.frames()


def test_actions_tremble_within_what_the_environment_carries_out_the_same_every_time() -> None:
    low, high = action_limits(LineWorld())
    np.testing.assert_allclose([low, high], [[-0.2] * 2, [0.2] * 2], atol=2e-3)
    plain, loud, again = (
        np.stack(watch(Trembling(Chunked(0.03), np.array(scale), (low, high)))[1][0].actions)
        for scale in ([0.0, 0.0], [1.0, 0.0], [1.0, 0.0])
    )
    assert (plain[:, 0] == np.float32(-0.03)).all()
    np.testing.assert_array_equal(loud, again)
    assert (np.abs(loud[:, 0]) > 0.19).mean() > 0.5
    assert (loud[:, 1] == 0).all()
    assert loud.min() >= low[0]
