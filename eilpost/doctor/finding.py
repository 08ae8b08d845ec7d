"""Findings of doctor checks (level, subject, text, advice) and their output.

FAIL: mail is not accepted, is not delivered or could be lost. WARN: eilpost works, but an operator should act.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
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
_WIDEST = 28  # of the column `what`


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice`: one line per action; empty when none is needed."""

    level: Level
    what: str
    text: str
    advice: tuple[str, ...] = ()


def ok(what: str, text: str) -> Finding:
    return Finding(Level.OK, what, text)


def warn(what: str, text: str, *advice: str) -> Finding:
    return Finding(Level.WARN, what, text, advice)


def fail(what: str, text: str, *advice: str) -> Finding:
    return Finding(Level.FAIL, what, text, advice)


def worst(levels: Iterable[Level]) -> Level:
    return max(levels, key=_ORDER.index, default=Level.OK)


def status(levels: Iterable[Level]) -> int:
    """The exit status: 1 when any check fails."""
    return 1 if worst(levels) is Level.FAIL else 0


def write(findings: Sequence[Finding], output: Output) -> None:
    width = min(_WIDEST, max((len(each.what) for each in findings), default=0))
    for each in findings:
        output.write((f"{each.level:<4}", STYLES[each.level]), (f"  {each.what:<{width}}  ", "bold"), (each.text, ""))
        for line in each.advice:
            output.write((" " * 6 + "-> ", "dim"), (line, ""))
    output.write()
    output.write((summary([each.level for each in findings]), "bold"))


def summary(levels: Sequence[Level]) -> str:
    """ "12 checks: all OK", "12 checks: 10 OK, 1 WARN, 1 FAIL"."""
    counts = [(level, levels.count(level)) for level in _ORDER]
    if len(levels) == counts[0][1]:
        return f"{len(levels)} checks: all OK"
    return f"{len(levels)} checks: " + ", ".join(f"{count} {level}" for level, count in counts if count)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"level": worst(each.level for each in findings), "findings": [asdict(each) for each in findings]}
