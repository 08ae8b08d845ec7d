"""Metric families for tests: the tables of docs/reference/metrics.md, sample values, and checks of exported metrics."""

from __future__ import annotations

import importlib
import math
from collections import Counter as Counts
from collections.abc import Iterable, Mapping

from prometheus_client import Counter, Gauge, Histogram, Metric

from mail.telemetry.family import FAMILIES, REGISTRY, ROLES, Family

COMPONENTS = {
    "ingress": "Ingress",
    "router": "Router and queue",
    "delivery": "Delivery",
    "mailstore": "Mailboxes",
    "pop3": "POP3",
    "log": "Message log",
    "spool": "Spool",
    "lookup": "DNS and directory",
    "runtime": "Every process",
}
CHILDREN_MAX = 60  # per family
WIDE = {"eilpost_delivery_attempts_total": 130, "eilpost_delivery_failures_total": 700}  # by provider

_MODULES = {component: importlib.import_module(f"mail.telemetry.{component}") for component in COMPONENTS}


def metric_tables() -> str:
    """A table for each component, from the declarations."""
    lines: list[str] = []
    for component, title in COMPONENTS.items():
        lines += [
            f"### {title}",
            "",
            "| metric | type | labels | meaning | fed by | aggregate |",
            "|---|---|---|---|---|---|",
        ]
        shown: set[str] = set()  # a module may also have names for the children of a family
        for metric in vars(_MODULES[component]).values():
            if isinstance(metric, Counter | Gauge | Histogram) and (family := _family_of(metric)) is not None:
                if family.name in shown:
                    continue
                shown.add(family.name)
                fed_by = "every process" if family.roles == ROLES else ", ".join(family.roles)
                labels = "; ".join(f"`{name}`: {', '.join(values) or 'any'}" for name, values in family.labels.items())
                row = (f"`{family.name}`", family.kind, labels, family.help_text, fed_by, family.aggregation)
                lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines)


def _family_of(metric: Counter | Gauge | Histogram) -> Family | None:
    (described,) = metric.describe()
    return FAMILIES.get(described.name + "_total") or FAMILIES.get(described.name)


def value(name: str, **labels: str) -> float:
    """A sample of this process; 0 if there is none."""
    return REGISTRY.get_sample_value(f"eilpost_{name}", labels) or 0.0


def children_max(family: Family) -> int:
    if family.combinations is not None:
        return len(family.combinations)
    return math.prod(len(values) or 1 for values in family.labels.values())


def allows(family: Family, labels: Mapping[str, str]) -> bool:
    """Whether a child may have these labels."""
    if labels.keys() != family.labels.keys():
        return False
    if family.combinations is not None:
        return tuple(labels[name] for name in family.labels) in family.combinations
    return all(not values or labels[name] in values for name, values in family.labels.items())


def exported_name(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def faults(families: Iterable[Metric]) -> list[str]:
    """Defects of exported families: undeclared, undeclared label value, too many children."""
    found = []
    for metric in families:
        name = exported_name(metric)
        if name.startswith("process_"):
            continue
        family = FAMILIES.get(name)
        if family is None:
            found.append(f"{name} is not declared")
            continue
        children = Counts(
            tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
            for sample in metric.samples
        )
        found += [f"{name} has labels {child}" for child in children if not allows(family, dict(child))]
        if len(children) > WIDE.get(name, CHILDREN_MAX):
            found.append(f"{name} has {len(children)} children")
    return found
