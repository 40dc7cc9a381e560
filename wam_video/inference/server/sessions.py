"""Who has which row: sessions by the id that a client brings, or one for each connection; idle ones are forgotten."""

from collections.abc import Callable
from dataclasses import dataclass

from wam_video.errors import DataError


@dataclass(eq=False, kw_only=True)
class Session:
    """One robot's memory."""

    row: int
    name: str | None
    """The id that the client gave; None: the connection's own, gone with it."""
    owner: object | None
    """The connection that uses it now."""
    used: float
    """Seconds, of the clock of whoever asks."""
    busy: bool = False
    """Whether a decision is being made."""


class SessionTable:
    """Rows and their users.

    Args:
        rows: How many there are.
        forget: Makes a row as new.
    """

    def __init__(self, rows: int, forget: Callable[[int], None]) -> None:
        self._free, self._forget, self._rows = list(range(rows))[::-1], forget, rows
        self._sessions: list[Session] = []

    def __len__(self) -> int:
        return len(self._sessions)

    def claim(self, owner: object, name: str | None, now: float) -> Session:
        """Return the session of a connection, or of an id; a connection that brings another id leaves the one before.

        Raises:
            DataError: The id is another connection's, or there is no room.
        """
        for session in self._sessions:
            if session.owner is owner and name in (None, session.name):
                session.used = now
                return session
        named = next((one for one in self._sessions if name is not None and one.name == name), None)
        if named is not None and named.owner is not None:
            raise DataError("session_id is in use by another connection; choose an id of your own")
        self.leave(owner, forget=True)
        if named is None:
            named = Session(row=self._room(), name=name, owner=owner, used=now)
            self._sessions.append(named)
        named.owner, named.used = owner, now
        return named

    def leave(self, owner: object, *, forget: bool = False) -> None:
        """Note that a connection has gone: sessions with an id stay for when it comes back, unless `forget`."""
        for session in [one for one in self._sessions if one.owner is owner]:
            session.owner = None
            if forget or session.name is None:
                self._drop(session)

    def evict(self, now: float, idle_s: float) -> int:
        """Forget sessions that nobody used for so long; return how many."""
        idle = [one for one in self._sessions if not one.busy and now - one.used > idle_s]
        for session in idle:
            self._drop(session)
        return len(idle)

    def _room(self) -> int:
        if not self._free and (left := [one for one in self._sessions if one.owner is None and not one.busy]):
            self._drop(min(left, key=lambda one: one.used))
        if not self._free:
            raise DataError(f"all {self._rows} sessions are in use; try again later, or serve with more --max-sessions")
        return self._free.pop()

    def _drop(self, session: Session) -> None:
        self._sessions.remove(session)
        self._forget(session.row)  # a decision that is being made comes before, in the worker's order
        self._free.append(session.row)
