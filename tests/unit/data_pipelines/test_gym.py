"""An environment that speaks in batches of tensors, as ManiSkill's do, behind a wrapper of its own."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.gym import GymEnvironment
from wam_video.errors import ConfigError

gymnasium = pytest.importorskip("gymnasium")

MAPPING = """
embodiment: arm
rate: 20
views: {front: sensor_data.base_camera.rgb}
state: agent.qpos
success: info.success
wrappers: ["data_pipelines_test_gym:Single"]
"""


class Batched(gymnasium.Env):
    """One world with a leading axis of one everywhere; the square is where the summed actions put it."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space = gymnasium.spaces.Dict()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.place = 0.0
        return self._look(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        self.place += float(action[0])
        no = torch.zeros(1, dtype=torch.bool)
        return self._look(), torch.tensor([0.5]), no, no, {"success": torch.tensor([self.place > 1.5])}

    def _look(self) -> dict[str, Any]:
        picture = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
        picture[0, 0, int(self.place)] = 255
        return {"sensor_data": {"base_camera": {"rgb": picture}}, "agent": {"qpos": torch.tensor([[self.place]])}}


class Single(gymnasium.Wrapper):
    """Takes the leading axis off."""

    def reset(self, **given: Any) -> tuple[Any, Any]:
        return _single(self.env.reset(**given))

    def step(self, action: np.ndarray) -> Any:
        return _single(self.env.step(action))


def _single(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _single(part) for key, part in value.items()}
    return tuple(map(_single, value)) if isinstance(value, tuple) else value[0].numpy()


@pytest.fixture
def mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register the world; return the file that says where things are."""
    monkeypatch.setitem(sys.modules, "data_pipelines_test_gym", sys.modules[__name__])
    if "test/Batched-v0" not in gymnasium.registry:
        gymnasium.register("test/Batched-v0", entry_point=Batched)
    (tmp_path / "map.yaml").write_text(MAPPING)
    return tmp_path / "map.yaml"


def test_a_wrapper_makes_a_batched_environment_one_like_others(mapping: Path) -> None:
    world = GymEnvironment("test/Batched-v0", size=(16, 16), mapping=str(mapping))
    world.reset(world.tasks[0], [0])
    first = world.step(np.array([1.0], np.float32))
    assert (first.success, first.reward, world.state().tolist()) == (False, 0.5, [1.0])
    assert world.frames()["front"][0, 1].tolist() == [255, 255, 255]
    assert world.step(np.array([1.0], np.float32)).success


@pytest.mark.parametrize(
    ("wrapper", "message"), [("nowhere:Single", "can't be imported"), ("data_pipelines_test_gym:Twin", "Twin")]
)
def test_a_wrapper_that_is_not_there_is_named(mapping: Path, wrapper: str, message: str) -> None:
    mapping.write_text(MAPPING.replace("data_pipelines_test_gym:Single", wrapper))
    with pytest.raises(ConfigError, match=message):
        GymEnvironment("test/Batched-v0", mapping=str(mapping))


def test_without_its_wrapper_the_picture_is_refused(mapping: Path) -> None:
    mapping.write_text(MAPPING.replace('["data_pipelines_test_gym:Single"]', "[]"))
    with pytest.raises(ConfigError, match="it must be uint8 'h w 3'"):
        GymEnvironment("test/Batched-v0", mapping=str(mapping))
