"""Panels in the style of all dashboards: stats on a coloured background, lines, stacked areas, tables, heat maps.

A panel's number is part of the contract with the alerts (`__panelId__`), so it is given and not counted. Widths are in
the 24 columns of Grafana's grid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.grafana.promql import rate

Panel: TypeAlias = "stat.Panel | timeseries.Panel | table.Panel | heatmap.Panel"
Levels: TypeAlias = Sequence[tuple[float, str]]  # the colour from each value on
P = TypeVar("P", stat.Panel, timeseries.Panel, table.Panel, heatmap.Panel)

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="$datasource")
PER_SECOND = "suffix: /s"
SECONDS, BYTES, BYTES_PER_SECOND, SHARE, COUNT = "s", "decbytes", "Bps", "percentunit", "short"
GREEN, BLUE, PURPLE, CYAN = "#73BF69", "#5794F2", "#B877D9", "#37C2C2"
YELLOW, ORANGE, RED, DARK_RED, GREY = "#FADE2A", "#FF9830", "#F2495C", "#C4162A", "#8E8E8E"

# One colour for one meaning on all boards: by the label of the legend, "" for legends that are plain words.
_COLOURED: Mapping[str, Mapping[str, str]] = {
    "": {
        GREEN: "delivered stored p50 deliveries 2xx",
        BLUE: "received fetched runnable connections requests 3xx",
        PURPLE: "routed",
        YELLOW: "p95 tempfail",
        ORANGE: "deferred p99 4xx late duplicates",
        RED: "failed 5xx",
        DARK_RED: "rejected",
    },
    "result": {
        GREEN: "accepted delivered ok loaded found hit",
        BLUE: "coalesced",
        YELLOW: "tempfail in_use nodata",
        ORANGE: "deferred unavailable nxdomain miss",
        RED: "failed invalid_credentials error",
        DARK_RED: "rejected",
    },
    "end": {
        GREEN: "quit",
        BLUE: "shutdown",
        YELLOW: "disconnected timeout",
        PURPLE: "not_smtp",
        ORANGE: "rejected slow aborted read_error",
        RED: "too_many_errors internal_error auth_failed",
    },
    "kind": {
        GREEN: "mailbox",
        BLUE: "relay",
        PURPLE: "mx",
        GREY: "unresolved",
        RED: "failed damaged refused",
        ORANGE: "timeout unavailable",
        YELLOW: "unreachable",
        CYAN: "greeting",
    },
    "transport": {GREEN: "mailbox", PURPLE: "smtp", CYAN: "lmtp"},
    "provider": {GREEN: "local", GREY: "other"},
    "state": {
        GREEN: "active",
        BLUE: "runnable",
        YELLOW: "throttled",
        ORANGE: "deferred",
        RED: "held",
        GREY: "unresolved",
    },
    "role": {BLUE: "ingress", PURPLE: "router", GREEN: "delivery", CYAN: "mailstore", GREY: "all"},
    "topic": {GREEN: "accepted", BLUE: "dispatched", PURPLE: "attempted"},
    "entry": {
        BLUE: "accepted",
        CYAN: "expanded",
        YELLOW: "merged",
        GREEN: "delivered",
        RED: "failed",
        GREY: "discarded",
    },
    "direction": {BLUE: "written", GREEN: "read"},
    "tenant": {BLUE: "shared"},
}


def _colours(legends: Iterable[str]) -> dict[str, str]:
    colours: dict[str, str] = {}
    for legend in legends:
        label = re.fullmatch(r"\{\{(\w+)\}\}", legend)
        for colour, names in _COLOURED.get(label[1] if label else "", {}).items():
            colours |= {name: colour for name in names.split() if label or name == legend}
    return colours


def steps(*above: tuple[float, str], base: str = GREEN) -> dashboard.ThresholdsConfig:
    """The colour below the first value, and from each value on."""
    thresholds = [model.Threshold(value=value, color=colour) for value, colour in ((None, base), *above)]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(thresholds)


NEUTRAL = steps((0.0, BLUE))
ANY_IS_BAD = steps((1.0, RED))


def _titled(panel: P, id_: int, title: str, width: int, height: int) -> P:
    return panel.id(id_).title(title).datasource(DATASOURCE).span(width).height(height)


def _query(expression: str, legend: str = "", ref: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref).range().datasource(DATASOURCE)


def _link(board: str, title: str) -> dashboard.DashboardLink:
    variables = "${datasource:queryparam}&${namespace:queryparam}&${tenant:queryparam}"
    return dashboard.DashboardLink(title).url(f"/d/{board}?${{__url_time_range}}&{variables}")


def number(
    id_: int,
    title: str,
    expression: str,
    unit: str = COUNT,
    *,
    board: str = "",
) -> stat.Panel:
    """The last value on a background in its threshold's colour, with its course. `board`: where a click leads."""
    panel = (
        _titled(stat.Panel(), id_, title, 4, 4)
        .with_target(_query(expression))
        .unit(unit)
        .thresholds(NEUTRAL)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .color_mode(options.BigValueColorMode.BACKGROUND_SOLID)
        .graph_mode(options.BigValueGraphMode.AREA)
        .text_mode(options.BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("none")
    )
    if board:
        panel.data_links([_link(board, "Details")])
    return panel


def number_per_second(id_: int, title: str, expression: str, *, board: str = "") -> stat.Panel:
    return number(id_, title, expression, PER_SECOND, board=board).decimals(1)


def percentage(id_: int, title: str, expression: str, *, board: str = "") -> stat.Panel:
    return number(id_, title, expression, SHARE, board=board).decimals(1)


def lines(
    id_: int,
    title: str,
    queries: Mapping[str, str],
    unit: str = PER_SECOND,
    *,
    stacked: bool = False,
    bars: bool = False,
    log: bool = False,
    limits: Levels = (),
    most: float | None = None,
    board: str = "",
) -> timeseries.Panel:
    """Time series. `queries`: expressions by legend. `limits`: thresholds drawn as dashed lines."""
    panel = (
        _titled(timeseries.Panel(), id_, title, 12, 8)
        .targets([_query(query, legend, chr(65 + n)) for n, (legend, query) in enumerate(queries.items())])
        .unit(unit)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .draw_style(options.GraphDrawStyle.BARS if bars else options.GraphDrawStyle.LINE)
        .line_width(1 if stacked else 2)
        .fill_opacity(60 if bars else 35 if stacked else 8)
        .show_points(options.VisibilityMode.NEVER)
        .span_nulls(False)
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.TABLE)
            .placement(options.LegendPlacement.RIGHT)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
    )
    if not log:
        panel.min(0)
    if most is not None:
        panel.axis_soft_max(most)
    if stacked:
        panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if log:
        panel.scale_distribution(common.ScaleDistributionConfig().type(options.ScaleDistribution.LOG).log(10))
    if limits:
        panel.thresholds(steps(*limits, base="transparent"))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED))
    if board:
        panel.data_links([_link(board, "Details")])
    for name, colour in _colours(queries).items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        panel.override_by_name(name, [model.DynamicConfigValue(id_val="color", value=fixed)])
    return panel


def heat_map(id_: int, title: str, histogram: str, unit: str = SECONDS) -> heatmap.Panel:
    """The buckets of a histogram over time."""
    query = _query(rate(f"{histogram}_bucket", "le"), "{{le}}").format(PromQueryFormat.HEATMAP)
    return (
        _titled(heatmap.Panel(), id_, title, 12, 8)
        .with_target(query)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_gap(1)
        .show_legend()
    )


def value_table(
    id_: int,
    title: str,
    columns: Mapping[str, tuple[str, str] | tuple[str, str, Levels]],
    labels: Sequence[str],
    *,
    hidden: Sequence[str] = (),
    empty: str = "none",
) -> table.Panel:
    """A table: one row for each value of `labels`. `columns`: by head, expression, unit and levels of colour."""
    refs = {head: chr(65 + n) for n, head in enumerate(columns)}
    renamed = {"Value" if len(columns) == 1 else f"Value #{ref}": head for head, ref in refs.items()}
    panel = (
        _titled(table.Panel(), id_, title, 24, 8)
        .targets(
            [
                prometheus.Dataquery()
                .expr(expression)
                .ref_id(refs[head])
                .instant()
                .format(PromQueryFormat.TABLE)
                .datasource(DATASOURCE)
                for head, (expression, *_) in columns.items()
            ]
        )
        .with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            model.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": dict.fromkeys(("Time", *hidden), True),
                    "indexByName": {name: n for n, name in enumerate((*labels, *renamed))},
                    "renameByName": renamed,
                },
            )
        )
        .filterable(True)
        .no_value(empty)
    )
    for head, (_expression, unit, *levels) in columns.items():
        properties: list[tuple[str, Any]] = [("unit", unit)]
        if levels:
            properties.append(("thresholds", steps(*levels[0]).build()))
            properties.append(("custom.cellOptions", {"type": "color-background", "mode": "basic"}))
        panel.override_by_name(head, [model.DynamicConfigValue(id_val=name, value=value) for name, value in properties])
    return panel
