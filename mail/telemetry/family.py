"""Declaration of metric families: name, type, meaning, label values, roles that feed them, aggregation.

Label values come from closed lists, never from mail: no domain, address, IP address or queue id. The children of
closed labels exist from the start, so that `rate()` sees the first event. Callers bind children once, not per message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=True)

SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ATTEMPT_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
QUEUE_SECONDS = (
    *(0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 900.0),
    *(3600.0, 14400.0, 86400.0, 172800.0, 432000.0),
)

ROLES = ("ingress", "router", "delivery", "mailstore")

Labels = Mapping[str, Sequence[str]]  # values of each label; no values: they are written at runtime
M = TypeVar("M", bound=MetricWrapperBase)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. `name` is the exposed name; `combinations` are the children that may exist."""

    name: str
    kind: str
    help_text: str
    roles: tuple[str, ...]  # that feed it; a process of another role may export it as 0
    aggregation: str
    labels: Labels
    combinations: frozenset[tuple[str, ...]] | None  # None: any combination of the values


FAMILIES: dict[str, Family] = {}  # by exposed name
_NO_LABELS: Labels = MappingProxyType({})


class Component:
    """Declares the families of one component, which these roles feed."""

    def __init__(self, *roles: str) -> None:
        self._roles = roles

    def counter(
        self,
        name: str,
        help_text: str,
        labels: Labels = _NO_LABELS,
        *,
        combinations: Iterable[tuple[str, ...]] | None = None,
        prepared: Iterable[tuple[str, ...]] | None = None,
    ) -> Counter:
        return self._declare(Counter, name, help_text, "`sum(rate())`", labels, combinations, prepared)

    def gauge(
        self,
        name: str,
        help_text: str,
        labels: Labels = _NO_LABELS,
        *,
        aggregation: str = "`sum`",
        prepared: Iterable[tuple[str, ...]] | None = None,
    ) -> Gauge:
        return self._declare(Gauge, name, help_text, aggregation, labels, None, prepared)

    def histogram(
        self, name: str, help_text: str, labels: Labels = _NO_LABELS, *, buckets: Sequence[float] = SHORT_SECONDS
    ) -> Histogram:
        aggregation = "`histogram_quantile(q, sum by (le) (rate(..._bucket)))`"
        return self._declare(Histogram, name, help_text, aggregation, labels, buckets=buckets)

    def _declare(
        self,
        metric_class: type[M],
        name: str,
        help_text: str,
        aggregation: str,
        labels: Labels,
        combinations: Iterable[tuple[str, ...]] | None = None,
        prepared: Iterable[tuple[str, ...]] | None = None,
        **options: Any,
    ) -> M:
        """Record the family and create its children: those `prepared`, else all that may exist."""
        metric = metric_class(f"eilpost_{name}", help_text, tuple(labels), registry=REGISTRY, **options)
        kind = metric_class.__name__.lower()
        exposed_name = f"eilpost_{name}_total" if kind == "counter" else f"eilpost_{name}"
        allowed = None if combinations is None else frozenset(combinations)
        FAMILIES[exposed_name] = Family(exposed_name, kind, help_text, self._roles, aggregation, labels, allowed)
        if prepared is None and labels:
            prepared = product(*labels.values()) if allowed is None else sorted(allowed)
        for values in prepared or ():
            metric.labels(*values)
        return metric
