"""TTL cache of DNS answers with single flight: concurrent identical queries share one request.

No answer is used after its TTL: a bounce must not be based on a stale answer (RFC 8767).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from cachetools import TLRUCache

from mail.tasks import cancel_tasks
from mail.telemetry.lookup import DNS_CACHE

Answer = TypeVar("Answer")
Question = TypeVar("Question", bound=Hashable)


class AnswerCache(Generic[Question, Answer]):
    """`query(question)` asks the network and returns the answer and its TTL in seconds; 0: not cached."""

    def __init__(
        self,
        query: Callable[[Question], Awaitable[tuple[Answer, float]]],
        size: int,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._query = query
        self._entries: TLRUCache[Question, tuple[Answer, float]] = TLRUCache(
            max(1, size), ttu=lambda _question, entry, now: now + (entry[1] if size else 0), timer=timer
        )
        self._in_flight: dict[Question, asyncio.Task[Answer]] = {}
        self._hit, self._coalesced, self._miss = (DNS_CACHE.labels(result) for result in ("hit", "coalesced", "miss"))

    async def answer(self, question: Question) -> Answer:
        """The answer from the cache, from a running query or from the network."""
        entry = self._entries.get(question)
        if entry is not None:
            self._hit.inc()
            return entry[0]
        task = self._in_flight.get(question)
        if task is None:
            self._miss.inc()
            task = self._in_flight[question] = asyncio.create_task(self._fetch(question))
        else:
            self._coalesced.inc()
        return await asyncio.shield(task)  # a cancelled caller does not cancel the query for the others

    async def _fetch(self, question: Question) -> Answer:
        try:
            answer, seconds = await self._query(question)
            if seconds > 0:
                self._entries[question] = (answer, seconds)
            return answer
        finally:
            del self._in_flight[question]

    async def close(self) -> None:
        """Cancel all running queries."""
        await cancel_tasks(*self._in_flight.values())
