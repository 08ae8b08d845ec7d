"""Embedded log for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mail.log.embedded import EmbeddedLog
from mail.settings import LogSettings


@asynccontextmanager
async def running(path: Path, settings: LogSettings | None = None) -> AsyncIterator[EmbeddedLog]:
    log = EmbeddedLog(path, settings or LogSettings())
    await log.start()
    try:
        yield log
    finally:
        await log.close()
