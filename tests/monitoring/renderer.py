"""Grafana dashboard renderer for the documentation: same JSON and queries, drawn with matplotlib.

It supports the panel types and options that the dashboards use (stat, timeseries, table, heatmap). Each picture states
that it is not Grafana.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image

from tests.monitoring.queries import filled_in
from tests.monitoring.units import shown
from tests.support.servers.prometheus import Prometheus

COLUMN, ROW, GAP, HEAD = 66, 36, 8, 54  # pixels
DPI = 100
BACK, PANEL, EDGE, TEXT, FAINT, GRID = "#111217", "#181b1f", "#2c3036", "#d8d9da", "#8e929b", "#2a2e34"
PALETTE = ("#73BF69", "#5794F2", "#FF9830", "#B877D9", "#F2495C", "#FADE2A", "#37C2C2", "#FFA6B0", "#8AB8FF", "#C8F2C2")
NAMED = {"transparent": "none", "green": "#73BF69", "red": "#F2495C"}
HEAT = LinearSegmentedColormap.from_list("heat", ("#3a2a1c", "#8a4b12", "#e0752d", "#ffcb7d", "#fff3c4"))
NICE_SECONDS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)
LABEL = "drawn by eilpost's own renderer, not Grafana"


@dataclass(frozen=True)
class Series:
    """One line of a panel; `values` are NaN where there are none."""

    name: str
    times: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        known = self.values[~np.isnan(self.values)]
        return float(known[-1]) if len(known) else float("nan")


@dataclass(frozen=True)
class Span:
    """The drawn period from `begin` to `end`, in seconds since 1970, with rates over `window`."""

    begin: float
    end: float
    window: str = "20s"

    @property
    def step(self) -> float:
        return max(1.0, round((self.end - self.begin) / 240))

    def fill_in(self, expression: str) -> str:
        return filled_in(expression, self.window, f"{self.end - self.begin:.0f}s")


def draw(board: Mapping[str, Any], prometheus: Prometheus, span: Span, file: Path) -> None:
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    wide, high = 24 * COLUMN + 2 * GAP, height * ROW + HEAD + GAP
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 8, "text.color": TEXT}):
        figure = Figure(figsize=(wide / DPI, high / DPI), dpi=DPI, facecolor=BACK)
        canvas = _Canvas(figure, wide, high)
        canvas.text(GAP + 4, 18, board["title"].replace("eilpost / ", ""), size=15, weight="bold")
        canvas.text(GAP + 4, 40, board["description"], size=9, color=FAINT)
        when = f"{datetime.fromtimestamp(span.begin, UTC):%H:%M:%S} to {datetime.fromtimestamp(span.end, UTC):%H:%M:%S}"
        canvas.text(wide - GAP - 4, 18, f"{LABEL}  ·  {when} UTC", size=9, color=FAINT, ha="right")
        for panel in board["panels"]:
            at = panel["gridPos"]
            box = _Box(GAP + at["x"] * COLUMN, HEAD + at["y"] * ROW, at["w"] * COLUMN - GAP, at["h"] * ROW - GAP)
            if panel["type"] == "row":
                canvas.text(box.x, box.y + box.h / 2, f"▾ {panel['title']}", size=10, weight="bold")
            else:
                _PAINTERS[panel["type"]](canvas, box, panel, prometheus, span)
        drawn = io.BytesIO()
        figure.savefig(drawn, facecolor=BACK)
    Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
        file, optimize=True
    )  # a quarter of the size


@dataclass(frozen=True)
class _Box:
    """Position and size in pixels from the upper left."""

    x: float
    y: float
    w: float
    h: float


class _Canvas:
    def __init__(self, figure: Figure, wide: float, high: float) -> None:
        self.figure, self.wide, self.high = figure, wide, high

    def axes(self, x: float, y: float, w: float, h: float, **more: Any) -> Axes:
        axes = self.figure.add_axes((x / self.wide, 1 - (y + h) / self.high, w / self.wide, h / self.high), **more)
        axes.set_facecolor("none")
        return axes

    def text(self, x: float, y: float, text: str, *, size: float = 8, color: str = TEXT, **more: Any) -> None:
        more = {"va": "center", **more}
        self.figure.text(x / self.wide, 1 - y / self.high, text, fontsize=size, color=color, **more)

    def rectangle(self, box: _Box, colour: str) -> None:
        axes = self.axes(box.x, box.y, box.w, box.h)
        axes.set_facecolor(colour)
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_color(EDGE)

    def title(self, box: _Box, text: str, colour: str = TEXT) -> None:
        self.text(box.x + 9, box.y + 14, text, size=10, color=colour)


def _series(panel: Mapping[str, Any], prometheus: Prometheus, span: Span) -> list[Series]:
    times = np.arange(span.begin, span.end + span.step / 2, span.step)
    found = []
    for target in panel["targets"]:
        for each in prometheus.series(span.fill_in(target["expr"]), span.begin, span.end, span.step):
            values = np.full(len(times), np.nan)
            for at, value in each["values"]:
                values[min(len(times) - 1, round((at - span.begin) / span.step))] = value
            found.append(Series(_legend(target.get("legendFormat", ""), each["metric"]), times, values))
    return found


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


def _defaults(panel: Mapping[str, Any]) -> Mapping[str, Any]:
    return panel.get("fieldConfig", {}).get("defaults", {})


def _override(panel: Mapping[str, Any], name: str, what: str) -> Any:
    for each in panel["fieldConfig"].get("overrides", ()):
        if each["matcher"]["options"] == name:
            for item in each["properties"]:
                if item["id"] == what:
                    return item["value"]
    return None


def _threshold(steps: Sequence[Mapping[str, Any]], value: float) -> str:
    colour = steps[0]["color"]
    for step in steps[1:]:
        if value >= step["value"]:
            colour = step["color"]
    return NAMED.get(colour, colour)


def _paint_stat(canvas: _Canvas, box: _Box, panel: Mapping[str, Any], prometheus: Prometheus, span: Span) -> None:
    series = _series(panel, prometheus, span)
    defaults = _defaults(panel)
    value = series[0].last if series else float("nan")
    colour = EDGE if value != value else _threshold(defaults["thresholds"]["steps"], value)
    canvas.rectangle(box, colour)
    dark = "#12141a" if colour != EDGE else TEXT
    if series and not np.isnan(series[0].values).all():
        line = np.nan_to_num(series[0].values)
        axes = canvas.axes(box.x + 1, box.y + box.h * 0.62, box.w - 2, box.h * 0.37)
        axes.fill_between(range(len(line)), line, color="white", alpha=0.22, linewidth=0)
        axes.plot(line, color="white", alpha=0.6, linewidth=1)
        axes.set_xlim(0, len(line) - 1)
        axes.set_ylim(min(0.0, line.min()), max(line.max() * 1.1, 1e-9))
        axes.axis("off")
    text = shown(value, defaults["unit"], defaults.get("decimals")) if series else defaults.get("noValue", "none")
    canvas.title(box, panel["title"], dark)
    size = 30 if box.h > 150 else 25
    size = min(size, 1.5 * (box.w - 20) / max(1, len(text)))
    canvas.text(box.x + box.w / 2, box.y + box.h * 0.5, text, size=size, color=dark, ha="center", weight="bold")


def _paint_lines(canvas: _Canvas, box: _Box, panel: Mapping[str, Any], prometheus: Prometheus, span: Span) -> None:
    canvas.rectangle(box, PANEL)
    canvas.title(box, panel["title"])
    defaults = _defaults(panel)
    custom, unit = defaults["custom"], defaults["unit"]
    series = _series(panel, prometheus, span)
    colours = _colours(panel, [each.name for each in series])
    longest = max((len(each.name) for each in series), default=0)
    legend = min(box.w * 0.5, 168 + 6.8 * longest)
    axes = canvas.axes(box.x + 62, box.y + 32, box.w - 74 - legend, box.h - 60)
    is_stacked = custom.get("stacking", {}).get("mode") == "normal"
    is_log = custom.get("scaleDistribution", {}).get("type") == "log"
    base = np.zeros(len(series[0].times)) if series else np.zeros(1)
    for each in series:
        colour = colours[each.name]
        if custom.get("drawStyle") == "bars":
            axes.bar(each.times, np.nan_to_num(each.values), width=span.step, color=colour, alpha=0.75)
        elif is_stacked:
            top = base + np.nan_to_num(each.values)
            axes.fill_between(each.times, base, top, color=colour, alpha=0.4, linewidth=0)
            axes.plot(each.times, top, color=colour, linewidth=1)
            base = top
        else:
            axes.plot(each.times, each.values, color=colour, linewidth=1.5)
            if not is_log and len(series) <= 4:
                axes.fill_between(each.times, 0, each.values, color=colour, alpha=0.07, linewidth=0)
    if is_log:
        axes.set_yscale("log")
    else:
        top = max(custom.get("axisSoftMax", 0), _top(series, base, is_stacked))
        axes.set_ylim(defaults.get("min", axes.get_ylim()[0]), top)
    for step in defaults.get("thresholds", {}).get("steps", ())[1:]:
        if custom.get("thresholdsStyle", {}).get("mode") == "dashed" and step["value"] <= axes.get_ylim()[1]:
            axes.axhline(step["value"], color=step["color"], linewidth=1, linestyle=(0, (5, 4)))
    _style(axes, span, unit, 6 if box.w > 600 else 3)
    _paint_legend(canvas, _Box(box.x + box.w - legend, box.y + 26, legend, box.h - 30), series, colours, unit)


def _top(series: Sequence[Series], stack: np.ndarray, is_stacked: bool) -> float:
    values = [stack] if is_stacked else [np.nan_to_num(each.values) for each in series]
    highest = max((float(each.max()) for each in values), default=0.0)
    return highest * 1.08 if highest > 0 else 1.0


def _colours(panel: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    fixed = {name: _override(panel, name, "color") for name in names}
    found = {name: each["fixedColor"] for name, each in fixed.items() if each}
    free = [colour for colour in PALETTE if colour not in found.values()]
    others = [name for name in dict.fromkeys(names) if name not in found]
    return found | {name: free[number % len(free)] for number, name in enumerate(others)}


def _style(axes: Axes, span: Span, unit: str, ticks: int = 6) -> None:
    axes.set_xlim(span.begin, span.end)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=FAINT, length=0, labelsize=8)
    low, high = axes.get_ylim()
    if unit == "s" and high - low > 30 and axes.get_yscale() != "log":
        axes.yaxis.set_major_locator(MultipleLocator(_nice((high - low) / 5)))
    elif axes.get_yscale() != "log":
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=unit == "short" and high > 1.5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.xaxis.set_major_locator(MultipleLocator(_nice((span.end - span.begin) / ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"))


def _nice(seconds: float) -> float:
    return next((step for step in NICE_SECONDS if step >= seconds), NICE_SECONDS[-1])


def _paint_legend(canvas: _Canvas, box: _Box, series: Sequence[Series], colours: Mapping[str, str], unit: str) -> None:
    right = box.x + box.w - 10
    canvas.text(right - 72, box.y + 4, "Last", size=8, color=FAINT, ha="right")
    canvas.text(right, box.y + 4, "Max", size=8, color=FAINT, ha="right")
    room = int((box.h - 14) // 16)
    for number, each in enumerate(series[:room]):
        y = box.y + 20 + 16 * number
        if number == room - 1 and len(series) > room:
            canvas.text(box.x + 20, y, f"... {len(series) - room + 1} more", size=8, color=FAINT)
            break
        canvas.text(box.x + 4, y, "━", size=8, color=colours[each.name], weight="bold")
        canvas.text(box.x + 20, y, each.name, size=8)
        known = each.values[~np.isnan(each.values)]
        canvas.text(right - 72, y, shown(each.last, unit), size=8, ha="right")
        canvas.text(right, y, shown(float(known.max()), unit) if len(known) else "-", size=8, ha="right")


def _paint_heat(canvas: _Canvas, box: _Box, panel: Mapping[str, Any], prometheus: Prometheus, span: Span) -> None:
    canvas.rectangle(box, PANEL)
    canvas.title(box, panel["title"])
    found = {float(each.name): each.values for each in _series(panel, prometheus, span)}
    bounds = sorted(found)
    unit = panel["options"]["yAxis"]["unit"]
    counts = np.diff(np.vstack([np.zeros_like(found[bounds[0]]), *(found[bound] for bound in bounds)]), axis=0)
    counts = np.maximum(np.nan_to_num(counts), 0)
    used = np.flatnonzero(counts.sum(axis=1) > 0)
    low, high = (max(0, used.min() - 1), min(len(bounds), used.max() + 2)) if len(used) else (0, len(bounds))
    shown_counts, labels = counts[low:high], bounds[low:high]
    axes = canvas.axes(box.x + 62, box.y + 30, box.w - 140, box.h - 56)
    times = np.arange(counts.shape[1] + 1) * span.step + span.begin
    grid = np.ma.masked_equal(shown_counts, 0)
    mesh = axes.pcolormesh(times, np.arange(len(labels) + 1), grid, cmap=HEAT, vmin=0)
    _style(axes, span, unit)
    axes.set_yticks(np.arange(len(labels)) + 1.0)
    axes.set_yticklabels(["more" if label == float("inf") else shown(label, unit) for label in labels])
    bar = canvas.axes(box.x + box.w - 62, box.y + 36, 9, box.h - 70)
    scale = canvas.figure.colorbar(mesh, cax=bar)
    scale.ax.tick_params(colors=FAINT, length=0, labelsize=7)
    scale.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{shown(value, 'short')}/s"))
    scale.outline.set_visible(False)  # type: ignore[operator]


def _paint_table(canvas: _Canvas, box: _Box, panel: Mapping[str, Any], prometheus: Prometheus, span: Span) -> None:
    canvas.rectangle(box, PANEL)
    canvas.title(box, panel["title"])
    order = next(each["options"] for each in panel["transformations"] if each["id"] == "organize")
    renamed = order["renameByName"]
    columns = sorted(order["indexByName"], key=order["indexByName"].__getitem__)
    labels = [name for name in columns if name not in renamed]
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for target in panel["targets"]:
        head = renamed.get(f"Value #{target['refId']}", renamed.get("Value"))
        for each in prometheus.query(span.fill_in(target["expr"]), at=span.end):
            key = tuple(each["metric"].get(label, "") for label in labels)
            rows.setdefault(key, {})[head] = each["value"]
    heads = [*labels, *(renamed[name] for name in columns if name in renamed)]
    texts = {label: [key[at] for key in rows] for at, label in enumerate(labels)}
    widths = np.array([max(9, *(len(text) for text in (head, *texts.get(head, ())))) + 3.0 for head in heads])
    left = box.x + 12 + np.concatenate([[0], np.cumsum(widths / widths.sum())[:-1]]) * (box.w - 24)
    for x, head in zip(left, heads, strict=True):
        canvas.text(x, box.y + 38, head, size=9, color="#6E9FFF", weight="bold")
    if not rows:
        canvas.text(box.x + box.w / 2, box.y + box.h / 2, _defaults(panel).get("noValue", "none"), size=11, ha="center")
    room = int((box.h - 50) // 20)
    for number, (key, values) in enumerate(sorted(rows.items())[:room]):
        y = box.y + 60 + 20 * number
        for at, (x, head) in enumerate(zip(left, heads, strict=True)):
            if head in labels:
                canvas.text(x, y, key[at], size=9)
            elif head in values:
                _paint_cell(
                    canvas,
                    panel,
                    head,
                    values[head],
                    _Box(x - 6, y - 8, (box.w - 24) * widths[at] / widths.sum() - 4, 17),
                )


def _paint_cell(canvas: _Canvas, panel: Mapping[str, Any], head: str, value: float, box: _Box) -> None:
    thresholds = _override(panel, head, "thresholds")
    colour = TEXT
    if thresholds:
        canvas.rectangle(box, _threshold(thresholds["steps"], value))
        colour = "#12141a"
    canvas.text(box.x + 6, box.y + 9, shown(value, _override(panel, head, "unit")), size=9, color=colour)


_PAINTERS = {"stat": _paint_stat, "timeseries": _paint_lines, "heatmap": _paint_heat, "table": _paint_table}
