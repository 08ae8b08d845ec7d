"""What may befall a cluster, while some of its processes stand still at the instants a test chose.

Each mishap is a coroutine: it begins with the victims frozen at their points, does its harm, wakes them (or what comes
after them), and ends when the harm is mended; the load goes on all the while. Next: `tests/support/cells.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mail.spool.objects import TIME_LIMIT_SECONDS
from tests.support.mailcluster import MailCluster, Member
from tests.support.objects import ObjectServer
from tests.support.volume import Volume

AWAY_SECONDS = 3.0
OUTAGE_SECONDS = 20.0
BROKER_SESSION_SECONDS = 9.0  # Kafka's default: a broker that is silent for so long is dead

Victims = Sequence[Member]


@dataclass(slots=True)
class Harm:
    """What was done, for people, and when."""

    what: str
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0


Mishap = Callable[[MailCluster, Victims, int], Awaitable[Harm]]


async def kill(cluster: MailCluster, victims: Victims, turn: int) -> Harm:
    """SIGKILL, and a new process after a second."""
    harm = Harm("kill -9")
    for victim in victims:
        await asyncio.to_thread(victim.kill)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(cluster.start, [victim.name for victim in victims])
    return harm


async def freeze(cluster: MailCluster, victims: Victims, turn: int) -> Harm:
    """SIGSTOP for longer than the group waits, then SIGCONT: it wakes up and does not know."""
    grouped = any(victim.role in ("router", "delivery") for victim in victims)
    seconds = cluster.session_seconds + 3.0 if grouped else AWAY_SECONDS
    harm = Harm(f"SIGSTOP {seconds:.0f} s")
    await asyncio.sleep(seconds)
    _wake(victims)
    return harm


async def lose_broker(cluster: MailCluster, victims: Victims, turn: int) -> Harm:
    """One of three, each in its turn: killed, and every other time frozen."""
    number = turn % 3 + 1
    node = cluster.brokers.node(number)
    if turn % 2:
        harm = Harm(f"broker {number} SIGSTOP")
        node.freeze()
        _wake(victims)
        await asyncio.sleep(AWAY_SECONDS + 3.0)
        node.thaw()
    else:
        harm = Harm(f"broker {number} kill -9")
        await asyncio.to_thread(node.kill)
        _wake(victims)
        await asyncio.sleep(AWAY_SECONDS)
        await asyncio.to_thread(cluster.brokers.restart, number)
    return harm


async def lose_coordinator(cluster: MailCluster, victims: Victims, turn: int) -> Harm:
    """The broker that coordinates the victims' group is frozen until another one coordinates it, and has waited a
    session for the members.
    """
    roles = {victim.role for victim in victims if victim.role in ("router", "delivery")} or {"delivery"}
    number = await cluster.coordinator(min(roles))
    seconds = BROKER_SESSION_SECONDS + cluster.session_seconds + 10.0
    harm = Harm(f"coordinator SIGSTOP {seconds:.0f} s")
    node = cluster.brokers.node(number)
    node.freeze()
    _wake(victims)
    await asyncio.sleep(seconds)
    node.thaw()
    return harm


async def lose_two_brokers(cluster: MailCluster, victims: Victims, turn: int) -> Harm:
    """Two of three: one killed, one frozen. Nothing is accepted until they are back."""
    number, other = turn % 3 + 1, (turn + 1) % 3 + 1
    harm = Harm(f"broker {number} kill -9, broker {other} SIGSTOP {OUTAGE_SECONDS:.0f} s")
    cluster.brokers.node(other).freeze()
    await asyncio.to_thread(cluster.brokers.node(number).kill)
    _wake(victims)
    await asyncio.sleep(OUTAGE_SECONDS)
    cluster.brokers.node(other).thaw()
    await asyncio.to_thread(cluster.brokers.restart, number)
    return harm


async def lose_spool(cluster: MailCluster, victims: Victims, turn: int) -> Harm:
    """The directory is gone, as a volume that does not answer is, and comes back."""
    assert isinstance(cluster.spool, Volume)
    harm = Harm(f"spool away {AWAY_SECONDS:.0f} s")
    cluster.spool.take_away()
    _wake(victims)
    await asyncio.sleep(AWAY_SECONDS)
    cluster.spool.bring_back()
    return harm


async def freeze_store(cluster: MailCluster, victims: Victims, turn: int) -> Harm:
    """The object store takes connections and says nothing, for longer than anybody waits for it."""
    assert isinstance(cluster.spool, ObjectServer)
    seconds = TIME_LIMIT_SECONDS + 3.0
    harm = Harm(f"object store SIGSTOP {seconds:.0f} s")
    with cluster.spool.frozen():
        _wake(victims)
        await asyncio.sleep(seconds)
    return harm


async def kill_store(cluster: MailCluster, victims: Victims, turn: int) -> Harm:
    """The object store is killed, and refuses connections until it is started again."""
    assert isinstance(cluster.spool, ObjectServer)
    seconds = 2 * AWAY_SECONDS
    harm = Harm(f"object store kill -9, {seconds:.0f} s")
    cluster.spool.kill()
    _wake(victims)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(cluster.spool.start)
    return harm


async def cut_network(cluster: MailCluster, victims: Victims, turn: int) -> Harm:
    """Between the victims and all brokers: for some seconds, or for longer than the group waits and reset."""
    seconds, reset = (cluster.session_seconds + 3.0, True) if turn % 2 else (AWAY_SECONDS, False)
    harm = Harm(f"network cut {seconds:.0f} s" + (", then reset" if reset else ""))
    for victim in victims:
        victim.cut_network(seconds, reset=reset)
    _wake(victims)
    await asyncio.sleep(seconds)
    return harm


MISHAPS: Mapping[str, Mishap] = {
    "kill": kill,
    "freeze": freeze,
    "network": cut_network,
    "broker": lose_broker,
    "spool": lose_spool,
}
RARER: Mapping[str, Mishap] = {"two-brokers": lose_two_brokers, "coordinator": lose_coordinator}  # in the long form
STORED: Mapping[str, Mishap] = {"store-frozen": freeze_store, "store-killed": kill_store}  # where the spool is a store


def _wake(victims: Victims) -> None:
    for victim in victims:
        victim.thaw()
