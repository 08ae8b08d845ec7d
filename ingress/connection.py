"""Interface between an SMTP conversation and its connection, and the reasons why a session ends."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from ingress.framer import Framer


class SessionEnd(StrEnum):
    """Why a session ended; the values are metric labels and log fields."""

    QUIT = "quit"  # RFC 5321 section 4.1.1.10
    LOST = "lost"  # the client closed the connection
    TIMEOUT = "timeout"
    SLOW = "slow"  # message data arrived too slowly while memory was short
    REFUSED = "refused"  # 421 at the greeting or at MAIL
    TOO_MANY_ERRORS = "errors"  # the client sent too many invalid commands
    INTERNAL_ERROR = "error"  # an exception of ours while message data was read
    DRAINED = "drained"  # the server drained, and no message was in progress
    ABORTED = "cut"  # the drain time-out expired


class Connection(Protocol):
    """Connection as used by `Conversation`."""

    @property
    def framer(self) -> Framer: ...

    async def read_data(self) -> bool:
        """Send the 354 and wait for the end of data. Return False when the session ended before it."""
        ...

    def has_capacity(self, octets: int) -> bool:
        """Whether the memory budget allows message data of `octets`."""
        ...

    @property
    def data_over_budget(self) -> bool:
        """The data was discarded because the memory budget was exhausted, not because the message was too large."""
        ...
