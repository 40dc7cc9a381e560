"""The only module that knows the package `websockets`: a server's listening side and a client's, as small as we need them."""

import hmac
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from wam_video.errors import ConfigError, MissingDependencyError

Message = str | bytes
Page = Callable[[], tuple[int, str, str]]
"""Makes a page: HTTP status, content type, text."""

_QUIET = logging.getLogger("wam_video.websockets")
_QUIET.setLevel(logging.CRITICAL)  # strangers' broken handshakes are no news; those who are refused are counted


class PeerGoneError(Exception):
    """The connection is closed, in whatever way."""


@dataclass(frozen=True, kw_only=True)
class SocketConfig:
    """Where a server listens and what a connection may do."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    token: str | None = None
    """That clients must show, as `Authorization: Bearer TOKEN` or `Api-Key TOKEN`."""
    max_bytes: int = 16 << 20
    """Of a message."""
    max_connections: int = 64
    send_timeout_s: float = 30.0
    """A client that does not take its answer for so long is let go."""
    tls_cert: Path | None = None
    """Certificate chain (PEM); with it clients connect to wss://."""
    tls_key: Path | None = None
    """Its private key; None: in the same file."""


class Peer:
    """One client's connection."""

    def __init__(self, socket: Any, timeout_s: float) -> None:
        self._socket, self._timeout_s = socket, timeout_s
        self.path: str = socket.request.path.partition("?")[0]

    async def messages(self) -> AsyncIterator[Message]:
        """Yield what the client says until it goes."""
        from websockets.exceptions import ConnectionClosed

        try:
            async for message in self._socket:
                yield message
        except ConnectionClosed:
            return

    async def send(self, message: Message) -> None:
        """Send an answer.

        Raises:
            PeerGoneError: The client has gone, or does not read.
        """
        import asyncio

        from websockets.exceptions import ConnectionClosed

        try:
            await asyncio.wait_for(self._socket.send(message), self._timeout_s)
        except ConnectionClosed as error:
            raise PeerGoneError from error
        except TimeoutError as error:
            self._socket.transport.abort()
            raise PeerGoneError from error


class Listener:
    """A server that listens; `close` ends it."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.port: int = next(iter(server.sockets)).getsockname()[1]

    async def close(self) -> None:
        """Say good-bye to all clients and stop."""
        self._server.close()
        await self._server.wait_closed()


async def listen(
    config: SocketConfig,
    handler: Callable[[Peer], Awaitable[None]],
    pages: Mapping[str, Page],
    refused: Callable[[str], None],
    ready: Callable[[], bool],
) -> Listener:
    """Listen for websockets, and answer a few paths as HTTP.

    Args:
        config: Where, and what is allowed.
        handler: Called with each client.
        pages: Path -> page; `/healthz` needs no token.
        refused: Told why somebody was not let in.
        ready: Whether anybody is let in now.

    Raises:
        ConfigError: The address can't be had.
        MissingDependencyError: The package is not installed.
    """
    try:
        from websockets.asyncio.server import serve
    except ImportError as error:
        raise MissingDependencyError("websockets", "serve", "serving a policy") from error
    connections, tls = 0, _server_tls(config)

    async def handle(socket: Any) -> None:
        nonlocal connections
        connections += 1
        try:
            await handler(Peer(socket, config.send_timeout_s))
        except PeerGoneError:
            pass
        finally:
            connections -= 1

    def gate(socket: Any, request: Any) -> Any:
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return _page(socket, pages[path])
        if config.token is not None and not _knows(request.headers.get_all("Authorization"), config.token):
            refused("token")
            return socket.respond(401, "missing or wrong token; send 'Authorization: Bearer TOKEN'\n")
        if path in pages:
            return _page(socket, pages[path])
        if not ready() or connections >= config.max_connections:
            refused("connections")
            return socket.respond(503, "no room for another client; try again later\n")
        return None

    try:
        server = await serve(
            handle,
            config.host,
            config.port,
            process_request=gate,
            origins=[None],  # a web page in somebody's browser has an origin, a robot has none
            compression=None,  # a small message can't become a large one
            max_size=config.max_bytes,
            max_queue=2,
            open_timeout=10,
            close_timeout=2,
            logger=_QUIET,
            server_header=None,
            ssl=tls,
        )
    except OSError as error:
        where = f"{config.host}:{config.port}"
        raise ConfigError(f"{where} can't be listened on ({error.strerror or error}); choose another --port") from error
    return Listener(server)


def _server_tls(config: SocketConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None:
        if config.tls_key is not None:
            raise ConfigError("--tls-key is given without --tls-cert; give both, or a certificate that holds its key")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # an empty password: a key that needs one is refused, rather than asked for on the terminal
        context.load_cert_chain(config.tls_cert, config.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {str(config.tls_cert)!r} can't be used ({error}); give a PEM certificate chain and its unencrypted key"
        ) from error
    return context


def _client_tls(url: str, ca: str | PathLike[str] | None) -> ssl.SSLContext | None:
    if not url.startswith("wss://"):
        if ca is not None:
            raise ConfigError(f"tls_ca is given, but {url!r} is not encrypted; use wss://")
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"tls_ca {str(ca)!r} can't be used ({error}); give a PEM file of certificates") from error


def connect(
    url: str, token: str | None, max_bytes: int, timeout_s: float, tls_ca: str | PathLike[str] | None = None
) -> Any:
    """Return a client's connection with `send`, `recv` and `close`, opened; with `tls_ca` who is trusted for wss://.

    Raises:
        ConfigError: Nobody answers there, or lets us in.
        MissingDependencyError: The package is not installed.
    """
    try:
        from websockets.exceptions import InvalidHandshake, InvalidURI
        from websockets.sync.client import connect as open_socket
    except ImportError as error:
        raise MissingDependencyError("websockets", "serve", "talking to a policy server") from error
    tls = _client_tls(url, tls_ca)
    headers = None if token is None else {"Authorization": f"Bearer {token}"}
    try:
        return open_socket(
            url,
            additional_headers=headers,
            compression=None,
            max_size=max_bytes,
            open_timeout=timeout_s,
            proxy=None,
            ssl=tls,
        )
    except (OSError, InvalidHandshake, InvalidURI, TimeoutError) as error:
        raise ConfigError(
            f"server {url!r} can't be reached ({error}); start `wam-video serve`, check token and port"
        ) from error


def closed_errors() -> tuple[type[Exception], ...]:
    """Return what `send` and `recv` of a client's connection raise when it is closed."""
    from websockets.exceptions import ConnectionClosed

    return (ConnectionClosed, OSError)


def _page(socket: Any, page: Page) -> Any:
    status, kind, text = page()
    response = socket.respond(status, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    return response


def _knows(given: list[str], token: str) -> bool:
    """Say whether one header shows the token; takes as long for a wrong one as for the right one."""
    if len(given) != 1:
        return False
    scheme, _, shown = given[0].partition(" ")
    same = hmac.compare_digest(shown.strip().encode(), token.encode())
    return same and scheme.lower() in ("bearer", "api-key")
