"""Our topics as a cluster has them, judged: for `eilpost topics check` and for `eilpost doctor`.

It asks nothing. What a topic must be is the table of `mail/log/kafka/topics.py`; here it becomes lines for people.
What could lose mail is FAIL, and with log.durability = "dev", where it is allowed, WARN.
Next: `eilpost/doctor/brokers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from eilpost.doctor.finding import STYLES, Finding, Level, fail, summary, worst
from eilpost.paper import Paper
from mail.log import LogUnusable
from mail.log.kafka.access import Access
from mail.log.kafka.topics import Found, counts_of, problems
from mail.log.topics import ALL_TOPICS, EVENTS, Topic
from mail.settings import LogSettings
from mail.units import format_duration, format_size

_CENTURY_MS = 36500 * 86_400_000
_CREATE = "run `eilpost topics create{}`"


@dataclass(frozen=True, slots=True)
class TopicView:
    """One topic. `found` is None when it is missing."""

    level: Level
    name: str
    topic: Topic
    found: Found | None
    advice: tuple[str, ...]

    def config(self, key: str) -> str:
        return self.found.config.get(key, "") if self.found is not None else ""


def option(tenant: str) -> str:
    """What a command for a dedicated tenant's topics has more than one for the shared ones."""
    return f" --tenant {tenant}" if tenant else ""


def of(tenant: str) -> str:
    """Whose, behind a noun."""
    return f" of tenant {tenant}" if tenant else ""


def views(found: Mapping[Topic, Found], access: Access, settings: LogSettings, tenant: str = "") -> list[TopicView]:
    wrong = list(problems(found, settings))
    seen = []
    for topic in ALL_TOPICS:
        name, each = access.topic(topic), found.get(topic)
        if each is None:
            seen.append(TopicView(Level.FAIL, name, topic, None, (f"it is missing: {_CREATE.format(option(tenant))}",)))
            continue
        own = [problem for problem in wrong if problem.topic == name]
        is_fatal = any(problem.fatal for problem in own) and settings.durability != "dev"
        level = Level.FAIL if is_fatal else Level.WARN if own else Level.OK
        seen.append(TopicView(level, name, topic, each, tuple(problem.text for problem in own)))
    return seen


def count_findings(
    found: Mapping[Topic, Found], access: Access, settings: LogSettings, tenant: str = ""
) -> list[Finding]:
    """What is wrong with the partition counts, once all topics are there."""
    if len(found) < len(ALL_TOPICS):
        return []
    try:
        counts_of(found, access, settings)
    except LogUnusable as error:
        text, _, advice = str(error).partition(": ")
        return [fail(f"partitions{of(tenant)}", text, advice)]
    return []


def findings(found: Mapping[Topic, Found], access: Access, settings: LogSettings, tenant: str = "") -> list[Finding]:
    """A finding for each topic, and for counts that do not agree; one for all when there is none."""
    if not found:
        text = f"none of {access.prefix}*{of(tenant)} is there"
        return [fail(f"topics {access.prefix}*", text, _CREATE.format(option(tenant)), "or correct log.prefix")]
    told = [
        Finding(view.level, f"topic {view.name}", _in_words(view, tenant), view.advice)
        for view in views(found, access, settings, tenant)
    ]
    return told + count_findings(found, access, settings, tenant)


def _in_words(view: TopicView, tenant: str) -> str:
    if view.found is None:
        return f"is missing{', a topic' if tenant else ''}{of(tenant)}"
    found, least = view.found, view.config("min.insync.replicas")
    in_sync = f"{found.in_sync} in sync, min ISR {least}"
    return f"partitions: {found.partitions}, replicas: {found.replication} ({in_sync}), kept {_kept(view)}"


_HEAD = ("topic", "partitions", "replicas", "in sync", "min ISR", "kept", "cleanup", "unclean election", "record max")
_LEFT = {0, 5, 6, 7}  # columns of words


def write(seen: Sequence[TopicView], more: Sequence[Finding], paper: Paper) -> None:
    """The table of `eilpost topics check`."""
    rows = [_HEAD, *(_row(view) for view in seen)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    aligned = ["  ".join(map(_cell, range(len(_HEAD)), row, widths)) for row in rows]
    paper.write(("      ", ""), (aligned[0], "bold"))
    for view, line in zip(seen, aligned[1:], strict=True):
        paper.write((f"{view.level:<4}", STYLES[view.level]), ("  ", ""), (line, ""))
        _advise(view.advice, paper)
    for each in more:
        paper.write((f"{each.level:<4}", STYLES[each.level]), (f"  {each.text}", ""))
        _advise(each.advice, paper)
    paper.write()
    paper.write((summary([*(view.level for view in seen), *(each.level for each in more)]), "bold"))


def _cell(column: int, text: str, width: int) -> str:
    return f"{text:<{width}}" if column in _LEFT else f"{text:>{width}}"


def _advise(advice: Sequence[str], paper: Paper) -> None:
    for line in advice:
        paper.write((" " * 6 + "-> ", "dim"), (line, ""))


def _row(view: TopicView) -> tuple[str, ...]:
    if view.found is None:
        return (view.name, *("-" for _ in _HEAD[1:]))
    return (
        view.name,
        str(view.found.partitions),
        str(view.found.replication),
        str(view.found.in_sync),
        view.config("min.insync.replicas"),
        _kept(view),
        view.config("cleanup.policy"),
        "yes" if view.config("unclean.leader.election.enable") == "true" else "no",
        format_size(_number(view, "max.message.bytes") or 0),
    )


def _kept(view: TopicView) -> str:
    """For how long records stay."""
    if view.topic.compacted and view.config("cleanup.policy") == "compact":
        return "until settled"
    milliseconds, size = _number(view, "retention.ms"), _number(view, "retention.bytes")
    limits = [] if milliseconds is None or milliseconds < 0 else [_duration(milliseconds)]
    limits += [] if size is None or size < 0 else [format_size(size)]
    return " or ".join(limits) or ("for ever" if view.topic is EVENTS else "until consumed")


def _duration(milliseconds: int) -> str:
    return format_duration(timedelta(milliseconds=min(milliseconds, _CENTURY_MS)))


def _number(view: TopicView, key: str) -> int | None:
    try:
        return int(view.config(key))
    except ValueError:
        return None


def as_json(seen: Sequence[TopicView], more: Sequence[Finding]) -> dict[str, Any]:
    return {
        "level": worst([*(view.level for view in seen), *(each.level for each in more)]),
        "topics": [
            {
                "level": view.level,
                "topic": view.name,
                "partitions": view.found.partitions if view.found else None,
                "replicas": view.found.replication if view.found else None,
                "in_sync": view.found.in_sync if view.found else None,
                "min_insync_replicas": _number(view, "min.insync.replicas"),
                "retention_ms": _number(view, "retention.ms"),
                "retention_bytes": _number(view, "retention.bytes"),
                "cleanup_policy": view.config("cleanup.policy") or None,
                "unclean_leader_election": view.config("unclean.leader.election.enable") == "true",
                "max_message_bytes": _number(view, "max.message.bytes"),
                "advice": list(view.advice),
            }
            for view in seen
        ],
        "findings": [{"level": each.level, "text": each.text, "advice": list(each.advice)} for each in more],
    }
