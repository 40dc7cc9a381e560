"""What RoboArena's and DreamZero's own test clients say and expect, message for message, for an episode of 200 control steps.

Their code can't be installed, so the flows are written from it: the metadata become a config of six fields, every request names its
endpoint, DreamZero's history has four frames a camera and its answer is a bare array, a reset is answered by a text frame.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration.serving import serving
from wam_video.data.normalize import stats_hash
from wam_video.data.processor import WAMProcessor
from wam_video.inference.client import Client
from wam_video.inference.pipeline import WAMPipeline
from wam_video.inference.server.app import PolicyServer
from wam_video.inference.server.policy import Policy, PolicyConfig
from wam_video.inference.server.wire import pack, unpack
from wam_video.testing import TinyConfig, fake_stats, tiny_pipeline, tiny_transformer

pytest.importorskip("websockets")
from websockets.sync.client import connect

STEPS, HORIZON, RATE = 200, 24, 15.0
VIEWS = ("exterior_1", "exterior_2", "wrist")


@dataclass(frozen=True, kw_only=True)
class Droid(TinyConfig):
    """A DROID arm: seven joints and a gripper, two cameras outside and one on the wrist."""

    views: int = 3
    action_horizon: int = HORIZON
    num_context_frames: int | None = 4

    @property
    def bodies(self) -> tuple[tuple[str, int, int], ...]:
        return (("droid", 8, 8),)


def droid(**options: Any) -> Policy:
    """Return a random policy that reads four frames of each camera, eight control steps apart, as DreamZero's clients send."""
    config, like = Droid(), tiny_pipeline()
    body = {"name": "droid", "action_dim": 8, "state_dim": 8, "views": list(VIEWS), "fps": RATE, "action_rate": RATE}
    stats, window = fake_stats(config), config.window | {"context_stride_s": 8 / RATE, "future_stride_s": 8 / RATE}
    processor = WAMProcessor(embodiments=[body], stats=stats, window=window, stats_hash=stats_hash(stats))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = tiny_transformer(config, like.transformer.config["in_channels"]).eval()
    pipe = WAMPipeline(
        transformer=transformer,
        vae=like.vae,
        text_encoder=like.text_encoder,
        tokenizer=like.tokenizer,
        scheduler=like.scheduler,
        processor=processor,
    )
    return Policy(pipe, PolicyConfig(max_sessions=4, **options))


@dataclass
class PolicyServerConfig:
    """RoboArena's, which its clients make of the metadata: a key too many and they fail."""

    image_resolution: tuple[int, int] | None
    needs_wrist_camera: bool
    n_external_cameras: int
    needs_stereo_camera: bool
    needs_session_id: bool
    action_space: str


class Arm:
    """What a DROID robot observes, from a seed of its own."""

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        self.rng, self.size, self.session = np.random.default_rng(seed), size, str(uuid.UUID(int=seed))

    def observation(self, frames: int | None) -> dict[str, Any]:
        shape = (*((frames,) if frames else ()), *self.size, 3)
        names = ("exterior_image_0_left", "exterior_image_1_left", "wrist_image_left")
        pictures = {f"observation/{name}": self.rng.integers(0, 256, shape, dtype=np.uint8) for name in names}
        return {
            **pictures,
            "observation/joint_position": self.rng.normal(1, 0.3, 7),
            "observation/cartesian_position": np.zeros(6),
            "observation/gripper_position": np.ones(1),
            "prompt": "pick up the marker",
            "session_id": self.session,
        }


@pytest.fixture(scope="module")
def whole() -> Iterator[PolicyServer]:
    with serving(droid(), dialect="dreamzero", max_rate=1e6) as server:
        yield server


def enter(server: PolicyServer, path: str = "") -> tuple[Any, PolicyServerConfig]:
    link = connect(
        f"ws://127.0.0.1:{server.port}{path}", compression=None, max_size=None, ping_interval=60, ping_timeout=600
    )
    return link, PolicyServerConfig(**unpack(link.recv()))


def leave(link: Any, arm: Arm) -> None:
    link.send(pack({"session_id": arm.session, "endpoint": "reset"}))
    assert link.recv() == "reset successful"
    link.close()


def check(actions: Any, steps: int = HORIZON) -> None:
    assert isinstance(actions, np.ndarray) and actions.shape == (steps, 8) and actions.dtype == np.float32
    assert np.isfinite(actions).all()


def test_roboarenas_client_carries_out_every_chunk_for_200_steps(whole: PolicyServer) -> None:
    link, config = enter(whole, "/roboarena")
    assert config.n_external_cameras == 2 and config.needs_wrist_camera and config.action_space == "joint_position"
    assert config.image_resolution is not None
    arm, done = Arm(0, tuple(config.image_resolution)), 0
    while done < STEPS:
        link.send(pack({**arm.observation(None), "endpoint": "infer"}))
        reply = unpack(link.recv())
        assert isinstance(reply, dict)
        check(reply["actions"])
        done += len(reply["actions"])
    leave(link, arm)
    assert whole.metrics.counted("errors_total", "request") == 0


def test_dreamzeros_test_client_sends_a_frame_and_then_four_for_200_steps(whole: PolicyServer) -> None:
    """test_client_AR.py: frame 0, then the frames 23, 16, 8 and 0 steps back, every 24 steps; the answer is an array."""
    link, config = enter(whole)
    assert config.needs_session_id and config.image_resolution is not None
    arm, done, heard = Arm(1, tuple(config.image_resolution)), 0, []
    for frames in (None, *[4] * (STEPS // HORIZON)):
        link.send(pack({**arm.observation(frames), "endpoint": "infer"}))
        actions = unpack(link.recv())
        check(actions)
        heard.append(actions)
        done += len(actions)
    assert done >= STEPS and np.abs(heard[1] - heard[2]).max() > 1e-4
    leave(link, arm)


def test_dreamzeros_simulator_client_sends_single_frames_for_200_steps() -> None:
    """run_sim_eval.py: one frame a call, every eight steps; the server keeps the frames before, and nothing counts as missing."""
    with serving(droid(execute=8), dialect="dreamzero", max_rate=1e6) as server:
        link, config = enter(server)
        assert config.image_resolution is not None
        arm = Arm(2, tuple(config.image_resolution))
        for _ in range(STEPS // 8):
            link.send(pack({**arm.observation(None), "endpoint": "infer"}))
            check(unpack(link.recv()), 8)
        leave(link, arm)
        assert server.metrics.counted("restarted_total") == 0


def test_openpis_client_acts_for_200_steps() -> None:
    """Its package is not among the dependencies: `pip install --no-deps openpi-client` before it."""
    package = pytest.importorskip("openpi_client.websocket_client_policy")
    with serving(droid(execute=10), max_rate=1e6) as server:
        client, arm, done = package.WebsocketClientPolicy("127.0.0.1", server.port), Arm(3, (16, 16)), 0
        assert client.get_server_metadata()["action_horizon"] == 10
        while done < STEPS:
            seen = arm.observation(None)
            seen["observation/exterior_image_2_left"] = seen.pop("observation/exterior_image_0_left")  # numbered from 1
            del seen["session_id"]
            actions = client.infer(seen)["actions"]
            assert actions.shape == (10, 8)
            done += len(actions)
        client.reset()


# Long decisions, and clients that die


def slowly(policy: Policy, seconds: float) -> Policy:
    decide = policy.decide

    def late(asked: Any) -> Any:
        time.sleep(seconds)
        return decide(asked)

    policy.decide = late  # type: ignore[method-assign]
    return policy


def waits(seconds: float, **keepalive: float) -> None:
    with serving(slowly(droid(), seconds), dialect="dreamzero") as server:
        url = f"ws://127.0.0.1:{server.port}"
        with connect(url, compression=None, max_size=None, **keepalive) as link:  # type: ignore[arg-type]
            link.recv()
            link.send(pack({**Arm(4, (16, 16)).observation(None), "endpoint": "infer"}))
            check(unpack(link.recv(timeout=seconds + 60)))


def test_pings_are_answered_while_a_decision_is_made() -> None:
    waits(2.5, ping_interval=0.3, ping_timeout=1.2)


@pytest.mark.long
def test_a_decision_of_fifty_seconds_does_not_drop_the_client() -> None:
    waits(50.0)  # the package's own keepalive: a ping every 20 s, 20 s for its answer


KILLED = """
import sys
import numpy as np
from wam_video.inference.client import Client
client = Client(sys.argv[1])
print("in", flush=True)
front = np.zeros((4, 16, 16, 3), np.uint8)
seen = {"observation/exterior_1": front, "observation/exterior_2": front, "observation/wrist": front}
while True:
    client.infer({**seen, "observation/state": np.ones(8), "prompt": "a"})
"""


def test_who_is_killed_in_the_middle_of_a_request_is_not_noticed_by_others() -> None:
    def lives(server: PolicyServer) -> np.ndarray:
        arm = Arm(5, (16, 16))
        with Client(f"ws://127.0.0.1:{server.port}/roboarena", timeout_s=120) as client:
            return np.stack([client.infer(arm.observation(None))["actions"] for _ in range(8)])

    with serving(droid()) as server:
        alone = lives(server)
    with serving(slowly(droid(), 0.1)) as server, ThreadPoolExecutor(1) as pool:
        url = f"ws://127.0.0.1:{server.port}"
        victims = [
            subprocess.Popen([sys.executable, "-c", KILLED, url], stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        try:
            for victim in victims:
                assert victim.stdout is not None and victim.stdout.readline() == "in\n"
            heard = pool.submit(lives, server)
            for victim in victims:
                time.sleep(0.25)
                os.kill(victim.pid, signal.SIGKILL)
            np.testing.assert_allclose(heard.result(120), alone, atol=1e-5)
        finally:
            for victim in victims:
                victim.kill()
                victim.wait(10)
        end = time.monotonic() + 10
        while len(server._table) > 1 and time.monotonic() < end:
            time.sleep(0.05)
        names = [session.name for session in server._table._sessions]
        assert names == [Arm(5, (16, 16)).session], "their rows are free again; who brought an id may come back"
        assert server.metrics.counted("errors_total", "internal") == 0
