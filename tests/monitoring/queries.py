"""Queries of the shipped dashboards and rules, parsed, with Grafana's variables replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import promql_parser

from tests.monitoring.rules import ROOT, rules

DASHBOARDS = ROOT / "helm" / "files" / "dashboards"
_NAMES = re.compile(r"\b(?:eilpost|process)_[a-z0-9_]+\b")
_COMPARISONS = {"==", "!=", "<", "<=", ">", ">="}
_SETS = {"and", "or", "unless"}


@dataclass(frozen=True)
class Query:
    """`where`: the dashboard panel or rule, for messages."""

    where: str
    expression: str


def boards() -> dict[str, dict[str, Any]]:
    """Dashboards by file name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))}


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def filled_in(expression: str, window: str = "1m", span: str = "5m") -> str:
    """Grafana's variables replaced by "all values"."""
    values = {"__rate_interval": window, "__range": span, "__interval": "1s"}
    names = {"namespace": ".*", "role": ".*", "tenant": ".*"}
    return re.sub(r"\$([a-z_]+)", lambda match: (values | names)[match[1]], expression)


def panel_queries(window: str = "1m") -> Iterator[Query]:
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                where = f"{name}, panel {panel['id']} {panel['title']!r}, query {target['refId']}"
                yield Query(where, filled_in(target["expr"], window))


def annotation_queries() -> Iterator[Query]:
    for name, board in boards().items():
        for each in board["annotations"]["list"]:
            yield Query(f"{name}, annotation {each['name']!r}", filled_in(each["expr"]))


def rule_queries() -> Iterator[Query]:
    """Expressions of recording rules, and the compared expression of each alert."""
    for rule in rules():
        name = rule.get("record") or rule["alert"]
        for part in compared(promql_parser.parse(rule["expr"])):
            yield Query(name, part.prettify())


def compared(expression: Any) -> Iterator[Any]:
    """Left-hand sides of the outer comparisons: the series that an alert needs to fire."""
    match expression:
        case promql_parser.ParenExpr():
            yield from compared(expression.expr)
        case promql_parser.BinaryExpr() if str(expression.op) in _COMPARISONS:
            yield from compared(expression.lhs)
        case promql_parser.BinaryExpr() if str(expression.op) in _SETS:
            yield from compared(expression.lhs)
            yield from compared(expression.rhs)
        case _:
            yield expression


def metrics(expression: str) -> set[str]:
    """Names of the metrics that a query selects."""
    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, f"a selector without a name in {expression}"
            found.add(node.name)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def named_in_pages() -> dict[str, set[str]]:
    """Metrics that the pages of docs/ name."""
    pages = (ROOT / "docs").rglob("*.md")
    return {str(page.relative_to(ROOT)): set(_NAMES.findall(page.read_text())) for page in pages}


def family(sample: str, families: Mapping[str, str]) -> str | None:
    """The family of a sample's name among those with known types; None if there is none."""
    if sample in families:
        return sample
    for suffix in ("_total", "_bucket", "_sum", "_count"):
        base = sample.removesuffix(suffix)
        if base != sample and base in families and (suffix == "_total") == (families[base] == "counter"):
            return base
    return None
