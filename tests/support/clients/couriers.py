"""SMTP courier for tests, with a static host resolver and short time-outs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from delivery.own_addresses import OwnAddresses
from delivery.pool import Pool
from delivery.site_window import SiteWindows
from delivery.smtp_courier import SmtpCourier
from delivery.timeouts import Timeouts
from mail.outcome import Outcome
from mail.resolver import AddressAnswer, IpAddresses, MxAnswer
from mail.settings_roles import DeliverySettings

SHORT_TIMEOUTS = Timeouts(0.2, 0.2, 0.2, 0.2, 0.2, 0.2)


class HostResolver:
    """A static resolver of host addresses; an IP address resolves to itself."""

    def __init__(self, **hosts: AddressAnswer) -> None:
        self.hosts = hosts

    async def mx(self, domain: str) -> MxAnswer:
        raise AssertionError("the router queries MX, not the courier")

    async def addresses(self, host: str) -> AddressAnswer:
        return self.hosts.get(host.partition(".")[0]) or IpAddresses((host,))


def new_pool(
    resolver: HostResolver | None = None,
    timeouts: Timeouts | None = None,
    listen: Sequence[tuple[str, int]] = (),
    hostname: str = "us.test",
    **settings: Any,
) -> Pool:
    """`listen`: where this installation listens itself."""
    own_settings = DeliverySettings(**settings)
    own_addresses = OwnAddresses(listen, [(address, own_settings.mx_port) for address in own_settings.own_addresses])
    return Pool(
        settings=own_settings,
        windows=SiteWindows(own_settings.max_connections_per_site, own_settings.reconnect_backoff.total_seconds()),
        resolver=resolver or HostResolver(),
        hostname=hostname,
        own_addresses=own_addresses,
        timeouts=timeouts,
    )


@asynccontextmanager
async def courier(
    resolver: HostResolver | None = None, timeouts: Timeouts | None = None, **settings: Any
) -> AsyncIterator[SmtpCourier]:
    pool = new_pool(resolver, timeouts, **settings)
    try:
        yield SmtpCourier(pool)
    finally:
        await pool.close()


def outcome_names(outcomes: tuple[Outcome, ...]) -> list[str]:
    return [type(outcome).__name__ for outcome in outcomes]
