"""Time-outs, retry pauses and polling intervals of the Kafka log, in seconds.

A test compares those that depend on each other; `docs/design.md` has the table. `log.append_timeout` and
`log.session_timeout` are settings.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    # The cost of an unresponsive broker until its circuit opens. A closed connection costs nothing.
    request_seconds: float = 5.0
    metadata_seconds: float = 30.0  # age at which metadata is refreshed; also after every error that requires it
    metadata_retry_seconds: float = 0.1  # before another broker is asked for metadata
    query_seconds: float = 15.0
    coordinator_retry_seconds: float = 0.3  # while a coordinator is created or moved
    close_seconds: float = 2.0  # of a reader or a query client
    stop_seconds: float = 5.0  # of a producer, a member of a group, or a cancelled shard
    cancel_seconds: float = 1.0  # for the tasks of an aborted client, and to stop a transactional producer
    retry_seconds: float = 1.0  # before a failed partition, an open circuit or a fenced shard is tried again
    watch_seconds: float = 5.0  # between two checks of topics and certificate files

    # Circuit breaker
    check_seconds: float = 1.5  # or longer, where connecting is usually slow
    check_max_seconds: float = 5.0

    # Start, topics, certificates
    open_retry_seconds: float = 2.0  # while brokers or topics are missing at start
    diagnosis_seconds: float = 6.0  # one address, all steps
    protocol_seconds: float = 1.5  # to find out which protocol a server uses
    topics_missing_seconds: float = 0.5  # brokers learn of new topics one after another
    topics_resume_seconds: float = 15.0
    rights_fetch_seconds: float = 0.6  # longer than a broker holds a fetch of an empty partition
    broker_probe_seconds: float = 6.0

    # Producers
    tenant_retry_seconds: float = 5.0  # before missing topics of a tenant are checked again
    tenant_open_seconds: float = 30.0
    tenant_open_wait_seconds: float = 3.0  # a recipient's wait for a producer, which normally opens in 0.1 s
    # The open transaction of a killed router hides later records of other routers until it times out or the shard's
    # next owner ends it: as short as possible, but longer than any batch takes.
    transaction_seconds: float = 15.0
    # Shorter, so that it does not wait for a transaction that the broker has ended. A slower commit is repeated, which
    # is always safe; aiokafka may wait twice as long for a dead coordinator.
    transaction_commit_seconds: float = 10.0

    # Consumer group
    heartbeat_seconds: float = 1.0  # members learn of a rebalance by heartbeats, and the first waits for the last
    rebalance_seconds: float = 20.0  # for every member to rejoin; others are excluded
    # For deliveries past their final dot before the group reassigns the shard. All members wait for the slowest drain,
    # and members learn of a rebalance up to one heartbeat apart: with 8 s and 3 s, mail paused for up to 12 s.
    drain_seconds: float = 6.0
    offset_commit_seconds: float = 3.0  # the next owner repeats what is not committed by then
    offset_commit_pause_seconds: float = 0.02  # deliveries that finish meanwhile share the next commit
    offset_commit_retry_seconds: float = 0.5
    # Between two writes that test whether brokers accept any: a broker without a controller answers everything else.
    idle_write_seconds: float = 5.0
    poll_seconds: float = 1.0
    pause_check_seconds: float = 0.25  # interval of the check for process pauses
    unreadable_retry_seconds: float = 60.0  # before a shard with an unreadable record is processed again

    # Readers
    read_seconds: float = 30.0  # without records that exist, before a read fails
    read_wait_seconds: float = 0.2
    stuck_seconds: float = 10.0  # without records, before the broker is asked whether there are any
    stuck_recheck_seconds: float = 2.0
    # A committed offset above the end offset: the topic was recreated or truncated, or the broker lags behind. The end
    # offset is trusted after this time, and several checks with new clients, each of which may ask another broker.
    truncation_seconds: float = 15.0
    # Between two commits of a busy shard. Measured on two processors shared with the broker: at 50 ms two router
    # processes had 0.87 of the throughput of one, at 100 ms 0.97 to 1.01; at 200 ms deliveries begin to wait for work.
    router_batch_seconds: float = 0.1
    router_arrival_seconds: float = 10.0  # for records that exist to arrive
    delivery_arrival_seconds: float = 20.0  # longer than a stuck reader takes to be replaced
    delivery_full_seconds: float = 0.05  # between two checks whether more deliveries may start

    @property
    def join_seconds(self) -> float:
        """Time-out of a join, which the coordinator answers once every member has joined."""
        return self.rebalance_seconds + 5.0


TIMEOUTS = Timeouts()
