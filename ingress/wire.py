"""A connection as its conversation sees it: where bytes come in, and whether there is room for more.

The session implements it, and a test may; it says nothing of sockets. Next: `ingress/conversation.py`.
"""

from __future__ import annotations

from typing import Protocol

from ingress.intake import Intake


class Wire(Protocol):
    """What a conversation needs of its connection."""

    @property
    def intake(self) -> Intake: ...

    async def read_content(self) -> bool:
        """Send the 354 and wait for the final dot. False: the client went away without it."""
        ...

    def has_room(self, octets: int) -> bool:
        """Whether there is memory for content of that size."""
        ...

    @property
    def content_found_no_room(self) -> bool:
        """The content was dropped because too much was in flight, not because it was too large."""
        ...
