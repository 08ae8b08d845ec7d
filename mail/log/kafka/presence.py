"""Whether our topics are there, looked at when a process starts (safe too, then) and every few seconds while it runs.

In charge of the one line that says what is missing and what to do. A process whose topics are deleted under it stays:
unready, with that line, and its shards put down; it works again when the topics are back. To end would not be more
truthful: whatever starts it again would see it refused, again and again. What shards remember of deleted topics
(positions, queues) counts no more, so they begin anew. Next: `mail/log/kafka/producing.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from mail.log import LogUnavailable, LogUnusable
from mail.log.kafka.access import Access
from mail.log.kafka.lookout import Lookout
from mail.log.kafka.topics import Found, counts_of, fewer_replicas, not_writable, refuse_unsafe, too_few
from mail.log.topics import ALL_TOPICS, ShardCounts, Topic
from mail.settings import LogSettings

log = structlog.get_logger()

LOOK_SECONDS = 5.0
_BACK_SECONDS = 15.0
_UNANSWERED_LOOKS = 2  # in a row, before it is an outage: a broker that dies costs one
_MISSING_TRIES, _MISSING_SECONDS = 6, 0.5  # before topics are said to be missing: brokers hear of new ones in turn


async def look(
    lookout: Lookout, access: Access, settings: LogSettings, *, with_config: bool = True
) -> tuple[ShardCounts, Mapping[Topic, Found]]:
    """The partition counts, and the topics. Raises LogUnavailable; LogUnusable for topics that are missing or, where
    their configuration is looked at, unsafe.
    """
    found = await lookout.topics(access, with_config=with_config)
    for _ in range(_MISSING_TRIES):
        if len(found) == len(ALL_TOPICS):
            break
        await asyncio.sleep(_MISSING_SECONDS)
        found = await lookout.topics(access, with_config=with_config)
    counts = counts_of(found, access, settings)
    if with_config and settings.durability != "dev":
        refuse_unsafe(found, access, settings)
    return counts, found


class Presence:
    """Of one set of topics. `gone` is called when they are no longer there, or are others; `back` when they are;
    `grown` when `dispatched` has got more partitions.
    """

    def __init__(
        self,
        lookout: Lookout,
        access: Access,
        settings: LogSettings,
        *,
        gone: Callable[[], None],
        back: Callable[[], Awaitable[None]],
        grown: Callable[[], None] = lambda: None,
    ) -> None:
        self._lookout = lookout
        self._access = access
        self._settings = settings
        self._gone = gone
        self._back = back
        self._grown = grown
        self.counts = ShardCounts(settings.shards or 1, settings.delivery_shards or 1)
        self.trouble: str | None = None  # one line for people
        # Why no mail moves although the topics are there: no broker answers, or a partition takes no writes.
        self.outage: str | None = None
        self._in_sync_needed: Mapping[Topic, int] = {}
        self._unanswered = 0  # looks in a row
        self._is_gone = False  # `gone` was called, and `back` has not got through since

    async def look(self) -> None:
        """At start. Raises LogUnusable, LogUnavailable."""
        self.counts, found = await look(self._lookout, self._access, self._settings)
        self._learn(found)
        if fewer_replicas(found, self._settings):
            # For new topics it would be asked for in vain; those that are there work as they are.
            alive = await self._lookout.brokers()
            if alive < self._settings.replication:
                log.warning("more replicas than brokers", reason=too_few(alive, self._access, self._settings))

    async def watch(self) -> None:
        """For ever. `dispatched` may also get more partitions while we run; new dispatches go there too."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look_again()
                self._unanswered = 0
            except LogUnusable as error:
                self._miss(str(error))
            except LogUnavailable as error:  # who appends and reads says so
                self._unanswered += 1
                if self._unanswered >= _UNANSWERED_LOOKS:
                    self.outage = str(error)
                log.debug("topics not looked at", reason=str(error))
            except Exception:  # at its next turn
                log.exception("topics not looked at")

    async def _look_again(self) -> None:
        if not self._is_gone and await self._are_the_same():
            return
        # They are missing, or others now, made by somebody else than us perhaps.
        counts, found = await look(self._lookout, self._access, self._settings)
        self._learn(found)
        self._put_down()
        self.counts = counts
        async with asyncio.timeout(_BACK_SECONDS):
            await self._back()
        self._is_gone = False
        if self.trouble is not None:
            log.info("topics are there again", prefix=self._access.prefix)
        self.trouble = None

    async def _are_the_same(self) -> bool:
        """As before, but for partitions that `dispatched` has got. One broker may say otherwise for a while: it has
        slept.
        """
        was = self.counts
        for number in range(_MISSING_TRIES):
            if number:
                await asyncio.sleep(_MISSING_SECONDS)
            found = await self._lookout.topics(self._access, with_config=False)
            self.outage = not_writable(found, self._in_sync_needed)
            try:
                counts = counts_of(found, self._access, self._settings)
            except LogUnusable:
                continue
            if counts.by_queue_id == was.by_queue_id and counts.by_site >= was.by_site:
                self.counts = counts
                if counts.by_site > was.by_site:
                    self._grown()
                return True
        return False

    def _learn(self, found: Mapping[Topic, Found]) -> None:
        """`found` with its configuration."""
        self._in_sync_needed = {
            topic: min(int(each.config.get("min.insync.replicas", "1")), each.replication)
            for topic, each in found.items()
        }
        self.outage = not_writable(found, self._in_sync_needed)

    def _put_down(self) -> None:
        if not self._is_gone:
            self._is_gone = True
            self.trouble = f"topics {self._access.prefix}*: deleted and recreated; reloading"
            self._gone()

    def _miss(self, line: str) -> None:
        if self.trouble != line:
            log.error("topics are not as they must be, mail stands still", reason=line)
        self._put_down()
        self.trouble = line
