"""A client of `wam-video serve` in plain Python: numpy arrays in, numpy arrays out; torch is not needed.

with Client("ws://127.0.0.1:8000") as robot:
    robot.reset()
    chunk = robot.infer({"images": {"front": frame}, "state": state, "prompt": "fold the towel"})["actions"]
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any, Self

from wam_video.errors import ConfigError, DataError
from wam_video.inference.server import sockets
from wam_video.inference.server.wire import pack, unpack


class Client:
    """A connection to a policy server.

    Attributes:
        metadata: What the server says of its policy: names of cameras and state, sizes, rates.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        *,
        token: str | None = None,
        session_id: str | None = None,
        timeout_s: float = 60.0,
        max_bytes: int = 64 << 20,
        tls_ca: str | PathLike[str] | None = None,
    ) -> None:
        """Connect.

        Args:
            url: `ws://host:port`, with `/roboarena` or `/dreamzero` after it for these dialects.
            token: The server's, if it asks for one.
            session_id: Under which the robot is known; with it another connection can go on after this one. None: this
                connection only.
            timeout_s: How long to wait for the connection, and for each answer.
            max_bytes: Of an answer.
            tls_ca: For `wss://`: PEM file of the certificates that are trusted, such as the server's own; None: the system's.

        Raises:
            ConfigError: There is no such server, or it does not let us in.
        """
        self._url, self._session_id, self._timeout_s = url, session_id, timeout_s
        self._socket = sockets.connect(url, token, max_bytes, timeout_s, tls_ca)
        self.metadata: dict[str, Any] = unpack(self._received())

    def infer(self, observation: Mapping[str, Any]) -> Any:
        """Return what to do: `actions` float32 `ta da` in the robot's units, and what the server says of them.

        Args:
            observation: Cameras uint8 `[f] h w 3`, state, `prompt`, and `executed` if not all of the last chunk was carried
                out: how many actions, or these actions `k da`; and `committed`, what will be carried out after these while this
                one is made: so many of that answer, or these actions `d da` (`inference.real_time`). The caller's map stays as
                it is.

        Raises:
            DataError: The server refuses the request; the message is its own.
            ConfigError: The connection is gone.
        """
        return unpack(self._ask({**observation, "endpoint": "infer"}))

    def reset(self) -> None:
        """Begin an episode: what was seen before is forgotten; see `infer` for what is raised."""
        self._ask({"endpoint": "reset"}, text=True)

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any], *, text: bool = False) -> Any:
        if self._session_id is not None:
            request["session_id"] = self._session_id
        try:
            self._socket.send(pack(request))
        except sockets.closed_errors() as error:
            raise self._gone(error) from error
        return self._received(text=text)

    def _received(self, *, text: bool = False) -> Any:
        try:
            answer = self._socket.recv(timeout=self._timeout_s)
        except TimeoutError as error:
            self.close()  # its answer would be taken for that to the next request
            raise ConfigError(
                f"server {self._url!r} did not answer within {self._timeout_s:g} s; give timeout_s="
            ) from error
        except sockets.closed_errors() as error:
            raise self._gone(error) from error
        if isinstance(answer, str) and (not text or answer.startswith("error ")):
            raise DataError(f"server {self._url!r}: {answer}")
        return answer

    def _gone(self, error: Exception) -> ConfigError:
        return ConfigError(f"server {self._url!r} has closed the connection ({error}); connect again")
