"""The Spool port: content too large to ride in a record, or that has to wait.

Durable when `keep` returns; never parsed; expires by age, which is longer than the queue lifetime, so nothing counts
references. Adapters: `disk` for one machine, `objects` for a cluster, `memory` for tests.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from mail.message import Spooled


class SpoolUnavailable(Exception):
    """The spool does not answer or is full: keep the input, try again later."""


class SpoolDamaged(Exception):
    """The content is missing or is not what was kept; the text names it and says what to do."""


class Spool(Protocol):
    async def start(self) -> None:
        """See that it can be used, before anything relies on it. Raises SpoolUnavailable that names the setting."""
        ...

    async def put(self, content: bytes) -> Spooled:
        """Make `content` durable and return where it lies. Calls at the same time may share one flush. Raises
        SpoolUnavailable.
        """
        ...

    async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
        """The content, checked against its digest; or its first `limit_bytes`, unchecked.

        Raises SpoolDamaged, SpoolUnavailable.
        """
        ...

    async def sweep(self, older_than: datetime) -> int:
        """Remove what was kept before `older_than`, and debris of crashes; how many went."""
        ...

    async def free_bytes(self) -> int | None:
        """Room left, or None where that has no meaning. Raises SpoolUnavailable while nothing can be kept."""
        ...

    async def close(self) -> None:
        """Finish what is being written. Idempotent."""
        ...
