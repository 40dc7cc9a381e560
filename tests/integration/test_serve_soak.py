"""A server for long and for many: nobody hears another's actions, nothing grows, and who misbehaves is alone with it."""

import gc
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.serving import CAUSAL, serving, tiny_policy
from wam_video.errors import ConfigError, DataError
from wam_video.inference.chunk_player import PlayConfig
from wam_video.inference.client import Client
from wam_video.inference.real_time import RealTimePolicy, ask_client
from wam_video.inference.server.app import PolicyServer
from wam_video.inference.server.wire import pack
from wam_video.inference.server.worker import WorkerConfig

pytest.importorskip("websockets")
from websockets.sync.client import connect


def sees(seed: int, turn: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, turn])
    picture = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    return {"observation/image": picture, "observation/state": rng.normal(1, 0.5, 2), "prompt": f"task {seed}"}


def lives(server: PolicyServer, seed: int, turns: int) -> np.ndarray:
    with Client(f"ws://127.0.0.1:{server.port}", timeout_s=300) as client:
        return np.stack([client.infer(sees(seed, turn))["actions"] for turn in range(turns)])


def until(check: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.02)
    return check()


def resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def soak(robots: int, seconds: float, turns: int) -> int:
    """Let robots come, live and go for so long, some of them badly; each must hear what it hears alone. Return how many lived."""
    worker = WorkerConfig(batch_window_s=0.01, max_batch=16)
    wanted = {}
    with serving(tiny_policy(CAUSAL, max_sessions=4), worker=worker, max_rate=1e6) as server:
        wanted = {seed: lives(server, seed, turns) for seed in range(8)}
    lived, end = [0] * robots, time.monotonic() + seconds
    with serving(tiny_policy(CAUSAL, max_sessions=2 * robots + 8), worker=worker, max_rate=1e6) as server:

        def robot(number: int) -> None:
            while time.monotonic() < end:
                np.testing.assert_allclose(lives(server, number % 8, turns), wanted[number % 8], atol=1e-5)
                lived[number] += 1

        def rude() -> None:
            while time.monotonic() < end:
                link = connect(f"ws://127.0.0.1:{server.port}", compression=None)
                link.recv()
                link.send(pack(sees(99, 0)))
                link.socket.shutdown(socket.SHUT_RDWR)
                time.sleep(0.5)  # its session is its own until the decision is made

        with ThreadPoolExecutor(robots + 1) as pool:
            for one in [pool.submit(rude), *(pool.submit(robot, number) for number in range(robots))]:
                one.result(seconds + 120)
        assert until(lambda: len(server._table) == 0), "who has gone is forgotten"
        assert server.metrics.counted("errors_total", "internal") == 0
    assert min(lived) > 0
    return sum(lived)


def test_robots_of_many_come_and_go_and_hear_their_own() -> None:
    assert soak(robots=8, seconds=2.0, turns=3) >= 8


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_thirty_two_robots_for_five_minutes() -> None:
    before = resident_mb()
    soak(robots=32, seconds=60.0, turns=4)
    warm = resident_mb()
    soak(robots=32, seconds=240.0, turns=4)
    assert resident_mb() - warm < 50, (
        f"{before:.0f} MB before, {warm:.0f} MB after a minute, {resident_mb():.0f} MB at the end"
    )


def ask_often(count: int) -> float:
    """Return by how many MB the process grew over so many requests, after as many to warm up as a tenth of them."""
    with serving(tiny_policy(), max_rate=1e6) as server, Client(f"ws://127.0.0.1:{server.port}") as client:
        for turn in range(count // 10):
            client.infer(sees(0, turn))
        before = resident_mb()
        for turn in range(count):
            client.infer(sees(0, turn))
            if turn % 100 == 99:
                client.reset()
        return resident_mb() - before


def test_memory_is_flat_over_some_requests() -> None:
    assert ask_often(200) < 20


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_memory_is_flat_over_ten_thousand_requests() -> None:
    assert ask_often(10_000) < 20


def test_who_does_not_read_is_let_go_and_nobody_waits_for_it() -> None:
    with serving(tiny_policy(), {"send_timeout_s": 0.5, "max_bytes": 64 << 20}, max_rate=1e6) as server:
        lazy = socket.create_connection(("127.0.0.1", server.port))
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        lazy.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n".encode())
        payload = pack({"unknown": 1})  # answered by a long line: many of them fill what the reader leaves unread
        frame = b"\x82" + bytes([0x80 | len(payload)]) + bytes(4) + payload

        def flood() -> None:
            try:
                while True:
                    lazy.sendall(frame * 100)
            except OSError:
                return

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        try:
            assert until(lambda: server._clients == 1)
            began = time.monotonic()
            assert lives(server, 0, 3).shape == (3, 4, 2)
            assert time.monotonic() - began < 10
            assert until(lambda: server._clients == 0, 30), "it was let go"
        finally:
            lazy.close()
            thread.join(10)


def test_a_reset_while_a_decision_is_made_begins_anew() -> None:
    """Another connection takes an id over and resets it while the first one's decision is still being made."""
    policy = tiny_policy(CAUSAL)
    with serving(policy) as server:
        wanted = lives(server, 0, 2)
        decide, begun, go = policy.decide, threading.Event(), threading.Event()

        def held(asked: Any) -> Any:
            begun.set()
            assert go.wait(10)
            return decide(asked)

        url = f"ws://127.0.0.1:{server.port}"
        policy.decide = held  # type: ignore[method-assign]
        link = connect(url, compression=None)
        link.recv()
        link.send(pack({**sees(9, 0), "session_id": "a"}))
        assert begun.wait(10)
        link.socket.shutdown(socket.SHUT_RDWR)
        policy.decide = decide  # type: ignore[method-assign]
        with Client(url, session_id="b") as other, Client(url, session_id="c") as third:
            pending = threading.Thread(
                target=other.reset
            )  # answered before the decision is made: it only waits in line
            pending.start()
            pending.join(5)
            assert not pending.is_alive()
            go.set()
            heard = [third.infer(sees(0, turn))["actions"] for turn in range(2)]
            np.testing.assert_allclose(np.stack(heard), wanted, atol=1e-5)
        with Client(url, session_id="a") as again:
            again.reset()
            heard = [again.infer(sees(0, turn))["actions"] for turn in range(2)]
            np.testing.assert_allclose(np.stack(heard), wanted, atol=1e-5)


def test_a_robot_acts_through_the_server_without_waiting() -> None:
    with serving(tiny_policy(continuation="guided")) as server, Client(f"ws://127.0.0.1:{server.port}") as client:
        with RealTimePolicy(ask_client(client), PlayConfig(delay=1, execute=2)) as policy:
            turns = iter(range(100))
            for _ in range(12):
                assert policy.step(lambda: sees(0, next(turns))).shape == (2,)
                time.sleep(0.02)
        assert policy.facts()["asked"] >= 3
        assert server.metrics.counted("errors_total", "request") == 0


def test_a_robot_goes_on_after_its_server_failed_once() -> None:
    """The server has forgotten what it answered before; the robot says what it is committed to."""
    policy = tiny_policy(continuation="guided")
    decide, failures = policy.decide, iter([False, True])

    def sometimes(asked: Any) -> Any:
        if next(failures, False):
            policy.reset(asked[0][0])
            return [RuntimeError("out of memory")]
        return decide(asked)

    policy.decide = sometimes  # type: ignore[method-assign]
    with serving(policy) as server, Client(f"ws://127.0.0.1:{server.port}") as client:
        with RealTimePolicy(ask_client(client), PlayConfig(delay=1, execute=2)) as robot:
            turns, refused = iter(range(100)), []
            for _ in range(10):
                try:
                    robot.step(lambda: sees(0, next(turns)))
                    robot._take(wait=robot._future is not None)
                except DataError as error:
                    refused.append(str(error))
        assert len(refused) == 1 and "the server failed" in refused[0]
        assert robot.facts()["asked"] >= 4


def test_tls_lets_in_who_knows_the_certificate(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl that makes certificates")
    with serving(tiny_policy(), {"tls_cert": cert, "tls_key": key}) as server:
        url = f"wss://127.0.0.1:{server.port}"
        with Client(url, tls_ca=cert) as client:
            assert client.infer(sees(0, 0))["actions"].shape == (4, 2)
        for wrong in (lambda: Client(url), lambda: Client(url.replace("wss", "ws"))):
            with pytest.raises(ConfigError, match="can't be reached"):
                wrong()
    with pytest.raises(ConfigError, match=r"--tls-cert .* can't be used"), serving(tiny_policy(), {"tls_cert": key}):
        pass
