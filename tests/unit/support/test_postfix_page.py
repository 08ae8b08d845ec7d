"""docs/postfix.md compared with eilpost's settings and log lines, and with the parameters of a real Postfix."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mail.settings import Settings
from tests.support.docs.log_lines import log_keys

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "postfix.md").read_text(encoding="utf-8")

# Names on the page that Postfix documents and `postconf -d` does not list: restrictions, and a family of parameters.
NOT_PARAMETERS = frozenset(
    (
        "reject_unknown_sender_domain",
        "reject_rbl_client",
        "check_policy_service",
        "transport_destination_concurrency_limit",
    )
)
ONE_WORD = frozenset(("myhostname", "mydestination", "mynetworks", "myorigin", "relayhost"))


def _section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _rows(section: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in section.splitlines()]
    return [row for row in rows if row and not set(row[0]) <= set("-")]


def _code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def _settings() -> dict[str, object]:
    """Every setting and its default."""
    settings = Settings()
    return {f"{section}.{key}": value for section in Settings.model_fields for key, value in getattr(settings, section)}


def test_every_setting_on_the_page_exists() -> None:
    rows = _rows(_section("main.cf"))[1:]
    named = {name for row in rows for cell in row[1:] for name in _code(cell) if re.fullmatch(r"[a-z]+\.\w+", name)}
    named |= {name for name in _code(PAGE) if name.partition(".")[0] in Settings.model_fields and "." in name}
    assert len(named) > 30
    assert named - set(_settings()) == set()


def test_defaults_on_the_page_are_those_of_the_code() -> None:
    defaults = _settings()
    assert str(defaults["router.queue_lifetime"]) == "5 days, 0:00:00"
    assert defaults["ingress.max_message_size"] == 25 << 20
    assert (defaults["delivery.max_connections_per_site"], defaults["router.max_recipients_per_delivery"]) == (20, 100)
    assert (defaults["ingress.vrfy"], defaults["ingress.sender_domain_must_resolve"]) == (False, True)


def test_log_lines_on_the_page_have_these_keys() -> None:
    logged = log_keys()
    table = _section("Log lines").partition("\n\n| in Postfix")[0]
    rows = [row for row in _rows(table)[1:] if row[1].startswith("`")]
    assert [row[1] for row in rows] == [
        f"`{event}`" for event in ("message accepted", "command refused", "routed", "attempted", "bounced", "discarded")
    ]
    for _, event, keys in rows:
        assert set(_code(keys)) - logged[event.strip("`")] == set(), event


@pytest.mark.postfix
def test_every_parameter_of_postfix_exists_with_these_defaults() -> None:
    done = subprocess.run(["postconf", "-d"], capture_output=True, text=True, check=True, timeout=30)
    parameters = dict(line.split(" =", 1) for line in done.stdout.splitlines())
    first_cells = " ".join(row[0] for row in _rows(_section("main.cf"))[1:])
    others = _section("main.cf").partition("Always so")[2] + _section("Not in eilpost")
    named = {name for name in _code(first_cells) if re.fullmatch(r"[a-z_0-9]+", name)}
    named |= {name for name in _code(others) if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", name)}
    assert named >= ONE_WORD - {"myorigin"}
    assert named - set(parameters) - NOT_PARAMETERS == set()
    assert parameters["maximal_queue_lifetime"].strip() == "5d"
    assert parameters["default_destination_concurrency_limit"].strip() == "20"
    assert parameters["default_destination_recipient_limit"].strip() == "50"
