"""Rows of one session as robots of a server: alone or together they hear the same; their time is kept."""

from typing import Any

import numpy as np
import pytest

from wam_video.errors import ConfigError
from wam_video.inference.server.dialects import Answer, Asked
from wam_video.inference.server.policy import Policy, PolicyConfig
from wam_video.inference.server.warm_up import warm_up
from wam_video.testing import tiny_pipeline

RULES: dict[str, dict[str, Any]] = {
    "window": {},
    "causal": {"attention": {"pattern": "causal", "chunk_frames": 2}},
    "history": {"attention": {"pattern": "causal", "chunk_frames": 2, "action_history": True, "window": 2}},
}


def policy(rule: str = "window", **options: Any) -> Policy:
    config = PolicyConfig(**{"embodiment": "arm", "max_sessions": 4} | options)
    return Policy(tiny_pipeline(model=RULES[rule]), config)


class Robot:
    """A robot's requests, from a seed of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.prompt = f"task {seed}"

    def asks(self, frames: int = 2, **more: Any) -> Asked:
        picture = self.rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)
        state = self.rng.normal(1, 0.5, 2).astype(np.float32)
        return Asked(**{"frames": (picture,), "state": state, "prompt": self.prompt} | more)


def decide(served: Policy, *asked: tuple[int, Asked]) -> list[np.ndarray]:
    answers = served.decide(asked)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return [answer.actions for answer in answers if isinstance(answer, Answer)]


@pytest.mark.parametrize("rule", RULES)
def test_robots_together_hear_what_each_hears_alone(rule: str) -> None:
    """Three robots come and go at different times; each is compared with a run in which it has the server to itself."""
    alone = []
    for seed in range(3):
        served, robot = policy(rule), Robot(seed)
        alone.append([decide(served, (0, robot.asks()))[0] for _ in range(4)])
    served, robots = policy(rule), [Robot(seed) for seed in range(3)]
    heard: list[list[np.ndarray]] = [[], [], []]
    for turn in ([0], [0, 1], [1, 2], [2, 0, 1], [2], [0, 1, 2]):
        for row, actions in zip(turn, decide(served, *((row, robots[row].asks()) for row in turn)), strict=True):
            heard[row].append(actions)
    for mine, wanted in zip(heard, alone, strict=True):
        np.testing.assert_allclose(np.stack(mine), np.stack(wanted[: len(mine)]), atol=1e-5)
    assert np.abs(alone[0][0] - alone[1][0]).max() > 1e-3  # they can be told apart


@pytest.mark.parametrize("rule", RULES)
def test_a_row_that_was_reset_is_as_new(rule: str) -> None:
    served = policy(rule)
    first = [decide(served, (1, robot.asks()))[0] for robot in [Robot(0)] for _ in range(3)]
    served.reset(1)
    again = [decide(served, (1, robot.asks()))[0] for robot in [Robot(0)] for _ in range(3)]
    np.testing.assert_allclose(np.stack(first), np.stack(again), atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_one_robots_mistake_is_its_own(rule: str) -> None:
    served, robot, twin = policy(rule), Robot(0), Robot(0)
    (wanted,) = decide(policy(rule), (0, twin.asks()))
    bad = Asked(frames=(np.zeros((2, 16, 16, 3), np.uint8),), state=np.zeros(5, np.float32))
    good, refused = served.decide([(0, robot.asks()), (1, bad)])
    assert isinstance(good, Answer) and isinstance(refused, ConfigError)
    np.testing.assert_allclose(good.actions, wanted, atol=1e-5)


def memories(served: Policy, *asked: Asked) -> list[str]:
    answers = [served.decide([(0, one)])[0] for one in asked]
    return [answer.memory if isinstance(answer, Answer) else str(answer) for answer in answers]


def test_a_network_that_remembers_wants_every_frame_or_begins_anew() -> None:
    """A chunk is four actions and two frames."""
    robot = Robot(0)
    asked = [
        robot.asks(2),
        robot.asks(2),
        robot.asks(3),
        robot.asks(1),
        robot.asks(1, executed=2),
        robot.asks(1, executed=0),
    ]
    assert memories(policy("causal"), *asked) == [
        "new",
        "continued",
        "continued",
        "restarted",
        "continued",
        "continued",
    ]
    served = policy("causal", gaps="refuse")
    assert "2 are due" in memories(served, robot.asks(2), robot.asks(1))[1]
    assert memories(served, robot.asks(2)) == ["new"]  # what failed is forgotten
    assert "carry out a multiple" in memories(served, robot.asks(1, executed=1))[0]


def test_a_network_without_memory_is_shown_the_frames_that_it_knows() -> None:
    """Context frames are two actions apart."""
    robot = Robot(0)
    asked = [
        robot.asks(1),
        robot.asks(1, executed=2),
        robot.asks(1, executed=1),
        robot.asks(1, executed=1),
        robot.asks(1),
    ]
    assert memories(policy(), *asked) == ["new", "continued", "restarted", "continued", "restarted"]


def test_frames_that_come_one_by_one_are_those_that_come_together() -> None:
    both = Robot(0).asks(2)
    older, newer = (Asked(frames=(both.frames[0][i : i + 1],), state=both.state, prompt=both.prompt) for i in (0, 1))
    one, two = policy(seed=5), policy(seed=4)
    (wanted,) = decide(one, (0, both))
    decide(two, (0, older))
    (got,) = decide(two, (0, Asked(**{**vars(newer), "executed": 2})))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_actions_out_of_range_are_told_and_clipped_only_if_asked() -> None:
    asked = Robot(0).asks()
    for clip in (False, True):
        served = policy(clip=clip)
        served._low, served._high = np.float32([-9, 0]), np.float32([9, 0.1])
        (answer,) = served.decide([(0, asked)])
        assert isinstance(answer, Answer)
        assert answer.out_of_range == (1,)
        assert bool((answer.actions[:, 1] > 0.1).any() or (answer.actions[:, 1] < 0).any()) is not clip


def test_the_range_is_that_of_recorded_actions_where_the_model_is_told_others() -> None:
    pipe = tiny_pipeline()
    wide = {"min": [-1e3, -1e3], "max": [1e3, 1e3]}
    pipe.processor.config["stats"]["arm"]["recorded_actions"] = wide
    pipe.processor.config["stats"]["arm"]["actions"] |= {"min": [0, 0], "max": [1e-6, 1e-6]}
    (answer,) = Policy(pipe, PolicyConfig(embodiment="arm", clip=True)).decide([(0, Robot(0).asks())])
    assert isinstance(answer, Answer)
    assert answer.out_of_range == ()
    assert np.abs(answer.actions).max() > 1e-3


def test_clipped_actions_are_those_that_were_carried_out() -> None:
    first, then = (Robot(seed).asks() for seed in (0, 1))
    served = policy("history", clip=True)
    served._low, served._high = np.zeros(2, np.float32), np.full(2, 0.1, np.float32)
    (given,) = decide(served, (0, first))
    (got,) = decide(served, (0, then))
    told = policy("history")
    decide(told, (0, first))
    (wanted,) = decide(told, (0, Asked(**{**vars(then), "executed": 4, "executed_actions": given})))
    np.testing.assert_allclose(got, wanted.clip(0, 0.1), atol=1e-5)


def test_execute_cuts_the_chunk() -> None:
    assert decide(policy(execute=3), (0, Robot(0).asks()))[0].shape == (3, 2)
    with pytest.raises(ConfigError, match="1 to 4"):
        policy(execute=5)
    with pytest.raises(ConfigError, match="give a multiple"):
        policy("causal", execute=3)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match="refuse, restart"):
        policy(gaps="ignore")
    with pytest.raises(ConfigError, match="embodiment"):
        policy(embodiment="leg")


def test_pictures_of_another_size_are_resized_as_the_data_were() -> None:
    wide = Asked(frames=(np.zeros((2, 40, 80, 3), np.uint8),), state=np.ones(2, np.float32))
    assert decide(policy(), (0, wide))[0].shape == (4, 2)


def test_a_warm_policy_is_as_new() -> None:
    cold, warm = policy("causal"), policy("causal")
    assert warm_up(warm, 3) > 0
    robot, twin = Robot(0), Robot(0)
    np.testing.assert_allclose(decide(cold, (0, robot.asks()))[0], decide(warm, (0, twin.asks()))[0], atol=1e-5)


@pytest.mark.parametrize("continuation", ["prefix", "guided"])
def test_an_answer_goes_on_from_what_the_robot_is_committed_to(continuation: str) -> None:
    served, robots = policy(continuation=continuation), [Robot(0), Robot(1)]
    first = decide(served, (0, robots[0].asks()), (1, robots[1].asks()))
    second = decide(served, (0, robots[0].asks(executed=1, committed=2)), (1, robots[1].asks(executed=1)))
    np.testing.assert_array_equal(second[0][:2], first[0][1:3])
    assert np.abs(second[1][:2] - first[1][1:3]).min() > 1e-4, "the other robot is committed to nothing"
    (answer,) = served.decide([(0, robots[0].asks(executed=3, committed=2))])
    assert isinstance(answer, ConfigError) and "committed is 2; the last answer has 1 actions" in str(answer)


def test_a_robot_may_bring_the_actions_that_it_is_committed_to() -> None:
    """Those that it will really carry out, though this server has given it none: it was started again, or failed before."""
    served, bound = policy(continuation="guided"), np.float32([[0.5, 0.25], [1.0, -1.0]])
    asks = Robot(0).asks(executed=3, committed=2, committed_actions=bound)
    (got,) = decide(served, (0, asks))
    np.testing.assert_array_equal(got[:2], bound)
