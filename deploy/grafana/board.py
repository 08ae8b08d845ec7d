"""Dashboard: variables, links to the other dashboards, alerts as annotations, panels in rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from deploy.grafana.panels import DATASOURCE, Panel

_COLUMNS = 24
_ALL = model.VariableOption(selected=True, text="All", value="$__all")


@dataclass(frozen=True)
class Board:
    """`file` is its name in helm/files/dashboards, `uid` that in addresses and in the alerts' annotations."""

    file: str
    uid: str
    title: str
    description: str
    rows: Sequence[tuple[str, Sequence[Panel]]]  # the first row has no heading
    by_role: bool = False  # panels filter by the variable role

    def json(self) -> str:
        document: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True, indent=2).encode(self._build().build()))
        for annotation in document["annotations"]["list"]:  # Prometheus' own fields, which the SDK does not know
            annotation |= {"titleFormat": "{{alertname}}", "tagKeys": "severity,namespace,tenant,role", "step": "60s"}
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def _build(self) -> dashboard.Dashboard:
        board = (
            dashboard.Dashboard(f"eilpost / {self.title}")
            .uid(self.uid)
            .description(self.description)
            .tags(["eilpost"])
            .timezone("browser")
            .time("now-1h", "now")
            .refresh("30s")
            .editable()
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .with_variable(
                dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").multi(False)
            )
            .with_variable(_variable("namespace", "Namespace", "label_values(eilpost_ready, namespace)"))
            .with_variable(
                _variable("tenant", "Tenant", 'label_values(eilpost_ready{namespace=~"$namespace"}, tenant)')
            )
            .link(
                dashboard.DashboardLink("eilpost")
                .type(model.DashboardLinkType.DASHBOARDS)
                .tags(["eilpost"])
                .include_vars(True)
                .keep_time(True)
            )
            .annotation(
                dashboard.AnnotationQuery()
                .name("Alerts")
                .datasource(DATASOURCE)
                .enable(True)
                .icon_color("red")
                .expr('ALERTS{alertname=~"Eilpost.*",alertstate="firing",namespace=~"$namespace"}')
            )
        )
        if self.by_role:
            board.with_variable(_variable("role", "Role", 'label_values(eilpost_ready{namespace=~"$namespace"}, role)'))
        self._place(board)
        return board

    def _place(self, board: dashboard.Dashboard) -> None:
        y = 0
        for number, (heading, panels) in enumerate(self.rows):
            if heading:
                at = model.GridPos(h=1, w=_COLUMNS, x=0, y=y)
                board.with_row(dashboard.Row(heading).id(900 + number).grid_pos(at))
                y += 1
            x = height = 0
            for panel in panels:
                size = panel.build().grid_pos
                assert size is not None
                if x + size.w > _COLUMNS:
                    x, y, height = 0, y + height, 0
                board.with_panel(panel.grid_pos(model.GridPos(h=size.h, w=size.w, x=x, y=y)))
                x, height = x + size.w, max(height, size.h)
            y += height


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(_ALL)
    )
