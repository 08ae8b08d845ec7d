"""The router as a role: owns shards of the log while the process lives, and routes their mail.

It wires settings to a policy and tallies to metrics; deciding is `decide.py`, looping `shard.py`.
Next: `router/shard.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic, perf_counter

from mail.directory import Directory
from mail.log import LogUnusable, RouterLog, RouterShard
from mail.resolver import Resolver
from mail.route import ToRelay
from mail.service import ServiceError
from mail.settings import NodeSettings, RouterSettings
from mail.spool import Spool
from mail.telemetry.log import DUPLICATES_SUPPRESSED
from mail.telemetry.router import (
    DSNS,
    ENTRIES,
    FIRST_ATTEMPT_DELAY,
    LEDGER,
    QUEUE_OLDEST,
    QUEUE_RECIPIENTS,
    ROUTE_DURATION,
    ROUTED_RECIPIENTS,
    STATES,
    TIME_IN_QUEUE,
)
from router.mailqueue import MailQueue
from router.resolve import Questions
from router.shard import Tools, tend
from router.tally import Tally
from router.window import Limits
from router.world import Policy

GAUGE_SECONDS = 1.0
# Finding the oldest message of each state reads the whole queue: so seldom that it takes a hundredth of the time.
OLDEST_SECONDS = 10.0
OLDEST_SHARE = 0.01


class Router:
    """The role. One per process."""

    name = "router"

    def __init__(
        self,
        *,
        settings: RouterSettings,
        node: NodeSettings,
        relay: ToRelay | None,
        log: RouterLog,
        spool: Spool,
        directory: Directory,
        resolver: Resolver,
    ) -> None:
        self._settings = settings
        self._policy = policy_of(settings, node, relay)
        self._log = log
        self._spool = spool
        self._directory = directory
        self._resolver = resolver

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        questions = Questions(self._resolver)
        metrics = Metrics()
        tools = Tools(self._policy, self._settings.batch, self._spool, self._directory, questions, metrics.publish)

        async def tend_shard(shard: RouterShard) -> None:
            try:
                await tend(shard, tools, stop)
            finally:
                metrics.forget(shard.number)

        try:
            await self._log.route(tend_shard, stop, ready)  # without a shard too: in a cluster, shards come and go
        except LogUnusable as error:
            raise ServiceError(str(error)) from error
        finally:
            await questions.close()


def policy_of(settings: RouterSettings, node: NodeSettings, relay: ToRelay | None) -> Policy:
    """The rules as the settings have them."""
    return Policy(
        hostname=node.hostname,
        relay=relay,
        lifetime=settings.lifetime,
        retry=tuple(settings.retry) or Policy("").retry,
        limits=Limits(settings.window, settings.window_bytes, settings.in_hand_max),
        recipients_per_delivery=settings.recipients_per_delivery,
        alias_depth=settings.alias_depth,
    )


class Metrics:
    """Publishes tallies; sums the gauges over the shards of this process."""

    def __init__(self) -> None:
        self._ledger = {entry: LEDGER.labels(entry) for entry in ENTRIES}
        self._routed = {
            kind: ROUTED_RECIPIENTS.labels(kind) for kind in ("mailbox", "relay", "mx", "unresolved", "failed")
        }
        self._in_queue = {result: TIME_IN_QUEUE.labels(result) for result in ("delivered", "failed")}
        self._reports = DSNS.labels("failed")
        self._duplicates = DUPLICATES_SUPPRESSED.labels("router")
        self._recipients = {state: QUEUE_RECIPIENTS.labels(state) for state in STATES}
        self._oldest = {state: QUEUE_OLDEST.labels(state) for state in STATES}
        self._shards: dict[int, _ShardGauges] = {}

    def publish(self, shard: int, tally: Tally, queue: MailQueue, seconds: float) -> None:
        """After a commit; `seconds` is 0 for a batch of nothing."""
        if seconds:
            ROUTE_DURATION.observe(seconds)
        for entry, count in tally.ledger.items():
            self._ledger[entry].inc(count)
        for kind, count in tally.routed.items():
            self._routed[kind].inc(count)
        if tally.reports:
            self._reports.inc(tally.reports)
        if tally.duplicates:
            self._duplicates.inc(tally.duplicates)
        for delay in tally.first_attempts:
            FIRST_ATTEMPT_DELAY.observe(delay)
        for result, delay in tally.settled:
            self._in_queue[result].observe(delay)
        self._gauge(shard, queue)

    def forget(self, shard: int) -> None:
        """The shard is no longer ours."""
        self._shards.pop(shard, None)
        self._show()

    def _gauge(self, shard: int, queue: MailQueue) -> None:
        now = monotonic()
        gauges = self._shards.get(shard)
        if gauges is None:
            gauges = self._shards[shard] = _ShardGauges()
        if now < gauges.next_look:
            return
        gauges.next_look = now + GAUGE_SECONDS
        gauges.recipients = queue.recipients()
        if now >= gauges.next_scan:
            began = perf_counter()
            gauges.oldest = queue.oldest()
            gauges.next_scan = now + max(OLDEST_SECONDS, (perf_counter() - began) / OLDEST_SHARE)
        self._show()

    def _show(self) -> None:
        for state in STATES:
            shards = self._shards.values()
            self._recipients[state].set(sum(shard.recipients.get(state, 0) for shard in shards))
            oldest = [shard.oldest[state] for shard in shards if state in shard.oldest]
            self._oldest[state].set(min(oldest, default=0.0))


class _ShardGauges:
    __slots__ = ("next_look", "next_scan", "oldest", "recipients")

    def __init__(self) -> None:
        self.recipients: dict[str, int] = {}
        self.oldest: dict[str, float] = {}
        self.next_look = 0.0
        self.next_scan = 0.0
