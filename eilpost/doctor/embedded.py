"""Doctor checks of the embedded log: running process, backlog, free space. It reads the log as `eilpost queue` does."""

from __future__ import annotations

import os
from pathlib import Path

from eilpost.doctor.finding import Finding, fail, ok
from eilpost.doctor.machine import folder_finding, owner_finding, space_finding
from mail.log import LogUnavailable, LogUnusable
from mail.log.embedded.query_socket import EmbeddedHistory
from mail.log.queue_summary import QueueSummary
from mail.settings import LogSettings


async def examine(path: Path, settings: LogSettings) -> list[Finding]:
    space = space_finding("log space", path.parent, settings.min_free_disk)
    if not os.path.exists(path):  # noqa: ASYNC240
        missing = folder_finding("log", path.parent) or ok("log", f"{path} does not exist yet")
        return [Finding(missing.level, "log", f"{missing.text}; no mail was accepted yet", missing.advice), space]
    return [owner_finding("log", path) or await _log_finding(path), space]


async def _log_finding(path: Path) -> Finding:
    history = EmbeddedHistory(path)
    try:
        is_running = await history.is_running()
        backlog = await history.backlog()
        summary = QueueSummary(limit=1)
        await history.summarize_queue(summary)
        queued = summary.total.deliveries
    except (LogUnusable, LogUnavailable) as error:
        text, _, advice = str(error).partition(": ")
        return fail("log", text, *([advice] if advice else []))
    waiting = (
        f"deliveries in the queue: {queued}; messages not yet routed: {backlog.accepted};"
        f" deliveries not yet attempted: {backlog.dispatched}; attempts not yet recorded: {backlog.attempted}"
    )
    if is_running:
        return ok("log", f"{path}: in use by a running eilpost; {waiting}")
    text = f"{path}: no process is running; {waiting}"
    if queued or backlog.accepted or backlog.dispatched or backlog.attempted:
        return fail("log", text, "mail waits: start `eilpost up`")
    return ok("log", text)
