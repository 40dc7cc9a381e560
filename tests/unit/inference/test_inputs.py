"""A request that can't be carried out is one line that says what, the value, what is allowed."""

from typing import Any

import numpy as np
import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.inference.pipeline import WAMPipeline
from wam_video.testing import tiny_pipeline

FRAMES = np.zeros((1, 2, 16, 16, 3), np.uint8)
GOOD: dict[str, Any] = {"video": FRAMES, "embodiment": "arm"}
TWO = {"video": np.zeros((2, 1, 2, 16, 16, 3), np.uint8), "embodiment": ["arm", "hand"]}


@pytest.fixture(scope="module")
def pipeline() -> WAMPipeline:
    pipeline = tiny_pipeline(action_free=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def chunk(steps: int = 4, width: int = 2) -> np.ndarray:
    return np.zeros((steps, width), np.float32)


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("polcy", {}, "mode is 'polcy'; allowed: .* Did you mean 'policy'"),
        ("policy", {"embodiment": "amr"}, "embodiment is 'amr'; allowed: arm, clips, hand. Did you mean 'arm'"),
        ("policy", {"embodiment": None}, "embodiment is missing; this model knows: arm, hand, clips"),
        ("policy", {"embodiment": ["arm", "arm"]}, "embodiment has 2 entries for 1 samples"),
        ("policy", {"prompt": ["a", "b"]}, "prompt has 2 entries for 1 samples"),
        ("policy", {"embodiment": "clips"}, "'clips' has no actions; allowed for it: mode 'video'"),
        ("forward", {}, "actions are missing; mode 'forward' needs 4"),
        ("forward", {"actions": chunk(3)}, "actions have 3 steps; allowed: exactly 4"),
        ("forward", {"actions": chunk(5)}, "actions have 5 steps; allowed: exactly 4"),
        ("forward", {"actions": chunk(4, 7)}, "actions is 7 wide; embodiment 'arm' has 2"),
        ("forward", {"actions": chunk() * np.nan}, "not finite"),
        ("forward", {"actions": "left"}, "actions is no array of numbers"),
        ("forward", {"actions": np.zeros((2, 4, 2))}, "actions is 2 rows .* for 1 samples"),
        ("inverse", {"actions": chunk(), "video": FRAMES.repeat(2, axis=1)}, "mode 'inverse' generates them"),
        ("video", {"actions": chunk()}, "mode 'video' does not read any"),
        ("video", {"committed_actions": chunk(1)}, "mode 'video' generates no actions"),
        ("policy", {"committed_actions": chunk(4)}, "committed_actions has 4 steps; allowed: fewer than 4"),
        ("policy", {"state": np.zeros(3)}, "state is 3 wide; embodiment 'arm' has 2"),
        (
            "inverse",
            {},
            "video has 2 frames; mode 'inverse' reads 2 context frames and 2 future frames .* allowed 3 to 4",
        ),
        ("policy", {"video": FRAMES.repeat(2, axis=1)}, "video has 4 frames; mode 'policy' reads 2 .* allowed 1 to 2"),
        ("policy", {"video": FRAMES.repeat(2, axis=0)}, "video has 2 views; embodiment 'arm' has 1: front"),
        ("policy", {"video": FRAMES[0]}, "video is uint8 of shape"),
        ("policy", {"video": FRAMES.astype(np.int64)}, "video is of type int64"),
        ("policy", {"video": np.full((1, 2, 3, 16, 16), 255.0)}, "video as floats lies in 255.0..255.0"),
        ("policy", {"solver": "rk45"}, "solver is 'rk45'"),
        ("policy", {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("policy", {"guidance_scale": {"sound": 2}}, "guidance_scale key is 'sound'"),
        ("policy", {"policy_path": "none"}, "policy_path is 'none'"),
        ("video", {"policy_path": "absent"}, "policy_path is given, but the mode is 'video'"),
        ("policy", {"generator": [1, 2]}, "generator is a list of 2 for 1 samples"),
        ("policy", {"generator": [1.5]}, "generator is 1.5"),
        ("policy", {"output_type": "pil"}, "output_type is 'pil'"),
        ("policy", {"prompt_embeds": torch.zeros(3, 4, 16)}, "prompt_embeds is of shape"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    pipeline: WAMPipeline, mode: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        pipeline(mode, **(GOOD | changes))
    assert "\n" not in str(caught.value)


def test_a_batch_of_two_bodies_takes_the_widest_array_or_a_list(pipeline: WAMPipeline) -> None:
    rng = np.random.default_rng(0)
    arm, hand = rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    padded = np.stack([np.pad(arm, ((0, 0), (0, 3)), constant_values=99), hand])
    as_list = pipeline("forward", **TWO, actions=[arm, hand], generator=0).video
    np.testing.assert_array_equal(as_list, pipeline("forward", **TWO, actions=padded, generator=0).video)
    with pytest.raises(ConfigError, match="5 wide; embodiment 'arm' has 2"):
        pipeline("forward", **TWO, actions=[hand, hand])


def test_the_embodiment_may_be_left_out_only_where_there_is_one() -> None:
    pipeline = tiny_pipeline()
    config = dict(pipeline.processor.config)
    only = type(pipeline.processor)(
        [config["embodiments"][0]], {"arm": config["stats"]["arm"]}, window=config["window"]
    )
    pipeline.processor = only
    pipeline.set_progress_bar_config(disable=True)
    single = pipeline.transformer.__class__.from_config(
        {**pipeline.transformer.config, "embodiments": pipeline.transformer.config.embodiments[:1]}
    )
    pipeline.transformer = single.eval()
    assert pipeline("policy", FRAMES, generator=0).actions.shape == (1, 4, 2)
