"""Number formats of Grafana for the units that the dashboards use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def _scaled(value: float, steps: Sequence[tuple[float, str]], decimals: int | None) -> str:
    for factor, name in steps:
        if abs(value) >= factor:
            return f"{_number(value / factor, decimals)}{name}"
    return f"{_number(value / steps[-1][0], decimals)}{steps[-1][1]}"


def _number(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _duration(value: float, decimals: int | None) -> str:
    days, hours = divmod(max(0.0, value), 86400)
    if days:
        return f"{days:.0f} d"
    if hours >= 3600:
        return f"{hours / 3600:.0f} h {hours % 3600 / 60:.0f} min"
    return f"{hours / 60:.0f} min {hours % 60:.0f} s" if hours >= 60 else f"{hours:.0f} s"


_SHORT = ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"), (1.0, ""))
_BYTES = ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B"))
_SECONDS = ((86400.0, " day"), (3600.0, " hour"), (60.0, " min"), (1.0, " s"), (1e-3, " ms"), (1e-6, " µs"))
_UNITS: dict[str, Callable[[float, int | None], str]] = {
    "short": lambda value, decimals: _scaled(value, _SHORT, decimals),
    "decbytes": lambda value, decimals: _scaled(value, _BYTES, decimals),
    "Bps": lambda value, decimals: _scaled(value, _BYTES, decimals) + "/s",
    "s": lambda value, decimals: "0 s" if value == 0 else _scaled(value, _SECONDS, decimals),
    "percentunit": lambda value, decimals: f"{_number(value * 100, decimals)} %",
    "dtdurations": _duration,
}


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    if math.isnan(value):
        return "-"
    if unit.startswith("suffix:"):
        return _number(value, decimals) + unit.removeprefix("suffix:")
    return _UNITS[unit](value, decimals)
