"""Findings about topics for `eilpost topics check` and `eilpost doctor`. No I/O.

`mail/log/kafka/topics.py` defines the required configuration. A deviation that could lose mail is FAIL, with
log.durability = "dev" WARN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from eilpost.doctor.finding import STYLES, Finding, Level, fail, summary, worst, write_advice
from eilpost.output import Output
from mail.log import LogUnusable
from mail.log.kafka.access import Access
from mail.log.kafka.topics import TopicState, problems, shard_counts_of
from mail.log.topics import Topic
from mail.settings import LogSettings
from mail.units import format_duration, format_size

_CENTURY_MS = 36500 * 86_400_000


@dataclass(frozen=True, slots=True)
class TopicView:
    """One topic. `state` is None when it is missing."""

    level: Level
    name: str
    topic: Topic
    state: TopicState | None
    advice: tuple[str, ...]

    def config(self, key: str) -> str:
        return self.state.config.get(key, "") if self.state is not None else ""


def tenant_option(access: Access) -> str:
    """The additional option of a command for the topics of a dedicated tenant."""
    return f" --tenant {access.tenant}" if access.tenant else ""


def of_tenant(access: Access) -> str:
    """The suffix that names the dedicated tenant, if any."""
    return f" of tenant {access.tenant}" if access.tenant else ""


def topic_views(topic_states: Mapping[Topic, TopicState], access: Access, settings: LogSettings) -> list[TopicView]:
    wrong = list(problems(topic_states, settings))
    create = f"run `eilpost topics create{tenant_option(access)}`"
    views = []
    for topic in access.topics.all:
        name, state = access.topic(topic), topic_states.get(topic)
        if state is None:
            views.append(TopicView(Level.FAIL, name, topic, None, (f"missing: {create}",)))
            continue
        topic_problems = [problem for problem in wrong if problem.topic == name]
        is_fatal = any(problem.fatal for problem in topic_problems) and settings.durability != "dev"
        level = Level.FAIL if is_fatal else Level.WARN if topic_problems else Level.OK
        views.append(TopicView(level, name, topic, state, tuple(problem.text for problem in topic_problems)))
    return views


def count_findings(topic_states: Mapping[Topic, TopicState], access: Access, settings: LogSettings) -> list[Finding]:
    """Errors in the partition counts; none while topics are missing."""
    if len(topic_states) < len(access.topics.all):
        return []
    try:
        shard_counts_of(topic_states, access, settings)
    except LogUnusable as error:
        text, _, advice = str(error).partition(": ")
        return [fail(f"partitions{of_tenant(access)}", text, advice)]
    return []


def findings(topic_states: Mapping[Topic, TopicState], access: Access, settings: LogSettings) -> list[Finding]:
    """A finding per topic and one for wrong partition counts; a single finding when no topic exists."""
    if not topic_states:
        text = f"no topic {access.prefix}*{of_tenant(access)} exists"
        create = f"run `eilpost topics create{tenant_option(access)}`"
        return [fail(f"topics {access.prefix}*", text, create, "or correct log.prefix")]
    topic_findings = [
        Finding(view.level, f"topic {view.name}", _topic_text(view, access), view.advice)
        for view in topic_views(topic_states, access, settings)
    ]
    return topic_findings + count_findings(topic_states, access, settings)


def _topic_text(view: TopicView, access: Access) -> str:
    if view.state is None:
        return f"missing topic{of_tenant(access)}"
    state, min_in_sync = view.state, view.config("min.insync.replicas")
    in_sync = f"{state.in_sync} in sync, min ISR {min_in_sync}"
    return f"partitions: {state.partitions}, replicas: {state.replication} ({in_sync}), retention: {_retention(view)}"


def levels(views: Sequence[TopicView], findings: Sequence[Finding]) -> list[Level]:
    return [*(view.level for view in views), *(finding.level for finding in findings)]


def write(views: Sequence[TopicView], findings: Sequence[Finding], output: Output) -> None:
    """The table of `eilpost topics check`."""
    rows = [tuple(_COLUMNS), *(_row(view) for view in views)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    alignments = [alignment for alignment, _ in _COLUMNS.values()]
    head, *lines = ("  ".join(map("{:{}{}}".format, row, alignments, widths)) for row in rows)
    output.write(("      ", ""), (head, "bold"))
    for view, line in zip(views, lines, strict=True):
        output.write((f"{view.level:<4}", STYLES[view.level]), ("  ", ""), (line, ""))
        write_advice(view.advice, output)
    for finding in findings:
        output.write((f"{finding.level:<4}", STYLES[finding.level]), (f"  {finding.text}", ""))
        write_advice(finding.advice, output)
    output.write()
    output.write((summary(levels(views, findings)), "bold"))


def _row(view: TopicView) -> tuple[str, ...]:
    if view.state is None:
        return (view.name, *("-" for _ in range(len(_COLUMNS) - 1)))
    return tuple(cell(view, view.state) for _, cell in _COLUMNS.values())


def _retention(view: TopicView) -> str:
    if view.topic.compacted and view.config("cleanup.policy") == "compact":
        return "compacted"
    milliseconds, size = _number(view, "retention.ms"), _number(view, "retention.bytes")
    limits = [] if milliseconds is None or milliseconds < 0 else [_duration(milliseconds)]
    limits += [] if size is None or size < 0 else [format_size(size)]
    return " or ".join(limits) or ("until consumed" if view.topic.consumer else "unlimited")


def _duration(milliseconds: int) -> str:
    return format_duration(timedelta(milliseconds=min(milliseconds, _CENTURY_MS)))


def _number(view: TopicView, key: str) -> int | None:
    try:
        return int(view.config(key))
    except ValueError:
        return None


# Alignment and cell of each column of the table.
_COLUMNS: Mapping[str, tuple[str, Callable[[TopicView, TopicState], str]]] = {
    "topic": ("<", lambda view, _: view.name),
    "partitions": (">", lambda _, state: str(state.partitions)),
    "replicas": (">", lambda _, state: str(state.replication)),
    "in sync": (">", lambda _, state: str(state.in_sync)),
    "min ISR": (">", lambda view, _: view.config("min.insync.replicas")),
    "retention": ("<", lambda view, _: _retention(view)),
    "cleanup": ("<", lambda view, _: view.config("cleanup.policy")),
    "unclean election": ("<", lambda view, _: "yes" if _allows_unclean_election(view) else "no"),
    "record max": (">", lambda view, _: format_size(_number(view, "max.message.bytes") or 0)),
}


def _allows_unclean_election(view: TopicView) -> bool:
    return view.config("unclean.leader.election.enable") == "true"


def as_json(views: Sequence[TopicView], findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "level": worst(levels(views, findings)),
        "topics": [
            {
                "level": view.level,
                "topic": view.name,
                "partitions": view.state.partitions if view.state else None,
                "replicas": view.state.replication if view.state else None,
                "in_sync": view.state.in_sync if view.state else None,
                "min_insync_replicas": _number(view, "min.insync.replicas"),
                "retention_ms": _number(view, "retention.ms"),
                "retention_bytes": _number(view, "retention.bytes"),
                "cleanup_policy": view.config("cleanup.policy") or None,
                "unclean_leader_election": _allows_unclean_election(view),
                "max_message_bytes": _number(view, "max.message.bytes"),
                "advice": list(view.advice),
            }
            for view in views
        ],
        "findings": [
            {"level": finding.level, "text": finding.text, "advice": list(finding.advice)} for finding in findings
        ],
    }
