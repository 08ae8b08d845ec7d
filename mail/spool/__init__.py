"""Spool port: storage of content that is too large for a record or belongs to a waiting delivery.

Content expires by age, which is longer than the queue lifetime, so there is no reference count. Adapters: `disk` for
one machine, `object_spool` for a cluster, `memory` for tests.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from mail.message import Spooled


class SpoolUnavailable(Exception):
    """The spool does not respond or is full; the caller must not consume its input and must retry later."""


class SpoolDamaged(Exception):
    """The content is missing or its digest is wrong; the text names it and says what to do."""


class Spool(Protocol):
    async def start(self) -> None:
        """Check that the spool is usable. Raises SpoolUnavailable that names the setting."""
        ...

    async def put(self, content: bytes) -> Spooled:
        """Store `content` durably and return its location. Concurrent calls may share one flush. Raises
        SpoolUnavailable.
        """
        ...

    async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
        """The content, verified by its digest, or its first `limit_bytes`, not verified.

        Raises SpoolDamaged, SpoolUnavailable.
        """
        ...

    async def sweep(self, older_than: datetime) -> int:
        """Delete content stored before `older_than` and leftover temporary files; returns the number of files."""
        ...

    async def free_bytes(self) -> int | None:
        """Free space of a spool in a directory; None: not checked.

        Raises SpoolUnavailable while nothing can be stored.
        """
        ...

    async def close(self) -> None:
        """Wait for the writes in progress. Idempotent."""
        ...
