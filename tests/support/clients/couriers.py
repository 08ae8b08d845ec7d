"""SMTP courier for tests, with a static host resolver and short time-outs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from delivery.client_session import Timeouts
from delivery.smtp_courier import SmtpCourier
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


@asynccontextmanager
async def courier(
    resolver: HostResolver | None = None, timeouts: Timeouts | None = None, **settings: Any
) -> AsyncIterator[SmtpCourier]:
    smtp = SmtpCourier(
        settings=DeliverySettings(**settings),
        hostname="us.test",
        resolver=resolver or HostResolver(),
        timeouts=timeouts,
    )
    try:
        yield smtp
    finally:
        await smtp.close()


def outcome_names(outcomes: tuple[Outcome, ...]) -> list[str]:
    return [type(outcome).__name__ for outcome in outcomes]
