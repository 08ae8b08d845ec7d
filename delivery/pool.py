"""Outbound connection pool of a process, keyed by site.

Connections are limited per site (`SiteConcurrency`) and in total. A waiting delivery is woken when a connection is
idle or may be opened and when its site is found unreachable. One periodic sweep enforces all deadlines.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import astuple

import structlog

from delivery.client_session import ClientSession, Timeouts
from delivery.connection import Connection
from delivery.site import Site
from delivery.site_concurrency import SiteConcurrency
from delivery.source_addresses import NoSource, SourceAddresses
from delivery.targets import NoTarget, Target, TargetSelector
from mail.reply import Reply
from mail.route import RelayProtocol, Route, ToRelay
from mail.settings_roles import DeliverySettings
from mail.telemetry.delivery import CONNECTION_ERRORS, SLOT_WAIT

logger = structlog.get_logger()

# Local replies. RFC 3463 section 3.4: system not accepting messages; section 3.5: X.4.1 no answer from host, X.4.2 bad
# connection.
SHUTTING_DOWN = Reply(451, "4.3.2", "This server is shutting down")
SITE_BACKED_OFF = Reply(451, "4.4.1", "Not tried: the site was unreachable a moment ago")
CONNECTION_TIMED_OUT = Reply(451, "4.4.1", "connection timed out")
CONNECTION_REFUSED = Reply(451, "4.4.1", "connection refused")
NOT_CONNECTED = Reply(451, "4.4.1", "not connected")
CONNECTION_LOST = Reply(451, "4.4.2", "connection lost")

_SITE_RETENTION_SECONDS = 600.0  # the state of a site without connections is dropped after this time
_SITES_MAX = 5000  # beyond it, the state of every site without connections is dropped at once
_RECENT_SUCCESS_SECONDS = 60.0
_YIELD_AFTER_TRANSACTIONS = 20  # a site then closes its last connection if another site has none
# A site that worked recently and refuses connections is usually restarting: retry before it is backed off.
_RECONNECT_DELAYS_SECONDS = (0.25, 0.75, 1.5)


class Pool:
    """All outbound connections of this process."""

    def __init__(
        self,
        *,
        targets: TargetSelector,
        settings: DeliverySettings,
        hostname: str,
        sources: SourceAddresses | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._targets = targets
        self._hostname = hostname
        self._sources = sources or SourceAddresses(())
        self._timeouts = timeouts or Timeouts()
        self._connections_per_site = settings.max_connections_per_site
        self._connections_max = settings.max_connections
        self._idle_seconds = settings.idle_timeout.total_seconds()
        self._messages_per_connection = settings.max_messages_per_connection
        self._connect_seconds = settings.connect_timeout.total_seconds()
        self._backoff_seconds = settings.reconnect_backoff.total_seconds()
        self._sites: dict[str, Site] = {}
        self._starved: dict[Site, None] = {}  # sites that wait because of the total limit, longest first
        self._connections: dict[Connection, Site] = {}
        self._handshakes: set[Connection] = set()
        self._total = 0
        self._closed = False
        self._sweeper: asyncio.TimerHandle | None = None  # None before the first use and after `close`
        self._sweep_seconds = max(0.01, min(1.0, min(self._idle_seconds, *astuple(self._timeouts)) / 4))

    async def acquire(self, route: Route, *, reuse: bool = True) -> Connection | Reply:
        """A connection ready for a transaction, a new one unless `reuse`; return it with `release`. If there is none, a
        local reply, 4xx if the cause may be temporary.
        """
        if self._sweeper is None:
            self._sweep()
        name = route.site
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = Site(name, SiteConcurrency(self._connections_per_site, self._backoff_seconds))
        while True:
            site = self._sites.setdefault(name, site)  # the sweep may have dropped the site during a wait
            now = asyncio.get_running_loop().time()
            site.last_used = now
            if self._closed:
                return SHUTTING_DOWN
            is_below_limit = site.count < site.concurrency.connection_limit
            if not reuse and site.idle and not (is_below_limit and self._total < self._connections_max):
                site.idle.pop(0).abort("connection limit")
                await asyncio.sleep(0)  # until connection_lost was called
                continue
            while site.idle and reuse:
                connection = site.idle.pop()
                if connection.usable:
                    return connection
                connection.abort("no longer usable")
            if not site.connections and (reason := site.concurrency.backoff_reason(now)) is not None:
                site.wake_waiter()  # each woken waiter wakes the next
                return SITE_BACKED_OFF.with_text(f"{SITE_BACKED_OFF.text}: {reason}")
            if is_below_limit:
                if self._total < self._connections_max:
                    opened = await self._open(site, route)
                    if opened is not None:
                        return opened
                    continue  # wait for one of the site's other connections
                self._starved[site] = None
                self._close_oldest_idle(site)
            released = await self._wait_for_connection(site)
            if released is not None:
                if released.usable and reuse:
                    return released
                released.quit()

    def drop_idle(self, route: Route, remote: str) -> None:
        """A connection to `remote` was stale: close its idle connections, which are probably stale too."""
        site = self._sites.get(route.site)
        if site is not None:
            for connection in [idle for idle in site.idle if idle.session.remote == remote]:
                site.idle.remove(connection)
                connection.abort("stale")

    def release(
        self, route: Route, connection: Connection, *, connection_lost: bool = False, failure: str | None = None
    ) -> None:
        """Return a connection after a transaction. `connection_lost`: the connection broke; `failure`: the reason, if
        it was the first transaction.
        """
        now = asyncio.get_running_loop().time()
        site = self._sites.get(route.site)
        if site is None:  # dropped during a transaction of many minutes
            connection.abort("closed")
            return
        if connection_lost:
            if connection in site.connections:  # counts until it is closed
                connection.quit()
            site.concurrency.on_overload(site.count - (connection in site.connections))
            if failure is not None:
                site.concurrency.on_first_transaction_failed(failure, now)
            return
        site.last_success = site.last_used = now
        site.concurrency.on_success()
        if (
            self._closed
            or not connection.usable  # the server closed it after its reply: allowed, and no sign of overload
            or connection.transactions >= self._messages_per_connection
            or self._has_to_yield(site, connection)
        ):
            connection.quit()
        elif not site.wake_waiter(connection):
            if self._starved:
                connection.quit()  # other sites wait for the total limit
            else:
                connection.idle_since = now
                site.idle.append(connection)
        if site.waiters and site.count < site.concurrency.connection_limit:
            site.wake_waiter()  # the limit has grown

    def _has_to_yield(self, site: Site, connection: Connection) -> bool:
        """Whether `connection` must be closed because the total limit leaves another site without a connection."""
        if site.count == 1 and connection.transactions % _YIELD_AFTER_TRANSACTIONS:
            return False
        return any(starved.waiters and not starved.count for starved in self._starved)

    async def close(self) -> None:
        """Send QUIT on every connection and close all within a second."""
        self._closed = True
        for site in self._sites.values():
            site.idle.clear()
            while site.wake_waiter():
                pass
        for connection in list(self._connections):
            connection.quit()
        for _ in range(100):
            if not self._connections:
                break
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort("closed")
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    # Opening

    async def _open(self, site: Site, route: Route) -> Connection | Reply | None:
        """A new connection, or why it failed; None if the site has other connections to wait for."""
        site.opening += 1
        self._total += 1
        opened: Connection | None = None
        try:
            delays = iter(_RECONNECT_DELAYS_SECONDS)
            while True:
                failures: list[Reply] = []
                without_source: list[Reply] = []  # not a failure of the site
                async with aclosing(self._targets.targets(route)) as targets:
                    async for target in targets:
                        if isinstance(target, NoTarget):
                            (without_source if target.is_without_source else failures).append(target.reply)
                            continue
                        try:
                            result = await self._connect(target, route)
                        except NoSource as error:
                            without_source.append(error.reply)
                            continue
                        if isinstance(result, Connection):
                            opened = result
                            break
                        failures.append(result)
                if opened is not None:
                    break
                now = asyncio.get_running_loop().time()
                delay = next(delays, None)
                if (
                    delay is None
                    or not failures
                    or site.count > 1
                    or now - site.last_success > _RECENT_SUCCESS_SECONDS
                    or self._closed
                ):
                    break
                await asyncio.sleep(delay)
        finally:
            site.opening -= 1
            if opened is not None and opened.usable:
                site.connections.add(opened)
                self._connections[opened] = site
            else:
                self._total -= 1
                if opened is not None:
                    opened.abort("closed")
                self._wake_waiters(site)
        if opened is not None:
            if not opened.usable:
                return CONNECTION_LOST.about(opened.session.remote)
            return opened
        if without_source and not any(failure.is_temporary for failure in failures):
            if not site.count:
                return without_source[-1]
            failures += without_source
        return self._on_connect_failed(site, failures)

    def _on_connect_failed(self, site: Site, failures: list[Reply]) -> Reply | None:
        """No target could be reached. A temporary failure takes precedence over permanent ones."""
        reply = next((failure for failure in reversed(failures) if failure.is_temporary), failures[-1])
        if reply.is_permanent:
            return reply
        if site.count:  # other connections are open or opening, so the site is reachable
            site.concurrency.on_overload(site.count)
            return None
        site.concurrency.on_unreachable(reply.text, asyncio.get_running_loop().time())
        logger.warning("site unreachable, its deliveries deferred", site=site.name, reply=str(reply))
        while site.wake_waiter():  # all waiters check again and get the reply
            pass
        return reply

    async def _connect(self, target: Target, route: Route) -> Connection | Reply:
        """Connect to one address up to READY, or return the failure. Raises NoSource."""
        remote = str(target)
        protocol = route.protocol if isinstance(route, ToRelay) else RelayProtocol.SMTP
        session = ClientSession(self._hostname, remote, protocol)
        connection = Connection(session, self._timeouts, self._on_connection_closed, asyncio.get_running_loop())
        try:
            async with asyncio.timeout(self._connect_seconds):
                await self._sources.connect(lambda: connection, target.ip, target.port)
        except TimeoutError:
            CONNECTION_ERRORS.labels("timeout").inc()
            return CONNECTION_TIMED_OUT.about(remote)
        except ConnectionRefusedError:
            CONNECTION_ERRORS.labels("refused").inc()
            return CONNECTION_REFUSED.about(remote)
        except OSError as error:
            CONNECTION_ERRORS.labels("unreachable").inc()
            return NOT_CONNECTED.with_text(error.strerror or type(error).__name__).about(remote)
        self._handshakes.add(connection)
        try:
            refusal = await connection.handshake()
        except asyncio.CancelledError:
            connection.abort("cancelled")
            raise
        finally:
            self._handshakes.discard(connection)
        if refusal is None:
            return connection
        CONNECTION_ERRORS.labels("greeting").inc()
        return refusal

    # Waiting

    async def _wait_for_connection(self, site: Site) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        site.waiters.append(waiter)
        started = asyncio.get_running_loop().time()
        try:
            connection = await waiter
            SLOT_WAIT.observe(asyncio.get_running_loop().time() - started)
            return connection
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # A connection handed over at the same time goes to the next waiter.
                connection = waiter.result()
                if not site.wake_waiter(connection) and connection is not None:
                    connection.idle_since = asyncio.get_running_loop().time()
                    site.idle.append(connection)
                self._wake_starved()
            raise

    def _on_connection_closed(self, connection: Connection) -> None:
        site = self._connections.pop(connection, None)
        if site is None:
            return
        site.connections.discard(connection)
        if connection in site.idle:
            site.idle.remove(connection)
        self._total -= 1
        self._wake_waiters(site)

    def _wake_waiters(self, site: Site) -> None:
        """A connection may be opened: sites that wait for the total limit come first, or busy ones starve them."""
        self._wake_starved()
        site.wake_waiter()

    def _wake_starved(self) -> None:
        while self._starved and self._total < self._connections_max:
            starved = next(iter(self._starved))
            del self._starved[starved]
            if starved.wake_waiter():
                break

    def _close_oldest_idle(self, waiting_site: Site) -> None:
        """Close the longest-idle connection of another site, because the total limit is reached."""
        oldest = min(
            (site.idle[0] for site in self._sites.values() if site.idle and site is not waiting_site),
            key=lambda connection: connection.idle_since,
            default=None,
        )
        if oldest is not None:
            self._connections[oldest].idle.remove(oldest)
            oldest.quit()

    # Sweep

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in [*self._connections, *self._handshakes]:
            connection.check_deadline(now)
        retention_seconds = _SITE_RETENTION_SECONDS if len(self._sites) <= _SITES_MAX else 0.0
        for name, site in list(self._sites.items()):
            while site.idle and now - site.idle[0].idle_since >= self._idle_seconds:
                site.idle.pop(0).quit()
            if site.waiters and not site.count:
                site.wake_waiter()  # safety net: no waiter may be left behind
            if (
                not site.count
                and not site.waiters
                and now - site.last_used > retention_seconds
                and site.concurrency.backoff_reason(now) is None
            ):
                del self._sites[name]
        self._wake_starved()  # a woken site may have opened no connection
        self._sources.recheck_suspended(now)
        if not self._closed or self._connections:
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_seconds, self._sweep)
