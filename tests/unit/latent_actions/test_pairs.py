from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.latent_actions.square import episode
from wam_video.data.manifest import load_manifest
from wam_video.errors import ConfigError, DataError
from wam_video.latent_actions.networks import LatentModelConfig
from wam_video.latent_actions.pairs import Body, inputs, load_pairs, mean_actions

pytest.importorskip("cv2")


def test_means_are_over_the_actions_that_start_within_the_interval() -> None:
    actions = np.arange(8, dtype=np.float32)[:, None]
    found = mean_actions(actions, 20.0, np.array([0.0, 0.1, 0.35]), 0.1)
    np.testing.assert_allclose(found, [[0.5], [2.5], [np.nan]])
    rare = mean_actions(actions[:2], 5.0, np.array([0.0, 0.1, 0.2]), 0.1)
    np.testing.assert_allclose(rare, [[0], [0], [1]], err_msg="the action under way")
    assert mean_actions(actions, 10.0, np.array([0.7, 0.8]), 0.1)[:, 0].tolist()[0] == 7


def test_flow_says_where_the_square_goes_and_how_far() -> None:
    frames = next(iter([np.stack(list(episode(1).views["top"].frames()))]))
    moves = episode(1).actions
    config = LatentModelConfig(side=32)
    flow = torch.atanh(inputs(frames[:-1], frames[1:], config)) * 0.05 * 32
    moving = flow.norm(dim=1) > 0.3
    for row in range(len(moves)):
        if np.abs(moves[row]).max() == 0:
            assert not moving[row].any()
            continue
        mean = flow[row][:, moving[row]].mean(dim=1).numpy()
        assert np.dot(mean, moves[row]) > 0.5 * np.linalg.norm(mean) * np.linalg.norm(moves[row])


def test_pairs_stand_beside_the_actions_between_their_frames(squares: Path) -> None:
    manifest = load_manifest(squares)
    body = Body.of(manifest)
    config = LatentModelConfig(method="vae", dim=4, side=32, interval_s=0.2)
    pairs = load_pairs(squares, body.samples(manifest, "train"), body, config, 40)
    assert len(pairs) == 40
    first, second = pairs.kept[:, :3].float(), pairs.kept[:, 3:].float()

    def centre(frames: torch.Tensor) -> torch.Tensor:
        weight = (frames[:, 0] > 120).float() + (frames[:, 2] > 120).float()
        places = torch.arange(32.0)
        total = weight.sum((1, 2))
        return torch.stack([(weight.sum(1) * places).sum(1) / total, (weight.sum(2) * places).sum(1) / total], dim=1)

    torch.testing.assert_close(centre(second) - centre(first), 2 * pairs.actions, rtol=0, atol=0.5)


def test_what_does_not_fit_is_refused(squares: Path) -> None:
    manifest = load_manifest(squares)
    body = Body.of(manifest)
    for seconds in (0.15, 0.01):
        with pytest.raises(ConfigError, match=r"multiples of 0\.1"):
            body.step(seconds)
    assert body.step(0.3) == 3
    with pytest.raises(ConfigError, match=r"cube.*allowed: square"):
        Body.of(manifest, "cube")
    with pytest.raises(ConfigError, match="Did you mean 'top'"):
        Body.of(manifest, "", "tap")
    with pytest.raises(DataError, match="apart"):
        load_pairs(squares, body.samples(manifest, "train"), body, LatentModelConfig(interval_s=5.0), 40)
