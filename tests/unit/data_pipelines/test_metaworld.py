import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.metaworld.episode import Recording
from data_pipelines.metaworld.simulator import choose_backend
from data_pipelines.metaworld.source import MetaWorldConfig
from data_pipelines.metaworld.tasks import GROUPS, PROMPTS, parse_tasks
from data_pipelines.workers import in_order
from wam_video.errors import ConfigError


def _can_draw() -> bool:
    if not all(importlib.util.find_spec(name) for name in ("metaworld", "mujoco")):
        return False
    code = "from data_pipelines.metaworld.simulator import choose_backend; choose_backend()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0


@pytest.fixture(scope="module")
def drawing() -> None:
    if not _can_draw():
        pytest.skip("Meta-World, or EGL and OSMesa, is missing")


def test_groups_hold_known_tasks_once() -> None:
    assert len(PROMPTS) == 50 == len(GROUPS["all"])
    assert len(GROUPS["mt10"]) == 10
    assert set(GROUPS["easy"]) < set(GROUPS["mt10"]) < set(PROMPTS)
    assert parse_tasks("reach,push-v3,reach") == ("reach-v3", "push-v3")
    assert parse_tasks("") == GROUPS["easy"]
    with pytest.raises(ConfigError, match="Did you mean 'reach-v3'"):
        parse_tasks("reech-v3")


def test_the_first_backend_that_draws_is_chosen_and_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert choose_backend(lambda name: "") == "egl"
    assert choose_backend(lambda name: "" if name == "osmesa" else "no display") == "osmesa"
    with pytest.raises(ConfigError, match="apt-get install libegl1"):
        choose_backend(lambda name: "no display")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert choose_backend(lambda name: "no display") == "glfw"


def test_frame_rates_that_do_not_divide_the_action_rate_are_refused() -> None:
    assert MetaWorldConfig(fps=10.0).weights["expert"] == 0.6
    for fps in (15.0, 80.0, 0.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="must be a multiple"):
            MetaWorldConfig(fps=fps)
    with pytest.raises(ConfigError, match="behaviour of source"):
        MetaWorldConfig(behaviours=("expart",))


@pytest.mark.parametrize(
    ("distances", "won", "outcome"), [([4, 3], True, "success"), ([4, 2], False, "near"), ([4, 3], False, "failure")]
)
def test_an_outcome_is_success_near_or_failure(distances: list[float], won: bool, outcome: str) -> None:
    none = np.zeros((1, 4), np.float32)
    recording = Recording(
        frames={},
        actions=none,
        state=none,
        reward=none[0],
        distances=np.array(distances, np.float32),
        succeeded=won,
        prompt="",
    )
    assert recording.outcome == outcome


def test_results_come_in_order_from_several_processes() -> None:
    assert list(in_order(abs, [-3, 2, -1, 0, 5], 2)) == [3, 2, 1, 0, 5] == list(in_order(abs, [-3, 2, -1, 0, 5], 1))


@pytest.mark.usefixtures("drawing")
def test_an_episode_depends_on_nothing_that_was_played_before() -> None:
    from data_pipelines.metaworld import MetaWorldSource

    options = {"episodes": 2, "image_size": 32, "max_steps": 6, "behaviours": "expert=1"}
    both = list(MetaWorldSource("metaworld:push,drawer-open", **options).episodes())
    for task in ("push-v3", "drawer-open-v3"):
        alone = list(MetaWorldSource(f"metaworld:{task}", **options).episodes())[::-1]
        same = [e for e in both if e.extra["task"] == task][::-1]
        for a, b in zip(alone, same, strict=True):
            assert a.episode_id == b.episode_id
            np.testing.assert_array_equal(a.actions, b.actions)
            np.testing.assert_array_equal(a.state, b.state)
            frames = [np.stack(list(e.views["corner4"].frames())) for e in (a, b)]
            np.testing.assert_array_equal(*frames)
            assert len(frames[0]) == 6 // 2 + 1


@pytest.mark.usefixtures("drawing")
def test_the_expert_succeeds_and_holding_still_does_not() -> None:
    from data_pipelines.metaworld import MetaWorldEnvironment

    world = MetaWorldEnvironment("reach", size=(48, 48))
    for act, expected in ((world.expert(np.random.default_rng(0)), True), (world.hold, False)):
        world.reset("reach-v3", [3])
        start = world.fingerprint()
        assert any(world.step(act()).success for _ in range(60)) is expected
        world.reset("reach-v3", [3])
        assert world.fingerprint() == start
    world.reset("reach-v3", [4])
    assert world.fingerprint() != start
    assert world.frames()["corner4"].shape == (48, 48, 3)
    assert world.frames()["corner4"].std() > 20  # neither black nor blank
    world.close()
