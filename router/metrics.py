"""Metrics of the router: counters from the tallies of commits, gauges as sums over the shards of this process."""

from __future__ import annotations

from time import monotonic

from mail.telemetry.log import CONSUMED_RECORDS, DUPLICATES_SUPPRESSED
from mail.telemetry.router import (
    DSNS,
    ENTRIES,
    FIRST_ATTEMPT_DELAY,
    KINDS,
    LEDGER,
    LEDGER_DRIFT,
    OLDEST_RUNNABLE,
    QUARANTINED,
    QUEUE_OLDEST,
    QUEUE_RECIPIENTS,
    ROUTE_DURATION,
    ROUTED_BYTES,
    ROUTED_MESSAGES,
    ROUTED_RECIPIENTS,
    RUNNABLE_RECIPIENTS,
    SHARDS_ROUTED,
    STATES,
    TIME_IN_QUEUE,
)
from router.mailqueue import MailQueue
from router.tally import Ledger, Tally

GAUGE_SECONDS = 1.0  # between two updates of a shard's gauges
ROUTED_SECONDS = 60.0  # since its last batch a shard counts as routed


class Metrics:
    """One per process. A shard is `opened` after each replay, and `closed` when it is not ours any more."""

    def __init__(self) -> None:
        self._accepted = CONSUMED_RECORDS.labels("accepted")
        self._attempted = CONSUMED_RECORDS.labels("attempted")
        self._ledger = {entry: LEDGER.labels(entry) for entry in ENTRIES}
        self._routed = {kind: ROUTED_RECIPIENTS.labels(kind) for kind in KINDS}
        self._in_queue = {result: TIME_IN_QUEUE.labels(result) for result in ("delivered", "failed")}
        self._reports = DSNS.labels("failed")
        self._duplicates = DUPLICATES_SUPPRESSED.labels("router")
        self._recipients = {state: QUEUE_RECIPIENTS.labels(state) for state in STATES}
        self._oldest = {state: QUEUE_OLDEST.labels(state) for state in STATES}
        self._shards: dict[int, _ShardGauges] = {}
        self._batches: dict[int, float] = {}  # when each shard finished its last one, on the monotonic clock
        SHARDS_ROUTED.set_function(self._routed_shards)  # also while nothing is committed

    def opened(self, shard: int, queue: MailQueue) -> None:
        self._shards[shard] = gauges = _ShardGauges(queue)
        gauges.look(queue)
        self._show()

    def consumed(self, *, accepted: int, attempted: int) -> None:
        self._accepted.inc(accepted)
        self._attempted.inc(attempted)

    def committed(self, shard: int, tally: Tally, queue: MailQueue, seconds: float) -> None:
        """After a commit; `seconds` is 0 for an empty batch, which is not committed."""
        if seconds:
            ROUTE_DURATION.observe(seconds)
        for entry, count in tally.ledger.items():
            self._ledger[entry].inc(count)
        for kind, count in tally.routed.items():
            self._routed[kind].inc(count)
        ROUTED_MESSAGES.inc(tally.messages)
        ROUTED_BYTES.inc(tally.bytes)
        if tally.reports:
            self._reports.inc(tally.reports)
        if tally.duplicates:
            self._duplicates.inc(tally.duplicates)
        for delay in tally.first_attempts:
            FIRST_ATTEMPT_DELAY.observe(delay)
        for result, delay in tally.settled:
            self._in_queue[result].observe(delay)
        gauges = self._shards.get(shard)
        if gauges is None:  # lost meanwhile
            return
        self._batches[shard] = monotonic()
        gauges.ledger.add(tally)
        if monotonic() >= gauges.next_look:
            gauges.look(queue)
            self._show()

    def closed(self, shard: int) -> None:
        self._shards.pop(shard, None)
        self._batches.pop(shard, None)
        self._show()

    def _routed_shards(self) -> float:
        since = monotonic() - ROUTED_SECONDS
        return sum(finished > since for finished in list(self._batches.values()))

    def _show(self) -> None:
        shards = self._shards.values()
        for state in STATES:
            self._recipients[state].set(sum(shard.recipients[state] for shard in shards))
            self._oldest[state].set(min((shard.oldest[state] for shard in shards if state in shard.oldest), default=0))
        RUNNABLE_RECIPIENTS.set(sum(shard.runnable for shard in shards))
        runnable = [shard.oldest_runnable for shard in shards if shard.oldest_runnable is not None]
        OLDEST_RUNNABLE.set(min(runnable, default=0))
        QUARANTINED.set(sum(shard.quarantined for shard in shards))
        LEDGER_DRIFT.set(sum(shard.drift for shard in shards))


class _ShardGauges:
    """What one shard adds to the gauges, as last looked at."""

    def __init__(self, queue: MailQueue) -> None:
        self.ledger = Ledger(queue.open_recipients)

    def look(self, queue: MailQueue) -> None:
        self.next_look = monotonic() + GAUGE_SECONDS
        self.recipients = queue.recipients()
        self.oldest = queue.oldest()
        self.runnable = queue.runnable_recipients()
        self.oldest_runnable = queue.oldest_runnable()
        self.quarantined = queue.quarantined
        self.drift = self.ledger.drift(queue.open_recipients)
