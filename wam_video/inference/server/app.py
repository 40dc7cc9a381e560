"""The policy server: one websocket port for openpi's, RoboArena's and DreamZero's clients, `/healthz` and `/metrics`.

    requests -> `wire` (bytes to arrays) -> `dialects` (checked) -> `sessions` (whose row) -> `worker` (a thread) -> `policy`

Everything but the last two runs on the event loop and takes microseconds to milliseconds.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from time import monotonic, perf_counter
from typing import Any

from wam_video.errors import ConfigError, DataError, WamError, one_of
from wam_video.inference.server.dialects import (
    DIALECTS,
    RESET_DONE,
    Asked,
    MappingConfig,
    ObservationMap,
    dialect_of,
    endpoint_of,
    flatten,
    reply,
    session_id_of,
)
from wam_video.inference.server.metrics import CONTENT_TYPE, Metrics
from wam_video.inference.server.policy import Policy
from wam_video.inference.server.record import Recorder
from wam_video.inference.server.sessions import Session, SessionTable
from wam_video.inference.server.sockets import Listener, Message, Peer, SocketConfig, listen
from wam_video.inference.server.wire import pack, unpack
from wam_video.inference.server.worker import Worker, WorkerConfig
from wam_video.log import get_logger

_LOG = get_logger(__name__)
_MAX_ERROR = 500
"""Characters that a client is told."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What a server allows and expects."""

    socket: SocketConfig = field(default_factory=SocketConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    dialect: str = "openpi"
    """Of clients whose URL has no path."""
    idle_s: float = 600.0
    """A session that is not used for so long is forgotten."""
    max_rate: float = 50.0
    """Requests a second of a connection; faster ones wait."""
    grace_s: float = 10.0
    """How long a stop waits for decisions that are being made."""

    def __post_init__(self) -> None:
        if self.dialect not in DIALECTS:
            raise ConfigError(one_of("--dialect", self.dialect, DIALECTS))


@dataclass(eq=False, kw_only=True)
class _Client:
    """A connection."""

    dialect: str
    allowance: float
    since: float
    total_ms: float | None = None


def check_exposed(host: str, token: str | None) -> None:
    """Refuse to serve strangers.

    Raises:
        ConfigError: The host can be reached from outside, and no token is asked for, or it is a poor one.
    """
    if token is not None and not (
        8 <= len(token) <= 1024 and token.isascii() and token.isprintable() and " " not in token
    ):
        raise ConfigError("the token must have 8 to 1024 printable ASCII characters without spaces; see --token-file")
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and token is None:
        raise ConfigError(
            f"--host is {host!r}, which others can reach; give --token-file, or serve on 127.0.0.1 and forward the port by ssh"
        )


class PolicyServer:
    """Serves one policy; `start`, then `stop`.

    Args:
        policy: Warmed up.
        config: What is allowed.
        facts: What clients are told of the checkpoint.
        recorder: Writes what robots live through.

    Raises:
        ConfigError: The host can be reached by strangers, or the mapping does not fit the checkpoint.
    """

    def __init__(
        self, policy: Policy, config: ServerConfig, facts: Mapping[str, Any], recorder: Recorder | None = None
    ) -> None:
        check_exposed(config.socket.host, config.socket.token)
        self.config, self.metrics, self._policy = config, Metrics(), policy
        self._map = ObservationMap(policy.spec, policy.views, config.mapping, policy.state_range)
        self._facts = {**_facts(policy), **facts}
        self._recorder = recorder
        self._worker: Worker | None = None
        self._table = SessionTable(policy.config.max_sessions, self._forget)
        self._listener: Listener | None = None
        self._janitor: asyncio.Task[None] | None = None
        self._clients = self._working = 0
        self._open = False

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._listener is None:
            raise ConfigError("the server does not listen; call start() first")
        return self._listener.port

    async def start(self) -> None:
        """Listen, and decide for whoever comes.

        Raises:
            ConfigError: The address can't be had.
        """
        self._worker = Worker(self._policy, self.config.worker, self._seen, lambda: len(self._table))
        self._worker.start()
        self.metrics.gauge("connections", "Clients that are connected.", lambda: self._clients)
        self.metrics.gauge("sessions", "Robots that are remembered.", lambda: len(self._table))
        self._open = True
        pages = {"/healthz": self._health, "/metrics": lambda: (200, CONTENT_TYPE, self.metrics.text())}
        self._listener = await listen(
            self.config.socket,
            self._serve,
            pages,
            refused=lambda reason: self.metrics.count("refused_total", reason),
            ready=lambda: self._open,
        )
        self._janitor = asyncio.create_task(self._clean())

    async def stop(self) -> None:
        """Let nobody in, answer what was asked, and end."""
        self._open = False
        until = monotonic() + self.config.grace_s
        while self._working and monotonic() < until:
            await asyncio.sleep(0.02)
        if self._janitor is not None:
            self._janitor.cancel()
        if self._listener is not None:
            await self._listener.close()
        if self._worker is not None:
            await self._worker.stop()
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)

    def _health(self) -> tuple[int, str, str]:
        well = self._open and self._worker is not None and self._worker.alive
        return (200, "text/plain", "OK\n") if well else (503, "text/plain", "stopping\n")

    def _forget(self, row: int) -> None:
        if self._recorder is not None:
            self._recorder.ended(row)
        if self._worker is not None:
            self._worker.forget(row)

    def _seen(self, robots: int, seconds: float) -> None:
        self.metrics.observe("batch_size", robots)
        self.metrics.observe("decision_seconds", seconds)

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(min(self.config.idle_s / 4, 5.0))
            self.metrics.count("evicted_total", by=self._table.evict(monotonic(), self.config.idle_s))

    async def _serve(self, peer: Peer) -> None:
        """Talk with a client until it goes: metadata, then an answer to each request."""
        try:
            dialect = dialect_of(peer.path, self.config.dialect)
        except DataError as error:
            await peer.send(self._error(error))
            return
        client = _Client(dialect=dialect, allowance=self.config.max_rate, since=monotonic())
        size = self._policy.window.height, self._policy.window.width
        known = None if size[0] is None or size[1] is None else (size[0], size[1])
        self._clients += 1
        try:
            await peer.send(pack(self._map.metadata(dialect, self._facts, known)))
            async for message in peer.messages():
                await self._throttle(client)
                self._working += 1
                try:
                    await peer.send(await self._answer(client, message))
                finally:
                    self._working -= 1
        finally:
            self._clients -= 1
            self._table.leave(client)

    async def _throttle(self, client: _Client) -> None:
        """Wait until a connection may ask again: a bucket that holds a second's worth of requests."""
        now, rate = monotonic(), self.config.max_rate
        client.allowance = min(client.allowance + (now - client.since) * rate, max(rate, 1.0)) - 1
        client.since = now
        if client.allowance < 0:
            self.metrics.count("throttled_total")
            await asyncio.sleep(-client.allowance / rate)

    async def _answer(self, client: _Client, message: Message) -> Message:
        """Return the answer to one request; whatever goes wrong, the client reads one line with an id."""
        began = perf_counter()
        try:
            if isinstance(message, str):
                raise DataError("request is a text; send msgpack in a binary frame")
            flat = flatten(unpack(message))
            endpoint, name = endpoint_of(flat), session_id_of(flat)
            asked = None if endpoint == "reset" else self._map.read(flat, client.dialect)
            session = self._table.claim(client, name, monotonic())  # only now: nonsense takes nobody's place
            if asked is None:
                self._forget(session.row)
                answer: Message = RESET_DONE
            else:
                answer = await self._infer(client, session, asked)
        except Exception as error:  # noqa: BLE001 - a robot is told, the server goes on
            return self._error(error)
        seconds = perf_counter() - began
        client.total_ms = seconds * 1000
        self.metrics.count("requests_total", endpoint)
        self.metrics.observe("request_seconds", seconds)
        return answer

    async def _infer(self, client: _Client, session: Session, asked: Asked) -> bytes:
        assert self._worker is not None, "it runs while clients are served"
        began = perf_counter()
        session.busy = True
        try:
            answer = await self._worker.decide(session.row, asked)
        finally:
            session.busy, session.used = False, monotonic()
        if self._recorder is not None:
            self._recorder.seen(session.row, asked, answer)
        self.metrics.count("out_of_range_total", by=bool(answer.out_of_range))
        self.metrics.count("restarted_total", by=answer.memory == "restarted")
        timing = {"infer_ms": (perf_counter() - began) * 1000}
        if client.total_ms is not None:
            timing["prev_total_ms"] = client.total_ms
        return reply(client.dialect, answer, timing)

    def _error(self, error: Exception) -> str:
        """Log what went wrong, and return what the client is told of it."""
        number = secrets.token_hex(4)
        theirs = isinstance(error, WamError)
        self.metrics.count("errors_total", "request" if theirs else "internal")
        if theirs:
            _LOG.info("error %s: %s", number, error)
            return f"error {number}: {' '.join(str(error).split())[:_MAX_ERROR]}"
        _LOG.error("error %s", number, exc_info=error)
        return f"error {number}: the server failed; its log says more under this number"


def _facts(policy: Policy) -> dict[str, Any]:
    spec = policy.spec
    return {
        "server": "wam_video",
        "embodiment": spec.name,
        "action_dim": spec.action_dim,
        "action_horizon": policy.config.execute or policy.horizon,
        "action_rate": spec.action_rate,
        "action_names": list(spec.action_names),
        "action_units": list(spec.action_units),
        "state_dim": spec.state_dim,
        "frame_stride_s": policy.stride,
        "context_frames": policy.window.num_context_frames,
        "every_frame": policy.chunks,
    }
