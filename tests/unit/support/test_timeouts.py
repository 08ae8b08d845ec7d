"""Order of the time-outs that depend on each other: the table in docs/design.md and the values in the code."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from delivery import mailbox_courier
from delivery.timeouts import Timeouts
from eilpost.wiring import delivery_id_retention
from mail.log.kafka.membership import COORDINATOR_SHARE
from mail.log.kafka.timeouts import TIMEOUTS as KAFKA
from mail.settings import Settings
from mail.spool import object_spool
from mailstore.maildir import mailbox_lock

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| .+ \|$", PAGE.partition("## Time-outs that depend")[2], re.MULTILINE)[1:]
VALUES = yaml.safe_load((ROOT / "helm" / "values.yaml").read_text(encoding="utf-8"))["defaults"]

SETTINGS = Settings()
APPEND = SETTINGS.log.append_timeout.total_seconds()
SESSION = SETTINGS.log.session_timeout.total_seconds()
DRAIN = SETTINGS.node.drain_timeout.total_seconds()
LIFETIME = SETTINGS.router.queue_lifetime.total_seconds()
UNITS = {"ms": 0.001, "s": 1, "min": 60, "d": 86_400}

# The values of each row, in its order.
SHORTER_AND_LONGER = (
    (object_spool.TIME_LIMIT_SECONDS, APPEND),
    (APPEND, Timeouts().dot_seconds),
    (KAFKA.request_seconds, APPEND),
    (KAFKA.check_seconds, KAFKA.request_seconds),
    (KAFKA.transaction_commit_seconds, KAFKA.transaction_seconds),
    (SESSION * COORDINATOR_SHARE, SESSION),
    (KAFKA.heartbeat_seconds, SESSION),
    (KAFKA.pause_check_seconds, SESSION),
    (KAFKA.offset_commit_seconds, KAFKA.drain_seconds),
    (KAFKA.drain_seconds, KAFKA.rebalance_seconds),
    (KAFKA.rebalance_seconds, KAFKA.join_seconds),
    (KAFKA.stuck_seconds + KAFKA.stuck_recheck_seconds, KAFKA.delivery_arrival_seconds),
    (mailbox_lock.LOCK_SECONDS, mailbox_courier.APPEND_TIMEOUT_SECONDS),
    (DRAIN, VALUES["preStopSeconds"] + VALUES["drainSeconds"] + 10),
    (LIFETIME, SETTINGS.spool.retention.total_seconds()),
    (LIFETIME, delivery_id_retention(SETTINGS).total_seconds()),
)


def _stated_seconds(cell: str) -> float | None:
    stated = re.search(r"([\d.]+) (ms|s|min|d)\b", re.sub(r"`[^`]*` \+ .*", "", cell))
    return float(stated[1]) * UNITS[stated[2]] if stated else None


@pytest.mark.parametrize(
    ("row", "values"),
    list(zip(ROWS, SHORTER_AND_LONGER, strict=True)),
    ids=[f"{number}" for number in range(1, len(ROWS) + 1)],
)
def test_the_shorter_time_out_is_shorter_and_the_page_states_both(
    row: tuple[str, str], values: tuple[float, float]
) -> None:
    shorter, longer = values
    assert shorter < longer, row
    for cell, seconds in zip(row, values, strict=True):
        assert _stated_seconds(cell) in (None, seconds), cell


def test_a_mailbox_recognises_delivery_ids_for_twice_any_queue_lifetime() -> None:
    router = SETTINGS.router.model_copy(update={"queue_lifetime": timedelta(days=30)})
    assert delivery_id_retention(SETTINGS.model_copy(update={"router": router})) == timedelta(days=60)


def test_every_time_out_of_the_kafka_log_is_a_field_of_its_time_outs() -> None:
    constant = re.compile(r"^\w*_(?:SECONDS|MS)\b.* = .*\d", re.MULTILINE)
    found = {
        path.name: names
        for path in (ROOT / "mail" / "log" / "kafka").rglob("*.py")
        if (names := constant.findall(path.read_text(encoding="utf-8")))
    }
    assert found == {"__init__.py": ["_REPORT_LINGER_MS = 10"]}  # not a time-out: the size of a batch
