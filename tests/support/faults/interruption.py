"""Delivery delay under load during a series of steps: from the 250 to the arrival, for each recipient.

A delay counts for the step in which the mail arrived; a step ends when all mail accepted before its end has arrived.
Mail deferred by its receiver (`later`) and mail for a host that a test keeps silent are excluded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass

from tests.support.faults.accounting import Sink
from tests.support.faults.cases import MailLoad, message_ids, missing
from tests.support.servers.mail_cluster import MailCluster

_LATE_SECONDS = 60.0  # above it the delay is a deferral


@dataclass(frozen=True, slots=True, order=True)
class DeliveryDelay:
    """Delay of one recipient's mail until it reached the sink or a mailbox; for refused mail, until the DSN arrived."""

    seconds: float
    arrived: float
    id: str
    recipient: str


class Interruptions:
    """Measures the steps. `silent`: the excluded host of the sink."""

    def __init__(self, load: MailLoad, sink: Sink, cluster: MailCluster, *, silent: str = "nowhere") -> None:
        self._load = load
        self._sink = sink
        self._cluster = cluster
        self._silent = silent
        self._began: list[tuple[float, str]] = []

    async def step(self, what: str, event: Awaitable[object]) -> None:
        """Run a step and wait until all mail accepted during it has arrived."""
        self._began.append((time.monotonic(), what))
        await event
        await asyncio.sleep(1.5)  # include mail sent right after the event
        before = self._load.promised.keys()

        def outstanding() -> list[tuple[str, str]]:
            gone = missing(self._load, self._sink, self._cluster)
            return [(id_, name) for id_, name in gone if id_ in before and self._counts(name)]

        end = time.monotonic() + _LATE_SECONDS
        while late := outstanding():
            assert time.monotonic() < end, f"{what}: {len(late)} have not arrived: {late[:5]}"
            await asyncio.sleep(0.2)  # files have no change event

    def longest(self) -> dict[str, float]:
        """The longest delay of each step, in seconds."""
        found = dict.fromkeys((what for _, what in self._began), 0.0)
        for wait in self._waits():
            step = next((what for began, what in reversed(self._began) if began <= wait.arrived), None)
            if step is not None:
                found[step] = max(found[step], wait.seconds)
        assert all(found.values()), f"steps without mail: {found}"
        return found

    def _counts(self, recipient: str) -> bool:
        return not recipient.startswith("later") and self._silent not in recipient

    def _waits(self) -> Iterator[DeliveryDelay]:
        boxes = {user: self._delivery_times(user) for user in ("alice", "bob")}
        promised_at = self._load.promised_at
        for id_, posting in self._load.promised.items():
            for recipient in filter(self._counts, posting.recipients):
                if recipient == "alice@example.test":
                    arrived = boxes["alice"].get(id_)
                elif recipient.startswith("refused"):
                    arrived = boxes["bob"].get(id_)
                else:
                    arrived = self._sink.first_at.get(id_)
                if arrived is not None:
                    yield DeliveryDelay(arrived - promised_at[id_], arrived, id_, recipient)

    def _delivery_times(self, user: str) -> dict[str, float]:
        """When each id arrived in a mailbox, on the sources' clock."""
        ahead = time.time() - time.monotonic()
        return {
            id_: path.stat().st_mtime - ahead
            for path in self._cluster.mailbox_files(user)
            for id_ in message_ids(path.read_bytes())
        }
