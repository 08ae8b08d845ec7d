"""Faults of a cluster, applied while some processes are stopped at their fault points.

Each fault is a coroutine. It starts with the victims stopped, applies the fault, resumes or replaces the victims, and
returns when the fault is repaired; the load continues throughout.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mail.spool.object_spool import TIME_LIMIT_SECONDS
from tests.support.faults.volume import Volume
from tests.support.servers.mail_cluster import MailCluster, Member
from tests.support.servers.object_store import ObjectServer

AWAY_SECONDS = 3.0
OUTAGE_SECONDS = 20.0
BROKER_SESSION_SECONDS = 9.0  # Kafka's default: a broker without heartbeats for this long is fenced

Victims = Sequence[Member]


@dataclass(slots=True)
class FaultRecord:
    """What was done, as text for the report, and when."""

    what: str
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0


Fault = Callable[[MailCluster, Victims, int], Awaitable[FaultRecord]]


async def kill(cluster: MailCluster, victims: Victims, round_number: int) -> FaultRecord:
    """SIGKILL; a new process starts after a second."""
    fault_record = FaultRecord("kill -9")
    for victim in victims:
        await asyncio.to_thread(victim.kill)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(cluster.start, [victim.name for victim in victims])
    return fault_record


async def freeze(cluster: MailCluster, victims: Victims, round_number: int) -> FaultRecord:
    """SIGSTOP for longer than the group's session time-out, then SIGCONT."""
    grouped = any(victim.role in ("router", "delivery") for victim in victims)
    seconds = cluster.session_seconds + 3.0 if grouped else AWAY_SECONDS
    fault_record = FaultRecord(f"SIGSTOP {seconds:.0f} s")
    await asyncio.sleep(seconds)
    _thaw(victims)
    return fault_record


async def lose_broker(cluster: MailCluster, victims: Victims, round_number: int) -> FaultRecord:
    """One of three brokers, another one each round: killed in even rounds, stopped in odd ones."""
    number = round_number % 3 + 1
    node = cluster.brokers.node(number)
    if round_number % 2:
        fault_record = FaultRecord(f"broker {number} SIGSTOP")
        node.freeze()
        _thaw(victims)
        await asyncio.sleep(AWAY_SECONDS + 3.0)
        node.thaw()
    else:
        fault_record = FaultRecord(f"broker {number} kill -9")
        await asyncio.to_thread(node.kill)
        _thaw(victims)
        await asyncio.sleep(AWAY_SECONDS)
        await asyncio.to_thread(cluster.brokers.restart, number)
    return fault_record


async def lose_coordinator(cluster: MailCluster, victims: Victims, round_number: int) -> FaultRecord:
    """Stop the coordinator of the victims' group until another broker coordinates it and has waited for one session."""
    roles = {victim.role for victim in victims if victim.role in ("router", "delivery")} or {"delivery"}
    number = await cluster.coordinator(min(roles))
    seconds = BROKER_SESSION_SECONDS + cluster.session_seconds + 10.0
    fault_record = FaultRecord(f"coordinator SIGSTOP {seconds:.0f} s")
    node = cluster.brokers.node(number)
    node.freeze()
    _thaw(victims)
    await asyncio.sleep(seconds)
    node.thaw()
    return fault_record


async def lose_two_brokers(cluster: MailCluster, victims: Victims, round_number: int) -> FaultRecord:
    """Kill one of three brokers and stop another. Nothing is accepted until they are back."""
    number, other = round_number % 3 + 1, (round_number + 1) % 3 + 1
    fault_record = FaultRecord(f"broker {number} kill -9, broker {other} SIGSTOP {OUTAGE_SECONDS:.0f} s")
    cluster.brokers.node(other).freeze()
    await asyncio.to_thread(cluster.brokers.node(number).kill)
    _thaw(victims)
    await asyncio.sleep(OUTAGE_SECONDS)
    cluster.brokers.node(other).thaw()
    await asyncio.to_thread(cluster.brokers.restart, number)
    return fault_record


async def lose_spool(cluster: MailCluster, victims: Victims, round_number: int) -> FaultRecord:
    """Unmount the spool directory, then mount it again."""
    assert isinstance(cluster.spool, Volume)
    fault_record = FaultRecord(f"spool unmounted {AWAY_SECONDS:.0f} s")
    cluster.spool.unmount()
    _thaw(victims)
    await asyncio.sleep(AWAY_SECONDS)
    cluster.spool.mount()
    return fault_record


async def freeze_store(cluster: MailCluster, victims: Victims, round_number: int) -> FaultRecord:
    """The object store accepts connections and does not reply, for longer than the client's time limit."""
    assert isinstance(cluster.spool, ObjectServer)
    seconds = TIME_LIMIT_SECONDS + 3.0
    fault_record = FaultRecord(f"object store SIGSTOP {seconds:.0f} s")
    with cluster.spool.frozen():
        _thaw(victims)
        await asyncio.sleep(seconds)
    return fault_record


async def kill_store(cluster: MailCluster, victims: Victims, round_number: int) -> FaultRecord:
    """The object store is killed and refuses connections until it is restarted."""
    assert isinstance(cluster.spool, ObjectServer)
    seconds = 2 * AWAY_SECONDS
    fault_record = FaultRecord(f"object store kill -9, {seconds:.0f} s")
    cluster.spool.kill()
    _thaw(victims)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(cluster.spool.start)
    return fault_record


async def cut_network(cluster: MailCluster, victims: Victims, round_number: int) -> FaultRecord:
    """Cut the victims off all brokers: for a few seconds, or for longer than a session with a reset at the end."""
    seconds, reset = (cluster.session_seconds + 3.0, True) if round_number % 2 else (AWAY_SECONDS, False)
    fault_record = FaultRecord(f"network cut {seconds:.0f} s" + (", then reset" if reset else ""))
    for victim in victims:
        victim.cut_network(seconds, reset=reset)
    _thaw(victims)
    await asyncio.sleep(seconds)
    return fault_record


FAULTS: Mapping[str, Fault] = {
    "kill": kill,
    "freeze": freeze,
    "network": cut_network,
    "broker": lose_broker,
    "spool": lose_spool,
}
RARE_FAULTS: Mapping[str, Fault] = {
    "two-brokers": lose_two_brokers,
    "coordinator": lose_coordinator,
}  # only in the long form
STORE_FAULTS: Mapping[str, Fault] = {
    "store-frozen": freeze_store,
    "store-killed": kill_store,
}  # only where the spool is an object store


def _thaw(victims: Victims) -> None:
    for victim in victims:
        victim.thaw()
