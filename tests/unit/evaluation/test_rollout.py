from collections.abc import Sequence

import numpy as np
import pytest

from tests.unit.evaluation.line_world import LineWorld
from wam_video.data.simulation import Disturbance
from wam_video.errors import ConfigError
from wam_video.evaluation.agents import Control
from wam_video.evaluation.disturb import Look, Shape, draw_look
from wam_video.evaluation.films import film, imagination
from wam_video.evaluation.rollout import Episode, Job, LoopConfig, Plan, Row, roll


class Script:
    """Plans chunks of four actions whose first number is 1000 x decision + place, and remembers what it was asked."""

    name, horizon, looks_back = "script", 4, (2, 0)

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.seen: list[tuple[int, list[int]]] = []

    def begin(self, row: Row) -> None:
        pass

    def decide(self, rows: Sequence[Row]) -> list[Plan]:
        self.batches.append([row.job.index for row in rows])
        self.seen += [(row.step, sorted(row.history)) for row in rows]
        marks = [np.array([[1000 * row.decisions + i, 0] for i in range(4)], np.float32) for row in rows]
        return [
            Plan(actions=m, imagined={2: np.full((32, 32, 3), 50, np.uint8)} if row.job.filmed else {})
            for m, row in zip(marks, rows, strict=True)
        ]


class Treadmill(LineWorld):
    """Never arrives; remembers what it was told to do."""

    def step(self, action: np.ndarray):
        outcome = super().step(action)
        return outcome.__class__(reward=0.0, success=False, progress=0.1)


def play(
    config: LoopConfig, episodes: int = 1, agent: object = None, filmed: bool = False, **options
) -> tuple[list[Episode], list[Treadmill]]:
    worlds = [Treadmill() for _ in range(min(config.rows, episodes))]
    jobs = [Job(task="near", index=i, filmed=filmed) for i in range(episodes)]
    return roll(worlds, agent or Script(), jobs, config, **options), worlds


def carried_out(world: Treadmill) -> list[int]:
    return [int(a[0]) for a in world.actions]


def test_a_chunk_is_carried_out_and_the_next_decided_on_time() -> None:
    _, (world,) = play(LoopConfig(max_steps=7))
    assert carried_out(world) == [0, 1, 2, 3, 1000, 1001, 1002]
    _, (world,) = play(LoopConfig(max_steps=5, execute=2))
    assert carried_out(world) == [0, 1, 1000, 1001, 2000]


def test_a_late_decision_begins_where_it_would_have_been_and_the_chunk_before_goes_on_meanwhile() -> None:
    (episode,), (world,) = play(LoopConfig(max_steps=7, execute=2, latency=1))
    # decision k at step 2k, its action 0 comes too late; nothing is planned at step 0: hold
    assert carried_out(world) == [0, 1, 2, 1001, 1002, 2001, 2002]
    assert episode.held == 1
    with pytest.raises(ConfigError, match="must leave at least one step"):
        play(LoopConfig(execute=4, latency=1))


def test_a_decision_that_misses_the_deadline_is_thrown_away_and_made_again() -> None:
    times = iter([0, 9, 10, 10.1, 20, 20.1])  # the first takes 9 s
    (episode,), (world,) = play(LoopConfig(max_steps=4, deadline_s=1.0), clock=lambda: next(times))
    assert (episode.late, episode.held, episode.decisions) == (1, 1, 2)
    assert carried_out(world) == [0, 1000, 1001, 1002]


def test_rows_start_anew_one_by_one_and_share_every_decision() -> None:
    agent = Control("expert")
    seen: list[int] = []
    decide = agent.decide
    agent.decide = lambda rows: seen.append(len(rows)) or decide(rows)  # type: ignore[method-assign]
    worlds = [LineWorld() for _ in range(3)]
    jobs = [Job(task="near", index=i, filmed=False) for i in range(5)]
    episodes = roll(worlds, agent, jobs, LoopConfig(rows=3))
    assert [e.job.index for e in episodes] == [0, 1, 2, 3, 4]
    assert all(e.success_step for e in episodes)
    assert seen[0] == 3
    assert set(seen) <= {1, 2, 3}


def test_starts_depend_on_seed_and_index_and_on_nothing_beside() -> None:
    hashes = []
    for rows, seed in ((1, 5), (3, 5), (1, 6)):
        episodes = roll(
            [LineWorld() for _ in range(rows)],
            Control("random"),
            [Job(task="near", index=i, filmed=False) for i in range(3)],
            LoopConfig(rows=rows, seed=seed),
        )
        hashes.append([(e.start_hash, e.to_dict()["reward"]) for e in episodes])
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]
    assert len(set(hashes[0])) == 3


def test_only_pictures_that_a_decision_reads_are_drawn() -> None:
    script = Script()
    play(LoopConfig(max_steps=12), agent=script)
    assert script.seen == [(0, [0]), (4, [2, 4]), (8, [6, 8])]
    _, (world,) = play(LoopConfig(max_steps=12), agent=Control("hold"))
    assert world.drawn == 1  # the last, for the page


def test_a_disturbed_picture_differs_and_nothing_disturbed_is_the_picture_itself() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    assert draw_look(Disturbance(), np.random.default_rng(0)) == Look()
    np.testing.assert_array_equal(Look()(frame), frame)
    for name in ("camera", "light", "distractors"):
        look = draw_look(Disturbance(**{name: 1.0}), np.random.default_rng(1))
        assert (look(frame) != frame).mean() > 0.02
        np.testing.assert_array_equal(
            look(frame), draw_look(Disturbance(**{name: 1.0}), np.random.default_rng(1))(frame)
        )
    with pytest.raises(ConfigError, match="disturbance light is 3"):
        Disturbance(light=3)


def test_the_camera_moves_as_said() -> None:
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[18:22, 18:22] = 255

    def centre(look: Look) -> np.ndarray:
        rows, columns = np.nonzero(look(frame)[..., 0] > 100)
        return np.array([columns.mean(), rows.mean()])

    np.testing.assert_allclose(centre(Look(shift=(0.25, -0.1))), [29.5, 15.5], atol=0.6)
    np.testing.assert_allclose(centre(Look(turn_deg=90.0)), [19.5, 19.5], atol=0.6)
    assert (Look(zoom=2.0)(frame) > 100).sum() > 3 * (frame > 100).sum()
    dot = Look(shapes=(Shape(x=0.25, y=0.5, radius=0.05, colour=(9, 200, 9), is_round=True),))(frame)
    assert tuple(dot[20, 10]) == (9, 200, 9)


def test_a_disturbed_start_moves_the_body_and_is_another_start() -> None:
    plain, moved = (
        roll(
            [LineWorld()],
            Control("hold"),
            [Job(task="near", index=0, filmed=False)],
            LoopConfig(disturbance=Disturbance(start=s)),
        )[0]
        for s in (0, 0.5)
    )
    assert plain.start_hash != moved.start_hash


def test_films_put_expectations_beside_the_world_and_score_them() -> None:
    (episode,), _ = play(LoopConfig(max_steps=8), filmed=True, film_size=(16, 16))
    frames, fps = film(episode, 10.0)
    assert frames.shape == (9, 22, 40, 3)
    assert fps == 10.0
    bars = frames[:, -1, -1].tolist()
    grey, orange = [150] * 3, [230, 120, 20]
    assert bars == [grey, grey, orange, orange, orange, grey, orange, orange, orange]
    score = imagination([episode], 4)
    assert score is None or score["pictures"] == 2


def test_a_right_expectation_scores_better_than_a_still_picture() -> None:
    (episode,), _ = play(LoopConfig(max_steps=4), agent=_Walker(right=True), filmed=True)
    (wrong,), _ = play(LoopConfig(max_steps=4), agent=_Walker(right=False), filmed=True)
    good, bad = imagination([episode], 4), imagination([wrong], 4)
    assert good is not None
    assert bad is not None
    assert good["psnr_moving"] == 100.0 > good["psnr_moving_still"]
    assert bad["psnr_moving"] < good["psnr_moving"]


class _Walker(Script):
    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right = right

    def decide(self, rows: Sequence[Row]) -> list[Plan]:
        (row,) = rows
        ahead = LineWorld()
        ahead.at = row.environment.at + np.array([-0.2, 0.0]) * (2 if self.right else -1)
        return [Plan(actions=np.array([[-0.2, 0.0]] * 4, np.float32), imagined={2: ahead.frames()["front"]})]
