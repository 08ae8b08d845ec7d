"""One case of the fault matrix: processes stop at chosen fault points under load, a fault happens, mail is accounted
for.

accepted - delivered - bounced - queued = 0 for every recipient; duplicates are bounded by the deliveries in flight. A
case fails if its fault did not happen at its fault points.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from delivery.mailbox_courier import DUPLICATE_SUPPRESSED
from tests.support.faults.accounting import AccountedMessage, Sink, Source, TemporaryReply, digest
from tests.support.faults.faults import FAULTS, RARE_FAULTS, STORE_FAULTS, FaultRecord
from tests.support.faults.points import POINTS, SIZED
from tests.support.servers.mail_cluster import HOSTS, IN_FLIGHT, INLINE_MAX, MailCluster, Member
from tests.support.servers.ports import wait_until

_HIT_SECONDS = 30.0
_COMMIT_SECONDS = 0.3  # time until an arrived message is reported and committed
_SETTLE_SECONDS = 90.0
_ROLE_OF = {point: role for role, points in POINTS.items() for point in points}
_OWN_ID = re.compile(rb"^X-Id: (\S+)\r?$", re.MULTILINE)


@dataclass(slots=True)
class CaseResult:
    """Result of one case. `pause_seconds`: the longest time from a message's dot to its arrival."""

    fault: str
    points: tuple[str, ...]
    fault_record: str = ""
    accepted: int = 0
    delivered: int = 0
    bounced: int = 0
    queued: int = 0
    lost: int = 0
    unknown: int = 0
    duplicates: int = 0
    bound: int = 0
    pause_seconds: float = 0.0
    in_sync_seconds: float = 0.0
    in_flight: int = 0  # started and not committed in the affected delivery processes when the fault began
    stood_seconds: float = 0.0  # from the first stop to the fault
    prefix: str = ""
    hits: list[dict[str, Any]] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"{self.fault} x {'+'.join(self.points)}: {self.fault_record}: accepted {self.accepted} - delivered"
            f" {self.delivered} - bounced {self.bounced} - queued {self.queued} = lost {self.lost}; unknown"
            f" {self.unknown}, duplicates {self.duplicates} of at most "
            f"{self.bound} with {self.in_flight} in flight, pause"
            f" {self.pause_seconds:.1f} s"
        )


def postings(prefix: str, count: int) -> Iterator[AccountedMessage]:
    """Every kind of mail: to eight sites, to a mailbox, to both, refused, refused once, large enough for the spool."""
    for number in range(1, count + 1):
        site = f"[{HOSTS[number % len(HOSTS)]}]"
        recipients: tuple[str, ...] = (f"{prefix}r{number}@{site}",)
        match number % 20:
            case 3:
                recipients = ("alice@example.test",)
            case 7:
                recipients = (*recipients, "alice@example.test")
            case 11:
                recipients = (f"refused{prefix}{number}@{site}",)
            case 13:
                recipients = (f"later{prefix}{number}@{site}",)
            case 14:  # large
                recipients = (*recipients, "alice@example.test")
        size = 3 * INLINE_MAX if number % 5 == 4 else 2000
        yield AccountedMessage(f"{prefix}-{number}", "bob@example.test", recipients, size)


def count_in_mailbox(cluster: MailCluster, user: str) -> Counter[str]:
    """How often each id is in a mailbox; for a DSN, the id of the message it is about."""
    found: Counter[str] = Counter()
    for path in cluster.mailbox_files(user):
        found.update(message_ids(path.read_bytes()))
    return found


def message_ids(content: bytes) -> set[str]:
    """Ids of a message, or of the message that a DSN is about."""
    return {id_.decode() for id_ in _OWN_ID.findall(content)}


class MailLoad:
    """A source for each ingress, fed from one supply of messages.

    With `separate_large`, large messages have sources of their own, so that small ones do not wait behind them.
    """

    def __init__(
        self,
        cluster: MailCluster,
        prefix: str,
        count: int,
        per_second: float,
        *,
        once: bool = False,
        separate_large: bool = False,
        sessions: int = 10,
    ) -> None:
        self.count = count
        self.prefix = prefix
        self._sources: list[Source] = []
        sendings = []
        ports = [member.mx for member in cluster.members_of("ingress")]
        for supply, share in _split(prefix, count) if separate_large else ((postings(prefix, count), 1.0),):
            for port in ports:
                source = Source(port, sessions=sessions, once=once, dot_after_seconds=0.01)
                self._sources.append(source)
                sendings.append(source.send(supply, per_second=per_second * share / len(ports)))
        self._task = asyncio.gather(*sendings)

    @property
    def sources(self) -> list[Source]:
        return self._sources

    @property
    def answers(self) -> list[TemporaryReply]:
        """The 4xx replies, in order."""
        return sorted(each for source in self._sources for each in source.answers)

    def __getattr__(self, name: str) -> Any:
        """`promised`, `unknown`, `refused`, ...: merged from all sources."""
        merged: dict[str, Any] = {}
        for source in self._sources:
            merged |= getattr(source, name)
        return merged

    async def wait_until_done(self, deadline_seconds: float) -> None:
        await asyncio.wait_for(self._task, deadline_seconds)

    def stop(self) -> None:
        for source in self._sources:
            source.stop()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _split(prefix: str, count: int) -> tuple[tuple[Iterator[AccountedMessage], float], ...]:
    """Small and large messages, each with its share of the rate."""
    small = (posting for posting in postings(prefix, count) if posting.size_bytes <= INLINE_MAX)
    large = (posting for posting in postings(prefix, count) if posting.size_bytes > INLINE_MAX)
    return (small, 0.8), (large, 0.2)


def missing(load: MailLoad, sink: Sink, cluster: MailCluster) -> dict[tuple[str, str], str]:
    """Promised recipients without an arrival, as (id, recipient) -> queue id."""
    messages, reports = count_in_mailbox(cluster, "alice"), count_in_mailbox(cluster, "bob")
    queue_ids = load.queue_ids
    gone = {}
    for id_, posting in load.promised.items():
        for recipient in posting.recipients:
            if recipient == "alice@example.test":
                there = messages[id_]
            elif recipient.startswith("refused"):
                there = reports[id_]
            else:
                there = sink.taken[id_, recipient]
            if not there:
                gone[id_, recipient] = queue_ids[id_]
    return gone


async def settle(load: MailLoad, sink: Sink, cluster: MailCluster, deadline_seconds: float = _SETTLE_SECONDS) -> None:
    """Wait until every promised message has arrived, or until the deadline."""
    with suppress(AssertionError):  # files have no change event
        await wait_until(lambda: not missing(load, sink, cluster), deadline_seconds=deadline_seconds, poll_seconds=0.2)


async def wait_for_empty_queue(cluster: MailCluster, deadline_seconds: float = 60.0) -> list[str]:
    """Wait until the queue is empty; returns a line for each remaining delivery."""
    end = time.monotonic() + deadline_seconds
    while True:
        lines = await cluster.queue_entries()
        if not lines or time.monotonic() > end:
            return [f"{line.delivery.id} {line.state} {line.last}" for line in lines]
        await asyncio.sleep(0.3)


async def run_case(
    cluster: MailCluster,
    sink: Sink,
    fault: str,
    points: tuple[str, ...],
    *,
    count: int,
    per_second: float,
    round_number: int,
    check: Callable[[MailLoad, FaultRecord], None] | None = None,
) -> CaseResult:
    """Run one case. Several points: one victim for each, all stopped at once. `check` runs at the end."""
    prefix = f"{fault}{round_number}"
    result = CaseResult(fault, points, prefix=prefix)
    victims = _victims(cluster, points, round_number)
    before = {name: len(member.hits()) for name, member in victims.items()}
    load = MailLoad(cluster, prefix, count, per_second, separate_large=fault in STORE_FAULTS)
    try:
        await asyncio.sleep(count / per_second / 5)
        # A lost spool affects only the messages in it.
        least = INLINE_MAX if fault == "spool" or fault in STORE_FAULTS else 0
        for point, victim in zip(points, victims.values(), strict=True):
            victim.arm(point, least_bytes=least if point in SIZED else 0)
        await _wait_until_stopped(victims, points)
        fault_record = await (FAULTS | RARE_FAULTS | STORE_FAULTS)[fault](cluster, list(victims.values()), round_number)
        fault_record.ended = time.monotonic()
        result.fault_record = fault_record.what
        await load.wait_until_done(count / per_second + 120.0)
        await settle(load, sink, cluster)
        if fault in ("broker", "coordinator", "two-brokers"):
            result.in_sync_seconds = await cluster.in_sync()
        ended = [name for name, member in cluster.members.items() if not member.is_running]
        assert not ended, f"{ended} ended by themselves"
        for name, victim in victims.items():
            result.hits += victim.hits()[before[name] :]
        assert [hit["point"] for hit in result.hits] == list(points)
        await _count_in_flight(result, fault_record, cluster, victims.values())
        result.stood_seconds = fault_record.began - min(hit["time"] for hit in result.hits)
        await _fill_result(result, load, sink, cluster, prefix)
        _check_hit_times(result, load, fault_record, cluster)
        if check is not None:
            check(load, fault_record)
    finally:
        load.stop()
        await load.close()
        for victim in victims.values():
            victim.disarm()
            victim.thaw()
    print(result.line(), flush=True)
    return result


def _victims(cluster: MailCluster, points: tuple[str, ...], round_number: int) -> Mapping[str, Member]:
    """One process for each point, another in each round. Only the mailbox's owner reaches `after-mailbox-append`."""
    victims: dict[str, Member] = {}
    for point in sorted(points, key=lambda point: point != "after-mailbox-append"):
        free = [member for member in cluster.members_of(_ROLE_OF[point]) if member not in victims.values()]
        if point == "after-mailbox-append":
            free = [cluster.mailbox_owner("alice")]
        assert free, point
        victims[point] = free[round_number % len(free)]
    return {victims[point].name: victims[point] for point in points}


async def _wait_until_stopped(victims: Mapping[str, Member], points: tuple[str, ...]) -> None:
    for victim, point in zip(victims.values(), points, strict=True):
        await wait_until(
            lambda victim=victim: victim.is_frozen,
            deadline_seconds=_HIT_SECONDS,
            what=f"{victim.name} at the point {point}",
        )


async def _fill_result(result: CaseResult, load: MailLoad, sink: Sink, cluster: MailCluster, prefix: str) -> None:
    gone = missing(load, sink, cluster)
    queued = {line.delivery.message.queue_id for line in await cluster.queue_entries()} if gone else set[str]()
    promised = load.promised
    recipients = [(id_, name) for id_, posting in promised.items() for name in posting.recipients]
    result.accepted = len(recipients)
    result.queued = sum(queue_id in queued for queue_id in gone.values())
    result.lost = len(gone) - result.queued
    arrived = [each for each in recipients if each not in gone]
    result.bounced = sum(name.startswith("refused") for _, name in arrived)
    result.delivered = len(arrived) - result.bounced
    result.unknown = len(load.unknown)
    result.duplicates = copies(sink, prefix)
    sent = load.sent_at
    delays = [
        sink.first_at[id_] - sent[id_]
        for id_, posting in promised.items()
        if id_ in sink.first_at and not posting.recipients[0].startswith("later")
    ]
    result.pause_seconds = max(delays, default=0.0)
    assert not result.lost, f"{result.line()}\n{list(gone.items())[:10]}"
    assert result.accepted == result.delivered + result.bounced + result.queued
    _check_contents(load, sink, cluster, prefix)


def copies(sink: Sink, prefix: str) -> int:
    """Duplicates of all messages of a case."""
    return sum(count - 1 for (id_, _), count in sink.taken.items() if id_.startswith(f"{prefix}-"))


def check_copies(accounts: Iterable[CaseResult], sink: Sink) -> None:
    """Count duplicates again when the queue is empty, to include late ones."""
    for result in accounts:
        result.duplicates = copies(sink, result.prefix)
        assert result.duplicates <= result.bound, result.line()


async def _count_in_flight(
    result: CaseResult, fault_record: FaultRecord, cluster: MailCluster, victims: Iterable[Member]
) -> None:
    """Count the attempts in flight in the affected delivery processes: the victims, or all for a shared dependency.

    A killed or stopped process starts nothing more. A running process that cannot commit continues, so attempts that it
    started later and never committed count too, up to its concurrency limit.
    """
    alone = result.fault in ("kill", "freeze", "network")
    concerned = [
        member for member in (victims if alone else cluster.members_of("delivery")) if member.role == "delivery"
    ]
    await asyncio.sleep(_COMMIT_SECONDS)
    now = time.monotonic()
    uncommitted = [member.attempts.uncommitted(fault_record.began, now) for member in concerned]
    result.in_flight = sum(each.at_once for each in uncommitted)
    if result.fault in ("kill", "freeze"):
        result.bound = result.in_flight
    else:
        result.bound = min(sum(each.in_all for each in uncommitted), IN_FLIGHT * len(concerned))


def _check_contents(load: MailLoad, sink: Sink, cluster: MailCluster, prefix: str) -> None:
    known = load.promised | load.unknown
    for id_, name in sink.taken:
        if id_.startswith(f"{prefix}-"):
            assert name in known[id_].recipients
            assert sink.contents[id_] == {digest(known[id_].content())}
    for user in ("alice", "bob"):
        messages = count_in_mailbox(cluster, user)
        twice = {id_: count for id_, count in messages.items() if count > 1 and id_.startswith(f"{prefix}-")}
        assert not twice, f"duplicate in the mailbox of {user}: {twice}"
        again = {id_: count for id_, count in cluster.deliveries_in_mailbox(user).items() if count > 1}
        assert not again, f"delivered twice to the mailbox of {user}: {again}"
        assert {id_ for id_ in messages if id_.startswith(f"{prefix}-")} <= known.keys()


def _check_hit_times(result: CaseResult, load: MailLoad, fault_record: FaultRecord, cluster: MailCluster) -> None:
    """Check that the fault happened between the two events that its fault point names."""
    promised = set(load.queue_ids.values())
    for hit in result.hits:
        assert hit["time"] <= fault_record.began
        match hit["point"]:
            case "after-250":
                assert hit["queue_id"] in promised  # the client has its 250 ...
            case "after-append":
                if result.fault == "kill":
                    assert hit["queue_id"] not in promised  # ... and here it never gets it
            case "in-transaction" | "after-commit":
                assert hit["dispatches"] > 0
            case "after-mailbox-append":
                id_ = hit["delivery_id"]
                assert sum(cluster.deliveries_in_mailbox(user)[id_] for user in ("alice", "bob")) == 1
                if result.fault == "kill":  # the retry was recognised as a duplicate
                    lines = "\n".join(cluster.outputs().values()).splitlines()
                    assert any(id_ in line and str(DUPLICATE_SUPPRESSED) in line for line in lines)
    if result.fault == "kill" and {"before-dot", "after-append"} & set(result.points):
        assert load.unknown or result.points == ("before-dot",) or sum(s.connections_lost for s in load.sources)
