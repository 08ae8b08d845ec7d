"""Journey 15: /metrics counts a message at every stage (accepted, routed, delivered, fetched), with declared labels."""

from __future__ import annotations

import poplib
import smtplib
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mail.telemetry import FAMILIES
from tests.support.docs.metrics import exported_name, faults
from tests.support.servers.eilpost_process import PASSWORD, EilpostProcess
from tests.support.servers.ports import block_until, free_port

SIZE = 100_000  # too large for a record: stored in the spool


def send(box: EilpostProcess, *to: str, size: int) -> None:
    with smtplib.SMTP("127.0.0.1", box.mx, "client.test", timeout=30) as client:
        client.sendmail("bob@example.test", to, b"Subject: counted\r\n\r\n" + b"x" * 70 + b"\r\n" * (size // 2))


def test_every_stage_is_counted(tmp_path: Path) -> None:
    relay = f"smtp://127.0.0.1:{free_port()}"
    box = EilpostProcess(
        tmp_path,
        {
            "delivery": {"relay": relay},
            "router": {"retry_delays": ["1h"]},
            "spool": {"url": f"file:{tmp_path}/spool", "max_inline_size": "16KiB"},
        },
    )
    with box:
        metric = box.metric
        assert metric("eilpost_ready") == 1
        assert metric("eilpost_shards", role="router") == metric("eilpost_shards_owned", role="router") > 0
        assert metric("eilpost_shards_owned", role="delivery") > 0
        send(box, "alice@example.test", "friend@elsewhere.test", size=SIZE)
        block_until(lambda: metric("eilpost_delivered_messages_total", transport="mailbox") == 1, what="delivered")
        block_until(lambda: metric("eilpost_queue_recipients", state="deferred") == 1, what="deferred")

        assert metric("eilpost_routed_messages_total") == 1
        assert metric("eilpost_routed_bytes_total") > SIZE
        assert metric("eilpost_delivered_bytes_total") > SIZE
        assert metric("eilpost_consumed_records_total", topic="accepted") == 1
        assert metric("eilpost_consumed_records_total", topic="dispatched") == 2
        assert metric("eilpost_consumed_records_total", topic="attempted") == 2
        assert metric("eilpost_spool_duration_seconds_count", operation="write") >= 1
        assert metric("eilpost_spool_duration_seconds_count", operation="read") >= 1
        attempts = "eilpost_delivery_attempts_total"
        assert metric(attempts, transport="mailbox", provider="local", result="delivered") == 1
        assert metric(attempts, transport="smtp", provider="other", result="deferred") == 1
        assert metric("eilpost_delivery_failures_total", transport="smtp", provider="other", status="4.4") == 1
        block_until(lambda: metric("eilpost_queue_runnable_recipients") == 0, what="nothing is runnable")
        assert metric("eilpost_queue_oldest_runnable_timestamp_seconds") == 0
        assert abs(time.time() - metric("eilpost_queue_oldest_timestamp_seconds", state="deferred")) < 60
        assert metric("eilpost_ledger_drift_recipients") == 0

        pop3 = poplib.POP3("127.0.0.1", box.pop3, timeout=10)
        pop3.user("alice@example.test")
        pop3.pass_(PASSWORD)
        pop3.retr(1)
        pop3.quit()
        assert metric("eilpost_pop3_retrieved_messages_total") == 1
        assert metric("eilpost_pop3_retrieved_bytes_total") > SIZE
        assert metric("process_resident_memory_bytes") > 0

        exported = list(text_string_to_metric_families(box.get("/metrics")[1]))
        assert faults(exported) == []
        assert {exported_name(each) for each in exported} >= set(FAMILIES)
        assert box.stop() == 0
