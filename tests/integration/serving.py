"""A policy server in a thread of its own, for tests that talk to it over real sockets."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wam_video.inference.server.app import PolicyServer, ServerConfig
from wam_video.inference.server.policy import Policy, PolicyConfig
from wam_video.inference.server.record import Recorder
from wam_video.inference.server.sockets import SocketConfig
from wam_video.inference.server.worker import WorkerConfig
from wam_video.testing import tiny_pipeline

CAUSAL = {"attention": {"pattern": "causal", "chunk_frames": 2}}


def tiny_policy(model: dict[str, Any] | None = None, **options: Any) -> Policy:
    """Return a random policy of the body `arm`: one camera, two actions wide, chunks of four."""
    return Policy(tiny_pipeline(model=model or {}), PolicyConfig(**{"embodiment": "arm", "max_sessions": 4} | options))


@contextmanager
def serving(
    policy: Policy, socket: dict[str, Any] | None = None, *, recorder: Recorder | None = None, **options: Any
) -> Iterator[PolicyServer]:
    """Serve on a free port until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    worker = options.pop("worker", WorkerConfig(batch_window_s=0.01))
    config = ServerConfig(socket=SocketConfig(port=0, **(socket or {})), worker=worker, **options)

    async def start() -> PolicyServer:
        server = PolicyServer(policy, config, {}, recorder)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
