"""The dashboards without Prometheus: made from the code, complete, consistent, and linked with the alerts."""

from __future__ import annotations

import json

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.__main__ import BOARDS, FOLDER
from deploy.grafana.board import Board
from tests.monitoring.queries import annotation_queries, boards, metrics, panel_queries, panels
from tests.monitoring.rules import alerts, records

# Their series come from kube-state-metrics and the kubelet.
OUTSIDE = {"EilpostAutoscalerSaturated", "EilpostVolumeAlmostFull"}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.file)
def test_the_committed_json_is_what_the_code_makes(board: Board) -> None:
    assert (FOLDER / f"{board.file}.json").read_text(encoding="utf-8") == board.json(), "run `make dashboards`"


@pytest.mark.parametrize("board", boards().values(), ids=boards().keys())
def test_the_json_obeys_grafanas_schema(board: dict) -> None:  # type: ignore[type-arg]
    """As far as the SDK's model of it goes: what it does not know, it drops."""
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(json.loads(json.dumps(board)))))
    for annotation in board["annotations"]["list"]:  # fields of the data source's plugin
        for name in ("titleFormat", "tagKeys", "step"):
            annotation.pop(name)
    assert known == board


def test_no_other_dashboard_is_committed() -> None:
    assert {file.stem for file in FOLDER.glob("*.json")} == {board.file for board in BOARDS}


@pytest.mark.parametrize("board", boards().values(), ids=boards().keys())
def test_every_panel_is_described_has_its_own_number_and_place(board: dict) -> None:  # type: ignore[type-arg]
    shown = panels(board)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in shown:
        assert len(panel["description"]) > 15, panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["datasource"]["uid"] == "$datasource" for target in panel["targets"])
        assert panel["type"] in ("table", "heatmap") or panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize("board", boards().values(), ids=boards().keys())
def test_every_board_has_the_variables_it_uses_and_links_to_the_others(board: dict) -> None:  # type: ignore[type-arg]
    names = {variable["name"] for variable in board["templating"]["list"]}
    text = str(board["panels"])
    assert {"datasource", "namespace", "tenant"} <= names
    assert ("$role" in text) == ("role" in names)
    assert board["links"][0]["tags"] == board["tags"] == ["eilpost"]
    uids = {each["uid"] for each in boards().values()}
    for panel in panels(board):
        for link in panel.get("fieldConfig", {"defaults": {}})["defaults"].get("links", ()):
            assert link["url"].partition("?")[0].removeprefix("/d/") in uids


def test_every_query_is_promql() -> None:
    for query in (*panel_queries(), *annotation_queries()):
        assert promql_parser.parse(query.expression), query.where


def test_panels_do_not_depend_on_recording_rules() -> None:
    for query in panel_queries():
        assert not metrics(query.expression) & records().keys(), query.where


def test_the_panel_of_an_alert_shows_what_the_alert_is_about() -> None:
    by_uid = {board["uid"]: board for board in boards().values()}
    inputs = {name: metrics(rule["expr"]) for name, rule in records().items()}
    for name, rule in alerts().items():
        notes = rule["annotations"]
        panel = next(
            each for each in panels(by_uid[notes["__dashboardUid__"]]) if each["id"] == int(notes["__panelId__"])
        )
        of_alert = {part for metric in metrics(rule["expr"]) for part in inputs.get(metric, {metric})}
        of_panel = {
            metric
            for query in panel_queries()
            if f"panel {panel['id']} {panel['title']!r}" in query.where
            for metric in metrics(query.expression)
        }
        assert name in OUTSIDE or of_alert & of_panel, f"{name}: {notes['__dashboardUid__']}, {panel['title']}"
