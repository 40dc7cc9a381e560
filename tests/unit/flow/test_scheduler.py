"""The settings of a checkpoint: saved, read back, and refused where they make no sense."""

from pathlib import Path
from typing import Any

import pytest

from wam_video.errors import ConfigError
from wam_video.flow.scheduler import WAMScheduler, guidance_scales


def test_settings_come_back_as_they_were_saved(tmp_path: Path) -> None:
    settings = {
        "num_inference_steps": 12,
        "solver": "heun",
        "shift_video": 3.0,
        "action_lead": 2.0,
        "guidance_scale": {"video": 2.0},
        "policy_path": "absent",
    }
    WAMScheduler(**settings).save_pretrained(tmp_path)
    loaded = WAMScheduler.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in settings} == settings
    assert loaded.path().num_inference_steps == 12
    assert loaded.path(4).num_inference_steps == 4
    assert loaded.path().shift_video == 3.0
    assert loaded.path().action_lead == 2.0


def test_a_scale_left_out_is_none() -> None:
    assert guidance_scales(2) == (2.0, 2.0)
    assert guidance_scales({"actions": 3}) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"solver": "rk45"}, "solver is 'rk45'; allowed: ab2, euler, heun"),
        ({"shift_video": 0.0}, "shift_video is 0.0"),
        ({"shift_action": -1.0}, "shift_action is -1.0"),
        ({"action_lead": 0.5}, "action_lead is 0.5"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": {"vdieo": 2.0}}, "Did you mean 'video'"),
        ({"policy_path": "diagonal"}, "policy_path is 'diagonal'; allowed: absent, joint, unknown"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WAMScheduler(**settings)
