"""The server and its clients over real sockets: three dialects, isolation, limits, and what goes wrong."""

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.serving import CAUSAL, serving, tiny_policy
from wam_video.cli.serve import main
from wam_video.errors import ConfigError, DataError
from wam_video.inference.client import Client
from wam_video.inference.server.app import PolicyServer, check_exposed
from wam_video.inference.server.policy import Policy
from wam_video.inference.server.wire import pack, unpack
from wam_video.inference.server.worker import WorkerConfig
from wam_video.testing import tiny_pipeline

pytest.importorskip("websockets")
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

TOKEN = "correct-horse-battery"


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with serving(tiny_policy()) as one:
        yield one


def url(server: PolicyServer, path: str = "") -> str:
    return f"ws://127.0.0.1:{server.port}{path}"


def page(server: PolicyServer, path: str, token: str | None = None) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


class Robot:
    """Observations from a seed of its own."""

    def __init__(self, seed: int) -> None:
        self.rng, self.prompt = np.random.default_rng(seed), f"task {seed}"

    def sees(self, frames: int = 2, key: str = "observation/image") -> dict[str, Any]:
        picture = self.rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)
        return {key: picture, "observation/state": self.rng.normal(1, 0.5, 2), "prompt": self.prompt}


def lives(server: PolicyServer, seed: int, calls: int = 4, **options: Any) -> np.ndarray:
    """Return all actions that a robot hears."""
    robot = Robot(seed)
    with Client(url(server), **options) as client:
        return np.stack([client.infer(robot.sees())["actions"] for _ in range(calls)])


def slow(policy: Policy, seconds: float) -> threading.Event:
    """Let decisions take at least so long; the event says that one has begun."""
    decide, begun = policy.decide, threading.Event()

    def late(asked: Any) -> Any:
        begun.set()
        time.sleep(seconds)
        return decide(asked)

    policy.decide = late  # type: ignore[method-assign]
    return begun


# Dialects


def test_our_client_learns_what_it_needs_and_acts(server: PolicyServer) -> None:
    with Client(url(server)) as client:
        assert (client.metadata["embodiment"], client.metadata["action_dim"]) == ("arm", 2)
        assert "observation/front" in client.metadata["images"]["front"]
        observation = Robot(0).sees()
        before = dict(observation)
        reply = client.infer(observation)
        assert observation.keys() == before.keys()
        assert reply["actions"].shape == (4, 2) and reply["actions"].dtype == np.float32
        assert reply["memory"] == "new"
        assert client.infer(observation)["server_timing"]["prev_total_ms"] > 0
        client.reset()
        np.testing.assert_array_equal(client.infer(observation)["actions"], reply["actions"])


def test_an_openpi_client_that_says_no_endpoint(server: PolicyServer) -> None:
    policy = pytest.importorskip("openpi_client.websocket_client_policy")
    client = policy.WebsocketClientPolicy("127.0.0.1", server.port)
    assert client.get_server_metadata()["action_horizon"] == 4
    reply = client.infer(Robot(0).sees(1))
    client.reset()
    assert reply["actions"].shape == (4, 2)
    with pytest.raises(RuntimeError, match=r"error [0-9a-f]{8}: request holds view"):
        client.infer({"observation/state": np.zeros(2)})
    assert client.infer(Robot(0).sees(1))["actions"].shape == (4, 2)  # the connection goes on


@pytest.mark.parametrize("dialect", ["roboarena", "dreamzero"])
def test_roboarenas_and_dreamzeros_flow(server: PolicyServer, dialect: str) -> None:
    """Metadata of six keys; one frame first and then several; `reset` is answered by a text frame."""
    with connect(url(server, f"/{dialect}"), compression=None) as link:
        assert len(unpack(link.recv())) == 6
        robot = Robot(0)
        for frames in (1, 4, 4):
            request = robot.sees(frames, "observation/exterior_image_0_left") | {"endpoint": "infer", "session_id": "a"}
            request["observation/wrist_image_left"] = request["observation/exterior_image_0_left"]
            link.send(pack(request))
            reply = unpack(link.recv())
            actions = reply if dialect == "dreamzero" else reply["actions"]
            assert isinstance(actions, np.ndarray) and actions.shape == (4, 2)
        link.send(pack({"endpoint": "reset", "session_id": "a"}))
        assert link.recv() == "reset successful"


def test_an_unknown_path_is_told(server: PolicyServer) -> None:
    with pytest.raises(DataError, match="path is '/lerobot'"):
        Client(url(server, "/lerobot"))


# Isolation


@pytest.mark.parametrize("model", [{}, CAUSAL])
def test_many_robots_at_once_hear_what_each_hears_alone(model: dict[str, Any]) -> None:
    alone = []
    for seed in range(4):
        with serving(tiny_policy(model)) as server:
            alone.append(lives(server, seed))
    worker = WorkerConfig(batch_window_s=0.05, max_batch=4)
    with serving(tiny_policy(model), worker=worker) as server, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: lives(server, seed), range(4)))
        batches = server.metrics.text()
    np.testing.assert_allclose(np.stack(together), np.stack(alone), atol=1e-5)
    assert 'batch_size_bucket{le="1.0"} 16' not in batches, "nobody met anybody"
    assert np.abs(np.stack(alone)[0] - np.stack(alone)[1]).max() > 1e-3


def test_a_session_goes_on_after_its_connection() -> None:
    with serving(tiny_policy(CAUSAL)) as server:
        wanted = lives(server, 3, calls=2)
        robot, heard = Robot(3), []
        for memory in ("new", "continued"):
            with Client(url(server), session_id="robot-3") as client:
                reply = client.infer(robot.sees())
                heard.append(reply["actions"])
                assert reply["memory"] == memory
        np.testing.assert_allclose(np.stack(heard), wanted, atol=1e-5)


def test_an_id_is_one_connections_at_a_time(server: PolicyServer) -> None:
    with Client(url(server), session_id="a") as one, Client(url(server), session_id="a") as other:
        one.infer(Robot(0).sees())
        with pytest.raises(DataError, match="in use by another connection"):
            other.infer(Robot(1).sees())
        with pytest.raises(DataError, match="in use by another connection"):
            other.reset()


def test_resets_of_one_robot_do_not_touch_another() -> None:
    with serving(tiny_policy(CAUSAL)) as server:
        wanted = lives(server, 0, calls=6)
        stop = threading.Event()

        def unsteady() -> None:
            robot = Robot(1)
            with Client(url(server)) as client:
                while not stop.is_set():
                    client.infer(robot.sees())
                    client.reset()

        with ThreadPoolExecutor(1) as pool:
            noise = pool.submit(unsteady)
            heard = lives(server, 0, calls=6)
            stop.set()
            noise.result(20)
    np.testing.assert_allclose(heard, wanted, atol=1e-5)


def test_who_goes_in_the_middle_of_a_decision_leaves_a_clean_row() -> None:
    policy = tiny_policy(CAUSAL, max_sessions=1)
    with serving(tiny_policy(CAUSAL)) as server:
        wanted = lives(server, 0)
    begun = slow(policy, 0.2)
    with serving(policy) as server:
        link = connect(url(server), compression=None)
        link.recv()
        link.send(pack(Robot(9).sees()))
        assert begun.wait(10)
        link.socket.shutdown(socket.SHUT_RDWR)  # no good-bye
        deadline = time.monotonic() + 10
        while "wam_video_connections 0" not in page(server, "/metrics") and time.monotonic() < deadline:
            time.sleep(0.05)
        np.testing.assert_allclose(lives(server, 0), wanted, atol=1e-5)


# What is refused


def test_without_the_token_nobody_gets_in() -> None:
    with serving(tiny_policy(), {"token": TOKEN}) as server:
        for wrong in (None, TOKEN + "x", TOKEN[:-1]):
            with pytest.raises(ConfigError, match="401"):
                Client(url(server), token=wrong)
        assert lives(server, 0, token=TOKEN).shape == (4, 4, 2)
        with connect(url(server), additional_headers={"Authorization": f"Api-Key {TOKEN}"}) as link:  # openpi's header
            assert unpack(link.recv())["server"] == "wam_video"
        assert page(server, "/healthz") == "OK\n"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            page(server, "/metrics")
        assert 'refused_total{reason="token"} 4' in page(server, "/metrics", TOKEN)


def test_a_web_page_in_a_browser_gets_no_answer(server: PolicyServer) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        connect(url(server), origin="http://evil.example")


@pytest.mark.parametrize(
    ("host", "token", "words"),
    [("0.0.0.0", None, "--token-file"), ("::", None, "--token-file"), ("10.0.0.1", "short", "8 to 1024")],
)
def test_strangers_are_not_served_by_mistake(host: str, token: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_exposed(host, token)
    for fine in ("127.0.0.1", "::1", "localhost"):
        check_exposed(fine, None)


def test_a_large_message_ends_the_connection_and_nothing_else() -> None:
    with serving(tiny_policy(), {"max_bytes": 4096}) as server:
        with Client(url(server)) as client, pytest.raises(ConfigError, match="1009"):
            client.infer({"observation/image": np.zeros((64, 64, 3), np.uint8)})
        assert lives(server, 0).shape == (4, 4, 2)


def test_there_are_so_many_sessions_and_no_more() -> None:
    with serving(tiny_policy(max_sessions=1)) as server, Client(url(server)) as one:
        one.infer(Robot(0).sees())
        with Client(url(server)) as two:
            with pytest.raises(DataError, match="all 1 sessions are in use"):
                two.infer(Robot(1).sees())
            one.close()
            time.sleep(0.3)
            assert two.infer(Robot(1).sees())["memory"] == "new"


def test_who_asks_for_nonsense_takes_nobodys_place() -> None:
    with serving(tiny_policy(max_sessions=1)) as server, connect(url(server), compression=None) as link:
        link.recv()
        link.send(pack({"state": "up"}))
        assert str(link.recv()).startswith("error ")
        assert lives(server, 0, calls=1).shape == (1, 4, 2)


def test_idle_sessions_are_forgotten() -> None:
    with serving(tiny_policy(CAUSAL), idle_s=0.2) as server, Client(url(server)) as client:
        robot = Robot(0)
        assert [client.infer(robot.sees())["memory"] for _ in range(2)] == ["new", "continued"]
        time.sleep(0.8)
        assert client.infer(robot.sees())["memory"] == "new"
        assert "evicted_total 1" in page(server, "/metrics")


def test_who_asks_too_often_waits() -> None:
    with serving(tiny_policy(), max_rate=1.0) as server:
        began = time.monotonic()
        lives(server, 0, calls=3)
        assert time.monotonic() - began > 1.5
        assert server.metrics.counted("throttled_total") > 0


@pytest.mark.parametrize(
    "message", ["hello", b"", b"\xc1", pack([1]), pack({"endpoint": "kill"}), pack({"a": np.zeros(3)})]
)
def test_nonsense_is_answered_by_a_line_with_an_id(server: PolicyServer, message: Any) -> None:
    with connect(url(server), compression=None) as link:
        link.recv()
        for _ in range(2):  # the connection goes on
            link.send(message)
            answer = link.recv()
            assert isinstance(answer, str) and answer.startswith("error ") and "\n" not in answer


def test_our_own_failures_are_not_told(server: PolicyServer, caplog: pytest.LogCaptureFixture) -> None:
    def broken(asked: Any) -> Any:
        raise RuntimeError("secret path")

    decide, server._policy.decide = server._policy.decide, broken  # type: ignore[method-assign]
    with Client(url(server)) as client:
        with pytest.raises(DataError, match=r"error [0-9a-f]{8}: the server failed; its log") as caught:
            client.infer(Robot(0).sees())
        assert "secret" not in str(caught.value)
        number = str(caught.value).split("error ")[1][:8]
        assert any(number in record.getMessage() for record in caplog.records)
        server._policy.decide = decide  # type: ignore[method-assign]
        assert client.infer(Robot(0).sees())["actions"].shape == (4, 2)


def test_the_event_loop_is_free_while_a_decision_is_made() -> None:
    policy = tiny_policy()
    begun = slow(policy, 1.0)
    with serving(policy) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lives, server, 0, 1)
        assert begun.wait(10)
        before = time.monotonic()
        assert page(server, "/healthz") == "OK\n"
        assert time.monotonic() - before < 0.7
        assert asked.result(20).shape == (1, 4, 2)


def test_a_stop_answers_what_was_asked() -> None:
    policy = tiny_policy()
    begun = slow(policy, 0.5)
    with ThreadPoolExecutor(1) as pool:
        with serving(policy) as server:
            asked = pool.submit(lives, server, 0, 1)
            assert begun.wait(10)
        assert asked.result(20).shape == (1, 4, 2)
    with pytest.raises(ConfigError, match="can't be reached"):
        Client(url(server), timeout_s=2)


# The command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--token", "a", "--token-file", "b"], "give one"),
        (["--token-file", "nowhere"], "can't be read"),
        (["--max-batch", "0"], "--max-batch is 0"),
        (["--map", "front"], "KEY=VALUE"),
        (["--dialect", "lerobot"], "--dialect is 'lerobot'; allowed: dreamzero, openpi, roboarena"),
        (["--continuation", "none"], "continuation is 'none'"),
        (["--path", "short"], "policy_path is 'short'"),
        (["--steps", "0"], "num_inference_steps is 0"),
        (["--gaps", "maybe"], "--gaps is 'maybe'"),
        (["--action-space", "joints"], "--action-space is 'joints'"),
    ],
)
def test_a_wrong_command_says_so_before_anything_is_loaded(options: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        main(["--model", "nowhere", *options])


def test_the_command_serves_until_sigterm(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    command = [
        sys.executable,
        "-m",
        "wam_video.cli.serve",
        "--model",
        str(tmp_path / "model"),
        "--embodiment",
        "arm",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serving" in line or "error" in line)
        with Client(line.split()[-1]) as client:
            assert client.infer(Robot(0).sees())["actions"].shape == (4, 2)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0, rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait(10)


def test_the_client_needs_no_torch() -> None:
    code = "import sys; import wam_video.inference.client; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
