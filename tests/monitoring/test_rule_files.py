"""The rule files without Prometheus: names, severities, texts, runbook pages."""

from __future__ import annotations

import re

from mail.log.kafka.certificates import RENEW_BEFORE
from tests.monitoring.commands import called, why_wrong
from tests.monitoring.rules import ROOT, RUNBOOKS, alerts, records

SECTIONS = ("What it means", "What users notice", "How to check", "What to do", "When it clears")


def test_names_follow_the_conventions() -> None:
    assert all(re.fullmatch(r"Eilpost[A-Z]\w+", name) for name in alerts())
    assert all(re.fullmatch(r"[a-z_]+:eilpost_[a-z_]+:[a-z0-9_]+", name) for name in records())


def test_every_recording_rule_is_used_by_an_alert() -> None:
    expressions = " ".join(rule["expr"] for rule in alerts().values())
    assert [name for name in records() if name not in expressions] == []


def test_every_alert_has_severity_labels_and_runbook() -> None:
    for name, rule in alerts().items():
        notes = rule["annotations"]
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert notes["summary"].endswith("."), name
        assert len(notes["summary"]) <= 90, name
        assert notes["description"].endswith("."), name
        assert notes["runbook_url"] == f"docs/runbooks/{name}.md"
        assert re.fullmatch(r"eilpost-\w+", notes["__dashboardUid__"]), name
        assert notes["__panelId__"].isdigit(), name
        assert notes.keys() == {"summary", "description", "runbook_url", "__dashboardUid__", "__panelId__"}


def test_alerts_and_runbook_pages_correspond() -> None:
    pages = {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == alerts().keys()


def test_index_names_every_alert_with_severity_and_summary() -> None:
    index = (RUNBOOKS / "README.md").read_text()
    for name, rule in alerts().items():
        assert re.search(rf"^\| \[{name}\]\({name}\.md\) \| {rule['labels']['severity']} \| .+ \|$", index, re.M), name


def test_every_page_has_the_same_sections() -> None:
    for name in alerts():
        text = (RUNBOOKS / f"{name}.md").read_text()
        assert text.startswith(f"# {name}\n"), name
        assert tuple(re.findall(r"^## (.+)$", text, re.M)) == SECTIONS, name
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert link.startswith("http") or (RUNBOOKS / link).resolve().is_relative_to(ROOT), name
            assert link.startswith("http") or (RUNBOOKS / link).exists(), (name, link)


def test_pages_name_existing_commands() -> None:
    pages = {page.name: page.read_text() for page in RUNBOOKS.glob("*.md")}
    calls = {(name, call) for name, text in pages.items() for call in called(text)}
    assert len(calls) > 15
    assert {(name, wrong) for name, call in calls if (wrong := why_wrong(call))} == set()


def test_certificate_limit_equals_that_of_readyz_and_doctor() -> None:
    seconds = round(RENEW_BEFORE.total_seconds())
    assert alerts()["EilpostCertificateExpiresSoon"]["expr"].strip().endswith(f"< {seconds}")


def test_documents_name_only_existing_alerts() -> None:
    for page in (ROOT / "docs" / "monitoring.md", *RUNBOOKS.glob("*.md")):
        assert set(re.findall(r"\bEilpost[A-Z]\w+", page.read_text())) <= alerts().keys(), page.name
