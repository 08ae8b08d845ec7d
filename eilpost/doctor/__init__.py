"""`eilpost doctor`: looks at everything a process relies on, and says of each thing what is so and what to do.

In charge of which checks there are, of their order on the page, and of an end to each: a check that hangs is a
finding. All of them run at the same time. It changes nothing but a probe in the log and one in the spool, which both
go by age.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from eilpost.doctor import machine, ports
from eilpost.doctor.finding import Finding, fail, ok
from eilpost.tenants import dedicated_tenants
from eilpost.wiring import Plan, log_settings, require_package
from mail.directory import DirectoryUnusable

LIMIT_SECONDS = 30.0

Check = Coroutine[Any, Any, list[Finding]]


async def examine(plan: Plan, limit_seconds: float = LIMIT_SECONDS) -> list[Finding]:
    """All findings, in the order of the page."""
    checks = {
        "log": _log(plan),
        "spool": machine.spool(plan),
        "mailboxes": machine.mailboxes(plan),
        "directory": machine.directory(plan),
        "dns": machine.dns(plan),
        "ports": ports.examine(plan.settings),
    }
    answers = await asyncio.gather(*(_within(limit_seconds, what, check) for what, check in checks.items()))
    return [finding for answer in answers for finding in answer]


async def _within(seconds: float, what: str, check: Check) -> list[Finding]:
    try:
        async with asyncio.timeout(seconds):
            return await check
    except TimeoutError:
        return [fail(what, f"no answer within {seconds:.0f} s", "what hangs here hangs the mail too: look there first")]
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return [fail(what, f"{where}{error.strerror or error}", "see that it is there and may be used by this user")]


async def _log(plan: Plan) -> list[Finding]:
    scheme, _, rest = plan.settings.log.url.partition(":")
    if scheme == "kafka":
        require_package("aiokafka", "log.url", plan.settings.log.url, "kafka")
        from eilpost.doctor import brokers

        others = {name: log_settings(plan.for_tenant(name)) for name in _dedicated(plan)}
        return await brokers.examine(log_settings(plan), plan.tenant, others)
    if scheme == "embedded":
        from eilpost.doctor import embedded

        return await embedded.examine(plan.path(rest), plan.settings.log)
    return [ok("log", f"{plan.settings.log.url} keeps nothing: for tests")]


def _dedicated(plan: Plan) -> list[str]:
    """The tenants with topics of their own, when we look at the shared ones. A directory that cannot be read is
    another check's.
    """
    if plan.tenant:
        return []
    try:
        return dedicated_tenants(plan)
    except DirectoryUnusable:
        return []
