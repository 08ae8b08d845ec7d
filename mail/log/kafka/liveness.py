"""Membership liveness: whether the group coordinator confirms this member's heartbeats.

A coordinator that receives no heartbeat within the session timeout reassigns the member's shards and cannot notify it.
"""

from __future__ import annotations

from collections.abc import Callable

from aiokafka import AIOKafkaConsumer

from mail.log.kafka.aiokafka_compat.member import ended_task, observe_heartbeats
from mail.log.kafka.error_messages import error_message
from mail.log.kafka.timeouts import TIMEOUTS


class MemberLiveness:
    def __init__(self, session_seconds: float, clock: Callable[[], float]) -> None:
        self._session_seconds = session_seconds
        self._clock = clock
        self._heartbeat_at = float("-inf")
        self._attached_at = float("-inf")

    def record_heartbeat(self, sent_at: float | None = None) -> None:
        """A heartbeat was confirmed, or a join."""
        self._heartbeat_at = max(self._heartbeat_at, self._clock() if sent_at is None else sent_at)

    @property
    def is_alive(self) -> bool:
        """Whether a heartbeat was confirmed within the session timeout, so that this member still owns its shards."""
        return self._clock() - self._heartbeat_at <= self._session_seconds

    def failure(self, consumer: AIOKafkaConsumer) -> str | None:
        """Why the membership has failed, if it has: a task has ended, or no heartbeat was confirmed for longer than the
        session timeout and the time-out of a join.
        """
        if (ended := ended_task(consumer)) is not None:
            name, error = ended
            return f"the client's {name} task ended" + ("" if error is None else f": {error_message(error)}")
        seconds = self._clock() - max(self._heartbeat_at, self._attached_at)
        is_hung = seconds > self._session_seconds + TIMEOUTS.join_seconds
        return f"no heartbeat confirmed for {seconds:.0f} s" if is_hung else None

    def attach(self, consumer: AIOKafkaConsumer) -> None:
        """Record the heartbeats of a consumer that has started as a member."""
        self._attached_at = self._clock()
        observe_heartbeats(consumer, self._clock, self.record_heartbeat)
