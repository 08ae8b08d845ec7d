"""The interface between the SMTP session's protocol state and its connection, and the reasons why a session ends."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from ingress.framer import Framer


class SessionEnd(StrEnum):
    """Why a session ended, as metrics and log lines name it."""

    QUIT = "quit"  # RFC 5321 section 4.1.1.10
    LOST = "lost"  # the client closed the connection
    TIMEOUT = "timeout"
    SLOW = "slow"  # message data came too slowly while memory was short
    REFUSED = "refused"  # at the greeting, or at MAIL by 421
    TOO_MANY_ERRORS = "errors"  # of the client
    INTERNAL_ERROR = "error"  # of ours, in the middle of message data
    DRAINED = "drained"  # the server drains, and no message was under way
    ABORTED = "cut"  # the server drains, and the drain time was over


class Connection(Protocol):
    """What a conversation needs of its connection."""

    @property
    def framer(self) -> Framer: ...

    async def read_data(self) -> bool:
        """Send the 354 and wait for the end of data. False: the client closed the connection before."""
        ...

    def has_capacity(self, octets: int) -> bool:
        """Whether there is memory for message data of that size."""
        ...

    @property
    def data_over_budget(self) -> bool:
        """The data was dropped because too much was in flight, not because it was too large."""
        ...
