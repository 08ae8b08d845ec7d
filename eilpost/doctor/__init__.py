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
from eilpost.wiring import ProcessConfig, log_settings, require_package
from mail.directory import DirectoryUnusable

LIMIT_SECONDS = 30.0

Check = Coroutine[Any, Any, list[Finding]]


async def examine(process_config: ProcessConfig, limit_seconds: float = LIMIT_SECONDS) -> list[Finding]:
    """All findings, in the order of the output."""
    checks = {
        "log": _log(process_config),
        "spool": machine.spool(process_config),
        "mailboxes": machine.mailboxes(process_config),
        "directory": machine.directory(process_config),
        "dns": machine.dns(process_config),
        "ports": ports.examine(process_config.settings),
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


async def _log(process_config: ProcessConfig) -> list[Finding]:
    scheme, _, path = process_config.settings.log.url.partition(":")
    if scheme == "kafka":
        require_package("aiokafka", "log.url", process_config.settings.log.url, "kafka")
        from eilpost.doctor import brokers

        other_tenants = {name: log_settings(process_config.for_tenant(name)) for name in _dedicated(process_config)}
        return await brokers.examine(log_settings(process_config), process_config.tenant, other_tenants)
    if scheme == "embedded":
        from eilpost.doctor import embedded

        spool_scheme, _, spool_path = process_config.settings.spool.url.partition(":")
        spool = process_config.path(spool_path) if spool_scheme == "file" else None
        return await embedded.examine(process_config.path(path), process_config.settings.log, spool)
    return [ok("log", f"{process_config.settings.log.url} is not durable: for tests only")]


def _dedicated(process_config: ProcessConfig) -> list[str]:
    """The dedicated tenants when the shared topics are checked. An unreadable directory is reported by `directory`."""
    if process_config.tenant:
        return []
    try:
        return dedicated_tenants(process_config)
    except DirectoryUnusable:
        return []
