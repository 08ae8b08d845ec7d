"""Metric families are declared, limited in children, and have their children from the start."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from delivery import provider
from ingress.session import SessionEnd
from mail.outcome import Outcome
from mail.record import STATES
from mail.telemetry import FAMILIES, REGISTRY, delivery, router
from mailstore.pop3.session import LoginFailure
from tests.support.docs.metrics import CHILDREN_MAX, WIDE, children_max, exported_name, faults, metric_tables

UNITS = ("_seconds", "_bytes", "_records", "_recipients", "_messages", "_deliveries")


def test_every_label_value_is_in_a_closed_list() -> None:
    assert faults(REGISTRY.collect()) == []


def test_undeclared_label_value_is_detected() -> None:
    text = 'eilpost_queue_recipients{state="x.example.test"} 1\neilpost_new 1\neilpost_ready{pod="a"} 1\n'
    text += 'eilpost_delivery_attempts_total{transport="mailbox",provider="google",result="failed"} 1\n'
    found = faults(text_string_to_metric_families(f"# TYPE eilpost_delivery_attempts_total counter\n{text}"))
    assert len(found) == 4


def test_number_of_children_per_family_is_limited() -> None:
    for name, family in FAMILIES.items():
        assert children_max(family) <= WIDE.get(name, CHILDREN_MAX), name


@pytest.mark.parametrize("name", FAMILIES)
def test_family_has_a_unit_and_a_help_text(name: str) -> None:
    family = FAMILIES[name]
    assert name.startswith("eilpost_")
    assert name.endswith("_total") == (family.kind == "counter")
    assert family.help_text.endswith(".")
    assert family.aggregation
    assert family.roles
    if family.kind == "histogram" and name != "eilpost_log_commit_requests":
        assert name.endswith(UNITS)


def test_children_exist_before_the_first_event() -> None:
    code = (
        "import mail.telemetry, pkgutil, importlib\n"
        "for module in pkgutil.iter_modules(mail.telemetry.__path__):\n"
        "    importlib.import_module('mail.telemetry.' + module.name)\n"
        "from prometheus_client import generate_latest\n"
        "print(generate_latest(mail.telemetry.REGISTRY).decode())\n"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    found = {
        exported_name(metric): {
            tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
            for sample in metric.samples
        }
        for metric in text_string_to_metric_families(text)
    }
    few = {name for name, family in FAMILIES.items() if len(found.get(name, ())) < children_max(family)}
    assert few == {
        "eilpost_build_info",  # set with its values
        "eilpost_certificate_expiry_timestamp_seconds",
        "eilpost_delivery_attempts_total",  # providers by LMTP
        "eilpost_delivery_failures_total",
        "eilpost_smtp_connections",  # listeners, when they open (tests/unit/ingress/test_listeners.py)
        "eilpost_smtp_sessions_total",
    }
    deferred = (("provider", "google"), ("result", "deferred"), ("transport", "smtp"))
    assert deferred in found["eilpost_delivery_attempts_total"]
    assert "process_cpu_seconds_total" in text


@pytest.mark.parametrize(
    ("module", "own"),
    [
        ("ingress.server", "ingress"),
        ("router.server", "router"),
        ("delivery.server", "delivery"),
        ("mailstore.pop3.server", "pop3"),
    ],
)
def test_role_does_not_export_families_of_other_roles(module: str, own: str) -> None:
    code = f"import {module}, sys; print(*(name for name in sys.modules if name.startswith('mail.telemetry.')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    loaded = {name.rpartition(".")[2] for name in out.split()}
    assert loaded & {"ingress", "router", "delivery", "pop3"} == {own}


def test_label_values_equal_the_constants_of_the_code() -> None:
    assert tuple(router.STATES) == STATES
    assert set(FAMILIES["eilpost_smtp_sessions_total"].labels["end"]) == {end.value for end in SessionEnd}
    assert set(FAMILIES["eilpost_auth_total"].labels["result"]) == {"ok", *(each.name.lower() for each in LoginFailure)}
    assert set(delivery.RESULTS) == {kind.__name__.lower() for kind in get_args(Outcome)}
    assert set(provider.DOMAINS.values()) == set(delivery.WELL_KNOWN)
    assert len(delivery.WELL_KNOWN) <= 20


def test_metrics_reference_names_each_family_once() -> None:
    names = [line.split("`")[1] for line in metric_tables().splitlines() if line.startswith("| `")]
    assert sorted(names) == sorted(FAMILIES)
