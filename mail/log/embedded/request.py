"""Requests from the event loop to the database thread, and the completion of their futures."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from mail.log import LogUnavailable, LogUnusable
from mail.log.embedded.commit import Change
from mail.log.embedded.store import DAMAGE_ADVICE, Store, is_damage, is_full
from mail.telemetry.log import PRODUCE_ERRORS

T = TypeVar("T")

FULL = "{}: the disk is full: make room there, or set log.url to a file on another disk"


class Request(Generic[T]):
    """A change or a query, and the future of its caller."""

    __slots__ = (
        "answer",
        "change",
        "deadline",
        "error",
        "future",
        "query",
        "records",
        "timed_out",
        "waits_without_limit",
    )

    def __init__(
        self, future: asyncio.Future[T], deadline: float, change: Change | None, query: Callable[[Store], T] | None
    ) -> None:
        self.future = future
        self.deadline = deadline
        self.change = change
        self.query = query
        self.records: Sequence[Any] = ()  # records of the change's entries, for the owners of their shards
        self.timed_out = False  # the caller got LogUnavailable; the change is not made if it is still queued
        self.waits_without_limit = False  # the caller waits without a timeout
        self.answer: Any = None
        self.error: Exception | None = None


def reject(request: Request[Any], reason: str) -> None:
    if not request.future.done():
        PRODUCE_ERRORS.inc()
        request.future.set_exception(LogUnavailable(reason))


def succeed(future: asyncio.Future[T], answer: T) -> None:
    if not future.done():
        future.set_result(answer)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def unusable(path: Path, error: Exception) -> LogUnusable:
    match error:
        case LogUnusable():
            return error
        case OSError():
            if error.errno == errno.ENOSPC:
                return LogUnusable(FULL.format(path))
            return LogUnusable(f"{path}: {error.strerror}: check log.url and the permissions of its directory")
        case sqlite3.DatabaseError() if is_full(error):
            return LogUnusable(FULL.format(path))
        case sqlite3.DatabaseError():
            what = DAMAGE_ADVICE if is_damage(error) else "restore it, or move it away to start with an empty log"
            return LogUnusable(f"{path} cannot be opened as a log: {error}: {what}")
        case _:
            return LogUnusable(f"{path}: {error}")
