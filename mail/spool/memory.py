"""Spool in memory, for tests and `spool.url = "memory:"`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from mail.message import Spooled
from mail.queue_id import new_queue_id
from mail.spool import SpoolDamaged
from mail.spool.group_commit import digest_of
from mail.telemetry.spool import READ_DURATION, SWEEP_DURATION, WRITE_DURATION


class MemorySpool:
    """`contents` may be changed by tests; `now` is the clock for the age of content."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.contents: dict[str, bytes] = {}
        self._put_times: dict[str, datetime] = {}
        self._now = now

    async def start(self) -> None:
        """Nothing to do."""

    async def put(self, content: bytes) -> Spooled:
        with WRITE_DURATION.time():
            name = f"memory/{new_queue_id()}"
            self.contents[name] = bytes(content)
            self._put_times[name] = self._now()
            return Spooled(name, len(content), digest_of(content))

    async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
        with READ_DURATION.time():
            content = self.contents.get(spooled.name)
            if content is None:
                raise SpoolDamaged(
                    f"spool file {spooled.name} is missing: a spool in memory is lost when its process ends"
                )
            if limit_bytes is not None:
                return content[:limit_bytes]
            if len(content) != spooled.size_bytes or digest_of(content) != spooled.digest:
                raise SpoolDamaged(f"spool file {spooled.name} has a wrong checksum")
            return content

    async def sweep(self, older_than: datetime) -> int:
        with SWEEP_DURATION.time():
            old = [name for name, put_at in self._put_times.items() if put_at < older_than]
            for name in old:
                del self._put_times[name]
                self.contents.pop(name, None)
            return len(old)

    async def free_bytes(self) -> int | None:
        return None

    async def close(self) -> None:
        """Nothing to do."""
