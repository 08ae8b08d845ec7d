"""Builders of the PromQL expressions of the dashboards.

Every selector filters by the variables namespace and tenant. A rate is taken over `$__rate_interval`, which Grafana
derives from the scrape interval of the data source.
"""

from __future__ import annotations

SELECTED = 'namespace=~"$namespace",tenant=~"$tenant"'
BY_ROLE = SELECTED + ',role=~"$role"'
ROLES = 'role=~"ingress|router|delivery|mailstore|all"'  # "all": one process with every role (`eilpost up`)
PROCESS = "pod, instance"  # the labels that name a process
WINDOW = "$__rate_interval"


def series(name: str, *, selected: str = SELECTED, **labels: str) -> str:
    """A selector: `eilpost_NAME{...}`, or a `process_` family of the Prometheus client library. A label's value that
    begins with ~ is a regular expression.
    """
    full = name if name.startswith("process_") else f"eilpost_{name}"
    matchers = [
        f'{label}=~"{value[1:]}"' if value.startswith("~") else f'{label}="{value}"' for label, value in labels.items()
    ]
    return f"{full}{{{','.join((selected, *matchers))}}}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def total(name: str, by: str = "", *, selected: str = SELECTED, **labels: str) -> str:
    """The sum of a gauge."""
    return f"sum{_by(by)} ({series(name, selected=selected, **labels)})"


def rate(name: str, by: str = "", *, selected: str = SELECTED, **labels: str) -> str:
    """The sum of a counter's rates, per second."""
    return f"sum{_by(by)} (rate({series(name, selected=selected, **labels)}[{WINDOW}]))"


def quantile(q: float, name: str, by: str = "", *, selected: str = SELECTED, **labels: str) -> str:
    """A quantile of a histogram; by labels, only of those with observations."""
    within = f"{by}, le" if by else "le"
    expression = f"histogram_quantile({q}, {rate(f'{name}_bucket', within, selected=selected, **labels)})"
    return f"{expression} >= 0" if by else expression


def rate_by(name: str, label: str, *, selected: str = SELECTED) -> dict[str, str]:
    """The rates of a counter for each value of a label, by legend."""
    return {_legend(label): rate(name, label, selected=selected)}


def total_by(name: str, label: str, *, selected: str = SELECTED) -> dict[str, str]:
    """The sums of a gauge for each value of a label, by legend."""
    return {_legend(label): total(name, label, selected=selected)}


def by_process(expression: str) -> dict[str, str]:
    """An expression by the labels of `PROCESS`, by legend."""
    return {_legend("process"): process(expression)}


def percentiles(name: str, label: str = "", *, selected: str = SELECTED) -> dict[str, str]:
    """Percentiles of a histogram, by legend: 50, 95 and 99; with a label, 50 and 99 of each of its values."""
    prefix, ranks = (f"{_legend(label)} ", (50, 99)) if label else ("", (50, 95, 99))
    return {f"{prefix}p{rank}": quantile(rank / 100, name, label, selected=selected) for rank in ranks}


def _legend(label: str) -> str:
    return f"{{{{{label}}}}}"


def mean(name: str) -> str:
    """The mean of a histogram's observations."""
    return f"{rate(f'{name}_sum')} / {rate(f'{name}_count')}"


def share(part: str, whole: str) -> str:
    """0 where the whole is 0."""
    return f"{part} / ({whole} > 0) or {whole} * 0"


def process(expression: str) -> str:
    """With a label `process`: the pod, or the instance where there are no pods."""
    named = f'label_replace({expression}, "process", "$1", "instance", "(.+)")'
    return f'label_replace({named}, "process", "$1", "pod", "(.+)")'


def age(name: str, by: str = "", **labels: str) -> str:
    """Seconds since the oldest of some timestamps; 0 means none."""
    selector = series(name, **labels)
    return f"time() - min{_by(by)} ({selector} > 0) or 0 * min{_by(by)} ({selector})"


def late_share(by: str = "") -> str:
    """The share of the first attempts that began more than 60 s after acceptance."""
    count = rate("first_attempt_delay_seconds_count", by)
    punctual = rate("first_attempt_delay_seconds_bucket", by, le="60.0")
    return share(f"({count} - {punctual})", count)
