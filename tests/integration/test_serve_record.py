"""What robots lived through comes back as shards that training reads."""

from pathlib import Path

import numpy as np
import pytest

from tests.integration.serving import CAUSAL, serving, tiny_policy
from tests.integration.test_serve import Robot, url
from wam_video.cli.data import main as data
from wam_video.data.manifest import load_manifest
from wam_video.data.reader import decode_clip, read_sample
from wam_video.inference.client import Client
from wam_video.inference.server.record import Recorder


def test_sessions_become_shards(tmp_path: Path) -> None:
    policy, folder = tiny_policy(CAUSAL), tmp_path / "robots"
    with serving(policy, recorder=Recorder(folder, policy)) as server, Client(url(server)) as client:
        robot = Robot(0)
        heard = [client.infer(robot.sees())["actions"] for _ in range(4)]
        client.reset()
        for _ in range(3):
            client.infer(robot.sees())
        client.reset()
        client.infer(robot.sees(1))  # a single frame is no episode
    assert data(["verify", str(folder), "--no-checks"]) == 0
    manifest = load_manifest(folder)
    assert manifest.counts["total"]["episodes"] == 2
    assert [one.episode_id for one in manifest.skipped] == ["session-000002"]
    for shard in manifest.shards:
        for sample in shard.samples:
            clip = decode_clip(read_sample(folder, shard, sample))
            if sample.episode_id == "session-000000":
                assert clip.actions is not None and clip.video["front"].shape == (7, 16, 16, 3)
                np.testing.assert_array_equal(clip.actions, np.concatenate(heard[:3]))


def test_sparse_frames_are_no_recording(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy, folder = tiny_policy(), tmp_path / "robots"
    with serving(policy, recorder=Recorder(folder, policy)) as server, Client(url(server)) as client:
        robot = Robot(0)
        for _ in range(3):
            client.infer(robot.sees(1))
    assert not folder.exists()
