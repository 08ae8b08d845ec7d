"""Outbound connection pool of a process: the asyncio shell of `delivery/assignment.py`.

Connections are limited per site, by its window, and in total. One periodic sweep enforces all deadlines.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import astuple, dataclass
from operator import attrgetter

import structlog

from delivery.assignment import Assignment, Close, Give, Peer, Refuse
from delivery.connection import Connection
from delivery.connector import NOT_CONNECTED, Connector
from delivery.exchangers import Exchangers
from delivery.own_addresses import OwnAddresses, own_names
from delivery.peer import PeerKey
from delivery.site_window import SiteWindows
from delivery.source_addresses import SourceAddresses
from delivery.targets import NoTarget, Target, TargetSelector
from delivery.timeouts import Timeouts
from delivery.transaction import TransactionResult
from delivery.walk import Walk
from mail.reply import Reply
from mail.resolver import Resolver
from mail.route import Route, ToMx
from mail.settings_roles import DeliverySettings
from mail.telemetry.delivery import SLOT_WAIT

logger = structlog.get_logger()

SHUTTING_DOWN = Reply(451, "4.3.2", "This server is shutting down")  # RFC 3463 X.3.2: system not accepting messages
SITE_BACKED_OFF = Reply(451, "4.4.1", "Not tried: the site was unreachable a moment ago")

_RECENT_SUCCESS_SECONDS = 60.0
# A site that worked recently and refuses connections is usually restarting: retry before it is backed off.
_RECONNECT_DELAYS_SECONDS = (0.25, 0.75, 1.5)
_GREETING_SECONDS_IF_FULL = 30.0
_FIRST_ATTEMPT_WITH_FINAL_554 = 3


@dataclass(slots=True, eq=False)
class _Waiting:
    """A delivery that waits for a connection; the result None means that it opens one."""

    takes_used: bool
    walk: Walk
    future: asyncio.Future[Connection | Reply | None]

    @property
    def is_first_choice(self) -> bool:
        return self.walk.is_first_choice

    @property
    def reuse(self) -> bool:
        return self.takes_used and self.is_first_choice

    def accepts(self, connection: Connection) -> bool:
        return self.takes_used and connection.host not in self.walk.hosts_tried

    def done(self) -> bool:
        return self.future.done()


_Peer = Peer[Connection, _Waiting]


class Pool:
    """All outbound connections of this process."""

    def __init__(
        self,
        *,
        settings: DeliverySettings,
        windows: SiteWindows,
        resolver: Resolver,
        hostname: str,
        own_addresses: OwnAddresses,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._sources = SourceAddresses(settings.source_addresses)
        self._source_addresses = self._sources.addresses
        self._exchangers = Exchangers(settings.reconnect_backoff.total_seconds())
        self._targets = TargetSelector(resolver, settings, self._sources, self._exchangers, own_addresses)
        self._ehlo_name = settings.ehlo_name or hostname
        timeouts = timeouts or Timeouts()
        self._connector = Connector(
            self._sources,
            self._exchangers,
            own_names(self._ehlo_name, hostname),
            timeouts=timeouts,
            connect_seconds=settings.connect_timeout.total_seconds(),
            on_closed=self._on_connection_closed,
        )
        self._settings = settings
        self._idle_seconds = settings.idle_timeout.total_seconds()
        self._assignment: Assignment[Connection, _Waiting] = Assignment(windows, settings.max_connections)
        self._sweeper: asyncio.TimerHandle | None = None  # None before the first use and after `close`
        self._sweep_seconds = max(0.01, min(1.0, min(self._idle_seconds, *astuple(timeouts)) / 4))

    def key(self, route: Route) -> PeerKey:
        """What the deliveries of this process need of a connection."""
        return PeerKey(route.site, self._ehlo_name, self._source_addresses)

    async def next_exchanger(self, route: Route, walk: Walk) -> bool:
        """Whether another exchanger, or the last one without PIPELINING, may be asked. Ends the session of the last."""
        walk.end_session()
        may_continue = walk.may_continue(asyncio.get_running_loop().time())
        return may_continue and (await self._targets.has_next(route, walk) or walk.repeat_stalled())

    async def acquire(self, key: PeerKey, route: Route, walk: Walk, *, reuse: bool = True) -> Connection | Reply:
        """A connection ready for a transaction, to a host or address that was not tried in `walk`, a new one unless
        `reuse`; return it with `release`. If there is none, a local reply, 4xx if the cause may be temporary.
        """
        if self._sweeper is None:
            self._sweep()
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            delivery = _Waiting(reuse, walk, loop.create_future())
            peer = self._assignment.add(key, delivery, started)
            self._assign(peer, started)
            if not delivery.done():
                await self._wait(peer, delivery)
                SLOT_WAIT.observe(loop.time() - started)
            acquired = delivery.future.result()
            if acquired is None:
                walk.set_connecting(True)
                try:
                    acquired = await self._open(peer, route, walk)
                finally:
                    walk.set_connecting(False)
            elif isinstance(acquired, Connection) and not acquired.usable:  # closed since it was assigned
                self._assignment.on_unused(peer, None, loop.time())
                self._assign(peer)
                continue
            if isinstance(acquired, Connection):
                acquired.acquired_at = loop.time()
            if acquired is not None:
                return acquired

    def release(self, connection: Connection, result: TransactionResult | None) -> bool:
        """Return a connection after a transaction, None if it was cancelled. True if the connection was stale: lost
        before the final dot, after earlier transactions; then repeat the transaction on a new one.
        """
        now = asyncio.get_running_loop().time()
        peer = self._assignment.peers[connection.key]
        window, exchanger = peer.window, connection.exchanger
        reusable = is_stale = False
        if result is None:
            connection.abort("cancelled")
        elif result.connection_lost:
            connection.quit()  # counts until it is closed
            window.on_overload(window.connections - (connection in peer.connections))
            if connection.session.is_stalled:
                exchanger.on_stalled(is_pipelined=connection.session.is_pipelined)
            if connection.transactions == 1:
                assert result.failure is not None  # of the connection
                reason = result.failure.text
                exchanger.on_first_transaction_failed(reason, now)
                if self._targets.backoff_reason(connection.route, now) is not None:
                    window.on_unreachable(reason, now)
            elif not result.dot_sent:
                is_stale = True
                for idle in [idle for idle in peer.idle if idle.session.remote == connection.session.remote]:
                    self._assignment.take_idle(idle).abort("stale")  # probably
        else:
            window.on_transaction(now - connection.acquired_at, now)
            if result.failure is None:
                exchanger.on_transaction()
            reusable = (
                connection.usable  # else the server closed it after its reply: allowed, and no sign of overload
                and connection.transactions < self._settings.max_messages_per_connection
                and exchanger.backoff_reason(now) is None
                # Mail returns to a better exchanger as soon as it may be tried again.
                and all(self._targets.is_backed_off(connection.route, host, now) for host in connection.better_hosts)
                and not self._assignment.closed
                and not self._assignment.has_to_yield(peer, connection.transactions)
            )
            if not reusable:
                connection.quit()
        self._assignment.on_unused(peer, connection if reusable else None, now)
        self._assign(peer, now)
        return is_stale

    def back_off(self, route: Route, host: str, reply: Reply) -> None:
        """`host` refused for now what another exchanger of the route accepted: new deliveries go to the others."""
        now = asyncio.get_running_loop().time()
        exchanger = self._exchangers.use(host, self._targets.hosts(route)[1])
        exchanger.back_off(reply.text, now)
        for idle in [idle for idle in self._assignment.idle if idle.exchanger is exchanger]:
            self._assignment.take_idle(idle).quit()

    async def close(self) -> None:
        """Send QUIT on every connection and close all within a second."""
        self._assignment.closed = True
        for peer in list(self._assignment.peers.values()):
            self._assign(peer)
        for connection in list(self._assignment.owners):
            connection.quit()
        for _ in range(100):
            if not self._assignment.owners:
                break
            await asyncio.sleep(0.01)
        for connection in list(self._assignment.owners):
            connection.abort("closed")
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    # Assigning

    def _assign(self, peer: _Peer, now: float | None = None) -> None:
        """After every change of a peer: decide who gets which connection, and wake those deliveries."""
        for decision in self._assignment.assign(peer, now or asyncio.get_running_loop().time()):
            match decision:
                case Give(delivery, connection):
                    delivery.future.set_result(connection)
                case Refuse(delivery, reason):
                    refusal = SITE_BACKED_OFF.with_text(f"{SITE_BACKED_OFF.text}: {reason}")
                    delivery.future.set_result(SHUTTING_DOWN if reason is None else refusal)
                case Close(connection):
                    connection.quit()

    async def _wait(self, peer: _Peer, delivery: _Waiting) -> None:
        try:
            await delivery.future
        except asyncio.CancelledError:
            if delivery in peer.waiting:
                peer.waiting.remove(delivery)
            if not delivery.future.cancelled():  # assigned at the same time
                given = delivery.future.result()
                if given is None:
                    self._assignment.on_not_opened(peer)
                elif isinstance(given, Connection):
                    self._assignment.on_unused(peer, given, asyncio.get_running_loop().time())
            self._assign(peer)
            raise

    def _on_connection_closed(self, connection: Connection) -> None:
        peer = self._assignment.on_closed(connection)
        if peer is not None:
            connection.exchanger.connections -= 1
            self._assign(peer)

    # Opening

    async def _open(self, peer: _Peer, route: Route, walk: Walk) -> Connection | Reply | None:
        """A new connection, or why it failed; None if the peer has other connections to wait for."""
        try:
            opened = await self._connect_to_first(peer.key, route, walk)
            for delay_seconds in _RECONNECT_DELAYS_SECONDS:
                if isinstance(opened, Connection) or not self._may_be_restarting(peer, opened, walk):
                    break
                await asyncio.sleep(delay_seconds)
                opened = await self._connect_to_first(peer.key, route, walk)
        except BaseException:
            self._assignment.on_not_opened(peer)
            self._assign(peer)
            raise
        if isinstance(opened, Connection):
            self._assignment.on_opened(peer, opened)
            opened.exchanger.connections += 1
            peer.window.on_greeting()
            self._assign(peer)
            return opened
        self._assignment.on_not_opened(peer)
        reply = self._on_connect_failed(peer, route, opened, walk)
        self._assign(peer)
        return reply

    def _may_be_restarting(self, peer: _Peer, failures: list[NoTarget], walk: Walk) -> bool:
        """Whether the site worked recently and has no other connection."""
        is_recent = asyncio.get_running_loop().time() - peer.window.last_success <= _RECENT_SUCCESS_SECONDS
        is_of_site = any(not (failure.is_without_source or failure.is_by_policy) for failure in failures)
        return is_recent and is_of_site and walk.is_first_choice and peer.count == 1 and not self._assignment.closed

    @staticmethod
    def _rejection(peer: _Peer, route: Route, failures: list[NoTarget], walk: Walk) -> Reply | None:
        """The permanent reply, if every exchanger sent the greeting 521 or 554: tell the sender early (RFC 7504 section
        4). 554 is often about this client and for now, as is any 5xx of a site that worked lately. A relay is a
        setting, which the operator can correct. In Postfix no greeting is permanent (smtp_skip_5xx_greeting).
        """
        rejections = [failure.said for failure in failures if failure.rejects_mail and failure.said is not None]
        if (
            not isinstance(route, ToMx)
            or len(rejections) < len(failures)
            or not walk.is_first_choice
            or peer.count
            or peer.window.last_success != float("-inf")
            or (walk.attempt < _FIRST_ATTEMPT_WITH_FINAL_554 and any(said.code != 521 for said in rejections))
        ):
            return None
        said, remote = rejections[-1], failures[-1].remote
        return Reply(said.code, said.enhanced or "5.3.2", f"{remote} sent the greeting {said}")

    def _on_connect_failed(self, peer: _Peer, route: Route, failures: list[NoTarget], walk: Walk) -> Reply | None:
        """No target could be reached. A temporary failure decides, else a missing source, else a permanent failure."""
        rejection = self._rejection(peer, route, failures, walk)
        if rejection is not None:
            return rejection
        decisive = max(reversed(failures), key=lambda one: 1 if one.is_without_source else 2 * one.reply.is_temporary)
        reply, window = decisive.reply, peer.window
        if not walk.is_first_choice:  # the site is reachable, and the delivery has an outcome of another exchanger
            return reply
        if reply.is_permanent or decisive.is_by_policy or (decisive.is_without_source and not peer.count):
            return reply
        if peer.count:  # other connections are open or opening, so the site is reachable
            window.on_overload(window.connections)
            return None
        if not window.connections:
            window.on_unreachable(reply.text, asyncio.get_running_loop().time())
            logger.warning("site unreachable, its deliveries deferred", site=peer.key.site, reply=str(reply))
        return reply

    async def _connect_to_first(self, key: PeerKey, route: Route, walk: Walk) -> Connection | list[NoTarget]:
        """A connection to the first target that accepts one, or the failures. Hosts that failed count as tried
        when another one accepts.
        """
        clock = asyncio.get_running_loop().time
        failures: list[NoTarget] = []
        failed_addresses: list[str] = []
        async with aclosing(self._targets.targets(route, walk, clock())) as targets:
            async for target in targets:
                if failures and not walk.may_continue(clock()):
                    break
                result = await self._connector.connect(key, target, route) if isinstance(target, Target) else target
                if isinstance(result, Connection):
                    result.better_hosts = walk.better_hosts(target.host)
                    walk.addresses.update(failed_addresses)
                    failed_hosts = {failure.host for failure in failures} - {target.host}
                    for host in failed_hosts - walk.hosts_tried:
                        self._back_off_unreachable(host, route, failures, clock())
                    walk.hosts_tried |= failed_hosts
                    return result
                failures.append(result)
                walk.on_no_target(result.remote, result.said or result.reply)
                if result.is_own:
                    walk.remove_own(result.host)
                    break
                if isinstance(target, Target):
                    failed_addresses.append(target.ip)
        return failures or [NoTarget("", "", NOT_CONNECTED)]

    def _back_off_unreachable(self, host: str, route: Route, failures: list[NoTarget], now: float) -> None:
        """Try `host` last for a while, if it has no open connection; then it is overloaded only."""
        last = next(failure for failure in reversed(failures) if failure.host == host)
        exchanger = self._exchangers.use(host, self._targets.hosts(route)[1])
        if not (exchanger.connections or last.is_by_policy):
            exchanger.back_off(last.reply.text, now)

    # Sweep

    def _close_silent_if_full(self, now: float) -> None:
        """While all connections are in use, servers that do not greet get less time than RFC 5321 section 4.5.3.2.1
        recommends; else they would keep mail from all others (Postfix: stress-adaptive behaviour).
        """
        if not self._assignment.is_full:
            return
        silent = [one for one in self._connector.handshakes if now - one.opened_at >= _GREETING_SECONDS_IF_FULL]
        for connection in sorted(silent, key=attrgetter("opened_at"))[: self._assignment.starved_count]:
            connection.abort("timed out, while all connections are in use")

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(self._sweep_seconds, self._sweep)  # first: an exception below must not end it
        now = loop.time()
        for connection in [*self._assignment.owners, *self._connector.handshakes]:
            connection.check_deadline(now)
        self._close_silent_if_full(now)
        for connection in [idle for idle in self._assignment.idle if now - idle.idle_since >= self._idle_seconds]:
            self._assignment.take_idle(connection).quit()
        for peer in [peer for peer in self._assignment.peers.values() if peer.waiting]:
            self._assign(peer)  # safety net: no delivery may be left behind
        self._sources.recheck_suspended(now)
