"""The runbook pages name existing panels, chart values, thresholds and output keys."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import yaml

from eilpost.json_output import queue_entry_json, to_json
from mail.record import QueueEntry, WaitCause, Waiting
from tests.monitoring.commands import wrong_keys
from tests.monitoring.rules import RUNBOOKS, alerts
from tests.support.builders import records as samples
from tests.support.docs.chart import CHART

PAGES = {name: (RUNBOOKS / f"{name}.md").read_text() for name in alerts()}
BOARDS = [json.loads(file.read_text()) for file in sorted((CHART / "files" / "dashboards").glob("*.json"))]
UNITS: dict[str, str] = yaml.safe_load((CHART / "files" / "thresholds.yaml").read_text())
THRESHOLD = re.compile(r"[<>]=?\s*([0-9.]+)\s*$")


def _panels(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        yield panel["title"]
        yield from _panels(panel) if "panels" in panel else ()


def wrong_panels(page: str, board_id: str) -> list[str]:
    """Names in italics that are neither a dashboard nor a panel of the dashboard named before them.

    Before the first named dashboard, panels belong to the dashboard of the alert.
    """
    (board,) = [each for each in BOARDS if each["uid"] == board_id]
    wrong = []
    for name in re.findall(r"(?<!\*)\*([^*\s][^*\n]*)\*(?!\*)", page):
        named = [each for each in BOARDS if each["title"] == name]
        if named:
            (board,) = named
        elif name not in _panels(board):
            wrong.append(name)
    return wrong


def test_pages_name_panels_of_the_named_dashboard() -> None:
    found = {
        name: wrong_panels(page, alerts()[name]["annotations"]["__dashboardUid__"]) for name, page in PAGES.items()
    }
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    assert wrong_panels("Dashboard *eilpost / Runtime*: *Lag of accepted*", "eilpost-log") == ["Lag of accepted"]


def test_pages_name_existing_settings_and_chart_values() -> None:
    index = (RUNBOOKS / "README.md").read_text().replace("`settings.router.queue_lifetime`", "`router.queue_lifetime`")
    assert {name: wrong for name, page in {**PAGES, "README": index}.items() if (wrong := wrong_keys(page))} == {}
    assert wrong_keys("`keda.maximum` `router.keda.maxReplicas` `log.deliveryshards`") == [
        "keda.maximum",
        "log.deliveryshards",
    ]


def test_index_has_threshold_unit_and_duration_of_every_alert() -> None:
    index = (RUNBOOKS / "README.md").read_text()
    assert UNITS.keys() <= alerts().keys()
    for name, rule in alerts().items():
        match = THRESHOLD.search(rule["expr"])
        threshold = f"{match[1]}, {UNITS[name]}" if name in UNITS and match else "-"
        (row,) = re.findall(rf"^\| \[{name}\].*$", index, re.M)
        assert row.endswith(f" | {threshold} | {rule.get('for', '-')} |"), name


def test_pages_use_only_programs_of_the_image_and_no_background_port_forward() -> None:
    for name, page in PAGES.items():
        assert "port-forward" not in page, name
        assert not re.search(r"exec \$POD -- (?!eilpost |python )", page), name


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if "python -c" in page])
def test_python_in_a_page_is_valid(name: str) -> None:
    for code in re.findall(r'python -c "\n(.*?)"', PAGES[name], re.S):
        compile(code, name, "exec")


def test_command_for_held_deliveries_parses_the_output_of_eilpost_queue() -> None:
    (code,) = re.findall(r"python3 -c '\n(.*?)'", PAGES["EilpostQuarantinedMessages"], re.S)
    due = samples.NOON + timedelta(hours=1)
    lines = [
        QueueEntry(samples.delivery(number), Waiting(due, why, reason), samples.SPOOLED, 1, samples.LATER)
        for number, why, reason in (
            (1, WaitCause.DEFERRED, "later"),
            (2, WaitCause.HELD, "A bug of the router: KeyError"),
        )
    ]
    printed = to_json([queue_entry_json(line, samples.NOON) for line in lines])
    done = subprocess.run([sys.executable, "-c", code], input=printed, capture_output=True, text=True, timeout=30)
    assert done.stdout == f"{samples.queue_id(2)} A bug of the router: KeyError\n", done.stderr
