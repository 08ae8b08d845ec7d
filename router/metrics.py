"""Metrics of the router: counters from the accounting of each batch, gauges summed over the shards of this process."""

from __future__ import annotations

from time import monotonic

from mail.telemetry.log import CONSUMED_RECORDS, DUPLICATES_SUPPRESSED
from mail.telemetry.router import (
    CORRUPT_RECORDS,
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
from router.accounting import BatchAccounting, LedgerBalance
from router.mail_queue import MailQueue

GAUGE_INTERVAL_SECONDS = 1.0  # between two updates of a shard's gauges
ROUTED_SECONDS = 60.0  # a shard counts as routed for this long after its last batch


class Metrics:
    """One per process. Call `shard_replayed` after each replay, `shard_released` when this process loses the shard."""

    def __init__(self) -> None:
        self._accepted = CONSUMED_RECORDS.labels("accepted")
        self._attempted = CONSUMED_RECORDS.labels("attempted")
        self._ledger = {entry: LEDGER.labels(entry) for entry in ENTRIES}
        self._routed = {kind: ROUTED_RECIPIENTS.labels(kind) for kind in KINDS}
        self._time_in_queue = {result: TIME_IN_QUEUE.labels(result) for result in ("delivered", "failed")}
        self._dsns = DSNS.labels("failed")
        self._duplicates = DUPLICATES_SUPPRESSED.labels("router")
        self._recipients = {state: QUEUE_RECIPIENTS.labels(state) for state in STATES}
        self._oldest = {state: QUEUE_OLDEST.labels(state) for state in STATES}
        self._shards: dict[int, _ShardGauges] = {}
        self._last_batch: dict[int, float] = {}  # end of each shard's last batch, monotonic
        SHARDS_ROUTED.set_function(self._routed_shards)  # read at scrape time, so that a stuck shard shows

    def shard_replayed(self, shard: int, queue: MailQueue) -> None:
        self._shards[shard] = gauges = _ShardGauges(queue)
        gauges.refresh(queue)
        self._update_gauges()

    def add_consumed(self, *, accepted: int, attempted: int) -> None:
        self._accepted.inc(accepted)
        self._attempted.inc(attempted)

    def add_batch(self, shard: int, accounting: BatchAccounting, queue: MailQueue, seconds: float) -> None:
        """Count a committed batch; `seconds` is 0 for an empty batch, which is not committed."""
        if seconds:
            ROUTE_DURATION.observe(seconds)
        for entry, count in accounting.ledger.items():
            self._ledger[entry].inc(count)
        for kind, count in accounting.routed.items():
            self._routed[kind].inc(count)
        ROUTED_MESSAGES.inc(accounting.messages)
        ROUTED_BYTES.inc(accounting.bytes)
        if accounting.dsns:
            self._dsns.inc(accounting.dsns)
        if accounting.duplicates:
            self._duplicates.inc(accounting.duplicates)
        for delay in accounting.first_attempt_delays:
            FIRST_ATTEMPT_DELAY.observe(delay)
        for result, delay in accounting.times_in_queue:
            self._time_in_queue[result].observe(delay)
        gauges = self._shards.get(shard)
        if gauges is None:  # lost meanwhile
            return
        self._last_batch[shard] = monotonic()
        gauges.balance.add(accounting)
        if monotonic() >= gauges.next_refresh:
            gauges.refresh(queue)
            self._update_gauges()

    def shard_released(self, shard: int) -> None:
        self._shards.pop(shard, None)
        self._last_batch.pop(shard, None)
        self._update_gauges()

    def _routed_shards(self) -> float:
        oldest = monotonic() - ROUTED_SECONDS
        return sum(time > oldest for time in list(self._last_batch.values()))

    def _update_gauges(self) -> None:
        shards = self._shards.values()
        for state in STATES:
            self._recipients[state].set(sum(shard.recipients[state] for shard in shards))
            self._oldest[state].set(min((shard.oldest[state] for shard in shards if state in shard.oldest), default=0))
        RUNNABLE_RECIPIENTS.set(sum(shard.runnable for shard in shards))
        runnable = [shard.oldest_runnable for shard in shards if shard.oldest_runnable is not None]
        OLDEST_RUNNABLE.set(min(runnable, default=0))
        CORRUPT_RECORDS.set(sum(shard.corrupt_records for shard in shards))
        QUARANTINED.set(sum(shard.quarantined_deliveries for shard in shards))
        LEDGER_DRIFT.set(sum(shard.drift for shard in shards))


class _ShardGauges:
    """One shard's last gauge values."""

    def __init__(self, queue: MailQueue) -> None:
        self.balance = LedgerBalance(queue.open_recipients)

    def refresh(self, queue: MailQueue) -> None:
        self.next_refresh = monotonic() + GAUGE_INTERVAL_SECONDS
        self.recipients = queue.recipients()
        self.oldest = queue.age_index.oldest()
        self.runnable = queue.age_index.runnable_recipients
        self.oldest_runnable = queue.age_index.oldest_runnable()
        self.quarantined_deliveries = queue.quarantined_deliveries
        self.corrupt_records = queue.corrupt_records
        self.drift = self.balance.drift(queue.open_recipients)
