"""Findings of doctor checks (level, subject, text, advice) and their output.

FAIL: mail is not accepted, is not delivered or could be lost. WARN: eilpost works, but an operator should act.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from eilpost.output import Output


class Level(StrEnum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
_ORDER = (Level.OK, Level.WARN, Level.FAIL)
RIGHTS = "add the ACL on the brokers; processes recover without a restart"
_SUBJECT_WIDTH_MAX = 28


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice`: one line per action; empty when none is needed."""

    level: Level
    subject: str
    text: str
    advice: tuple[str, ...] = ()


def ok(subject: str, text: str) -> Finding:
    return Finding(Level.OK, subject, text)


def warn(subject: str, text: str, *advice: str) -> Finding:
    return Finding(Level.WARN, subject, text, advice)


def fail(subject: str, text: str, *advice: str) -> Finding:
    return Finding(Level.FAIL, subject, text, advice)


def worst(levels: Iterable[Level]) -> Level:
    return max(levels, key=_ORDER.index, default=Level.OK)


def status(levels: Iterable[Level]) -> int:
    """The exit status: 1 when any check fails."""
    return 1 if worst(levels) is Level.FAIL else 0


def write(findings: Sequence[Finding], output: Output) -> None:
    width = min(_SUBJECT_WIDTH_MAX, max((len(finding.subject) for finding in findings), default=0))
    for finding in findings:
        subject = (f"  {finding.subject:<{width}}  ", "bold")
        output.write((f"{finding.level:<4}", STYLES[finding.level]), subject, (finding.text, ""))
        write_advice(finding.advice, output)
    output.write()
    output.write((summary([finding.level for finding in findings]), "bold"))


def write_advice(advice: Sequence[str], output: Output) -> None:
    for line in advice:
        output.write((" " * 6 + "-> ", "dim"), (line, ""))


def summary(levels: Sequence[Level]) -> str:
    """ "12 checks: all OK", "12 checks: 10 OK, 1 WARN, 1 FAIL"."""
    counts = [(level, levels.count(level)) for level in _ORDER]
    if len(levels) == counts[0][1]:
        return f"{len(levels)} checks: all OK"
    return f"{len(levels)} checks: " + ", ".join(f"{count} {level}" for level, count in counts if count)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "level": worst(finding.level for finding in findings),
        "findings": [
            {"level": finding.level, "what": finding.subject, "text": finding.text, "advice": list(finding.advice)}
            for finding in findings
        ],
    }
