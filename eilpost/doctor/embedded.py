"""Doctor checks of the embedded log: running process, backlog, damaged records, free space. It reads the log as
`eilpost queue` does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from eilpost import lost_log
from eilpost.doctor.finding import Finding, fail, ok, warn
from eilpost.doctor.machine import folder_finding, owner_finding, space_finding
from eilpost.doctor.quarantine import quarantine_finding
from mail.log import LogUnavailable, LogUnusable
from mail.log.embedded.query_socket import EmbeddedHistory
from mail.log.queue_summary import QueueSummary
from mail.log.topics import EVENTS
from mail.record import WaitCause
from mail.settings import LogSettings

_CHECK_SECONDS = 10.0  # a large log is checked in part
_SHOWN = 5
_DAMAGE_ADVICE = (
    "eilpost puts it into quarantine when it reads it (in `queue`: at its next start), and all other mail continues",
    'check the disk; what is lost: docs/kafka.md, "Damaged records"',
)


async def examine(path: Path, settings: LogSettings, spool: Path | None = None) -> list[Finding]:
    """`spool`: the directory of the spool, if it is one."""
    space = space_finding("log space", path.parent, settings.min_free_disk)
    problem = folder_finding("log", path.parent)
    if lost_log.is_missing(path):
        lost = _lost_finding(path, spool)
        if lost is not None:
            return [lost, space]
    if not os.path.exists(path):  # noqa: ASYNC240
        missing = problem or ok("log", f"{path} does not exist yet")
        return [Finding(missing.level, "log", f"{missing.text}; no mail was accepted yet", missing.advice), space]
    owner = owner_finding("log", path)
    if owner is None and problem is not None:
        owner = fail("log", problem.text, f"make it writable for this user: {path} has the queued mail")
    return [*([owner] if owner is not None else await _log_findings(path)), space]


def _lost_finding(path: Path, spool: Path | None) -> Finding | None:
    state = "is empty" if path.exists() else "does not exist"
    if lost_log.was_used(path):
        return fail("log", f"{path} {state}, but eilpost has run on it: its queued mail is missing", lost_log.ADVICE)
    if spool is not None and lost_log.has_content(spool):
        text = f"{path} {state}, but the spool {spool} has mail: queued mail may be missing"
        return fail("log", text, lost_log.ADVICE)
    return None


async def _log_findings(path: Path) -> list[Finding]:
    history = EmbeddedHistory(path)
    try:
        is_running = await history.is_running()
        backlog = await history.backlog()
        summary = QueueSummary(limit=1)
        await history.summarize_queue(summary)
    except (LogUnusable, LogUnavailable) as error:
        text, _, advice = str(error).rpartition(": ")
        return [fail("log", text or str(error), advice or "keep the file: it has the queued mail")]
    quarantined = sum(
        totals.deliveries for (_, state), totals in summary.totals_by_site.items() if state == WaitCause.CORRUPT
    )
    queued = summary.total.deliveries - quarantined
    waiting = (
        f"deliveries in the queue: {queued}; messages not yet routed: {backlog.accepted};"
        f" deliveries not yet attempted: {backlog.dispatched}; attempts not yet recorded: {backlog.attempted}"
    )
    findings = [quarantine_finding(quarantined)] if quarantined else []
    findings += await _record_findings(history)
    if is_running:
        return [ok("log", f"{path}: in use by a running eilpost; {waiting}"), *findings]
    text = f"{path}: no process is running; {waiting}"
    if queued or backlog.accepted or backlog.dispatched or backlog.attempted:
        return [fail("log", text, "mail waits: start `eilpost up`"), *findings]
    return [ok("log", text), *findings]


async def _record_findings(history: EmbeddedHistory) -> list[Finding]:
    """Decode all records, for at most `_CHECK_SECONDS`."""
    records = 0
    damaged: dict[str, list[str]] = {}
    newer: dict[str, list[str]] = {}
    is_complete = False
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_SECONDS):
                async for page in history.check():
                    records += page.records
                    for found, problems in ((damaged, page.damaged), (newer, page.of_newer_version)):
                        for topic, text in problems:
                            found.setdefault(topic, []).append(text)
                is_complete = True
    except (LogUnusable, LogUnavailable) as error:
        return [warn("records", f"not checked: {error}", "run doctor again")]
    findings = [*_topic_findings(newer, "run the newer version; its shard is stopped until then"), *_damage(damaged)]
    part = "" if is_complete else f"; the check ended after {_CHECK_SECONDS:g} s"
    return findings or [ok("records", f"{records} records of the log can be read{part}")]


def _damage(found: Mapping[str, Sequence[str]]) -> list[Finding]:
    findings = _topic_findings(
        {topic: texts for topic, texts in found.items() if topic != EVENTS.name}, *_DAMAGE_ADVICE
    )
    if events := found.get(EVENTS.name):
        advice = "`eilpost trace` leaves them out; check the disk"
        findings.append(warn(f"records of {EVENTS.name}", _join(events), advice))
    return findings


def _topic_findings(found: Mapping[str, Sequence[str]], *advice: str) -> list[Finding]:
    return [fail(f"records of {topic}", _join(texts), *advice) for topic, texts in found.items()]


def _join(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
