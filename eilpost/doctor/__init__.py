"""`eilpost doctor`: concurrent checks of all dependencies of a process, each with a time limit.

The only side effects are one probe record in the log and one test content in the spool; both expire by age.
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
    """All findings, in the order of the output."""
    checks = {
        "log": _log(plan),
        "spool": machine.spool(plan),
        "mailboxes": machine.mailboxes(plan),
        "directory": machine.directory(plan),
        "dns": machine.dns(plan),
        "ports": ports.examine(plan.settings),
    }
    results = await asyncio.gather(*(_within(limit_seconds, subject, check) for subject, check in checks.items()))
    return [finding for result in results for finding in result]


async def _within(seconds: float, subject: str, check: Check) -> list[Finding]:
    try:
        async with asyncio.timeout(seconds):
            return await check
    except TimeoutError:
        return [fail(subject, f"no answer within {seconds:.0f} s", "mail waits for it too: fix this first")]
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return [
            fail(subject, f"{path}{error.strerror or error}", "check that it exists and that this user may access it")
        ]


async def _log(plan: Plan) -> list[Finding]:
    scheme, _, path = plan.settings.log.url.partition(":")
    if scheme == "kafka":
        require_package("aiokafka", "log.url", plan.settings.log.url, "kafka")
        from eilpost.doctor import brokers

        other_tenants = {name: log_settings(plan.for_tenant(name)) for name in _dedicated(plan)}
        return await brokers.examine(log_settings(plan), plan.tenant, other_tenants)
    if scheme == "embedded":
        from eilpost.doctor import embedded

        return await embedded.examine(plan.path(path), plan.settings.log)
    return [ok("log", f"{plan.settings.log.url} is not durable: for tests only")]


def _dedicated(plan: Plan) -> list[str]:
    """The dedicated tenants when the shared topics are checked. An unreadable directory is reported by `directory`."""
    if plan.tenant:
        return []
    try:
        return dedicated_tenants(plan)
    except DirectoryUnusable:
        return []
