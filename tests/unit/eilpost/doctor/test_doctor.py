"""Doctor checks of one machine, with and without faults, and their advice."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from eilpost import doctor
from eilpost.doctor import machine, ports
from eilpost.doctor.finding import Finding, Level, as_json, fail, ok, status, summary, warn, write
from eilpost.output import Output
from eilpost.wiring import ProcessConfig
from mail.log.embedded import EmbeddedLog
from mail.settings import LogSettings
from mail.settings_file import load
from tests.support.builders import records as samples
from tests.support.servers.dns import DnsServer, Zone
from tests.support.servers.eilpost_process import EilpostProcess, directory_toml, toml
from tests.support.servers.ports import free_port

MakeProcessConfig = Callable[..., ProcessConfig]


@pytest.fixture
def make_process_config(tmp_path: Path) -> MakeProcessConfig:
    """A configuration in `tmp_path` with free ports; arguments override settings by section."""
    (tmp_path / "directory.toml").write_text(directory_toml())
    (tmp_path / "directory.toml").chmod(0o600)

    def make(**sections: dict[str, Any]) -> ProcessConfig:
        usual: dict[str, dict[str, Any]] = {
            "node": {"hostname": "mx.example.test"},
            "ingress": {"smtp_listen": f"127.0.0.1:{free_port()}", "sender_domain_must_resolve": False},
            "delivery": {"relay": "smtp://127.0.0.1:2626"},
            "mailstore": {"pop3_listen": f"127.0.0.1:{free_port()}"},
            "http": {"listen": f"127.0.0.1:{free_port()}"},
        }
        for name, section in sections.items():
            usual[name] = usual.get(name, {}) | section
        path = tmp_path / "eilpost.toml"
        path.write_text(toml(usual))
        return ProcessConfig(load(path, {}), tmp_path)

    return make


def _by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


async def test_before_the_first_start_nothing_is_wrong_and_nothing_is_made(
    make_process_config: MakeProcessConfig, tmp_path: Path
) -> None:
    process_config = make_process_config(log={"min_free_disk": "1KiB"})
    before = sorted(tmp_path.rglob("*"))
    findings = await doctor.examine(process_config)
    assert {finding.level for finding in findings} == {Level.OK}, findings
    assert "does not exist yet" in _by_subject(findings)["log"].text
    assert sorted(tmp_path.rglob("*")) == before


async def test_hanging_check_is_a_finding(
    make_process_config: MakeProcessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(process_config: ProcessConfig) -> list[Finding]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(machine, "directory", hang)
    findings = await doctor.examine(make_process_config(), 0.5)
    assert _by_subject(findings)["directory"].level is Level.FAIL
    assert "no answer within" in _by_subject(findings)["directory"].text


# --- the log


async def test_backlog_of_a_stopped_embedded_log_is_reported(
    make_process_config: MakeProcessConfig, tmp_path: Path
) -> None:
    log = EmbeddedLog(tmp_path / "var" / "log.db", LogSettings())
    await log.start()
    await log.append(samples.accepted())
    await log.close()
    finding = _by_subject(await doctor.examine(make_process_config()))["log"]
    assert (finding.level, finding.advice) == (Level.FAIL, ("mail waits: start `eilpost up`",))
    assert "no process is running; deliveries in the queue: 0; messages not yet routed: 1" in finding.text


@pytest.mark.slow
def test_running_server_is_recognised_on_its_ports(tmp_path: Path) -> None:
    with EilpostProcess(tmp_path / "home") as box:
        process_config = ProcessConfig(load(box.home / "eilpost.toml", {}), box.home)
        by_subject = _by_subject(asyncio.run(doctor.examine(process_config)))
    assert by_subject["log"].text.startswith(
        str(box.home / "log.db")
        + ": in use by a running eilpost; deliveries in the queue: 0; messages not yet routed: 0"
    )
    assert by_subject["port ingress.smtp_listen"].text.endswith("eilpost is running")
    assert by_subject["port mailstore.pop3_listen"].text.endswith("eilpost is running")
    assert "eilpost is running and ready: " in by_subject["port http.listen"].text
    assert "ingress, router, delivery, mailstore" in by_subject["port http.listen"].text.replace(
        "http, maintenance, ", ""
    )
    assert "written and read in" in by_subject["spool"].text
    assert {finding.level for finding in by_subject.values()} <= {Level.OK, Level.WARN}


async def test_damaged_embedded_log_is_a_failure(make_process_config: MakeProcessConfig, tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "log.db").write_bytes(b"not a database, and long enough to be read" * 100)
    assert _by_subject(await doctor.examine(make_process_config()))["log"].level is Level.FAIL


async def test_free_space_below_the_minimum_is_a_failure(make_process_config: MakeProcessConfig) -> None:
    by_subject = _by_subject(await doctor.examine(make_process_config(log={"min_free_disk": "1024TiB"})))
    assert by_subject["log space"].level is by_subject["spool space"].level is Level.FAIL
    assert "log.min_free_disk" in by_subject["log space"].text


# --- spool and directory


async def test_the_spool_is_written_and_read(make_process_config: MakeProcessConfig, tmp_path: Path) -> None:
    (tmp_path / "var" / "spool").mkdir(parents=True)
    process_config = make_process_config()
    assert "written and read in" in (await machine.spool(process_config))[0].text
    (tmp_path / "var" / "spool" / "tmp").rmdir()
    (tmp_path / "var" / "spool" / "tmp").write_text("in the way")
    finding = (await machine.spool(process_config))[0]
    assert (finding.level, "spool.url" in finding.advice[0]) == (Level.FAIL, True)


async def test_group_writable_directory_of_another_user_is_checked(
    make_process_config: MakeProcessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume of Kubernetes belongs to root and to the group of the pod (fsGroup)."""
    spool = tmp_path / "var" / "spool"
    spool.mkdir(parents=True)
    spool.chmod(0o2770)
    monkeypatch.setattr(os, "geteuid", lambda: 123_456)
    assert (await machine.spool(make_process_config()))[0].level is Level.OK
    spool.chmod(0o2750)
    assert (await machine.spool(make_process_config()))[0].level is Level.WARN


async def test_directory_of_another_user_is_not_written(
    make_process_config: MakeProcessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "var" / "spool").mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: 123_456)
    finding = (await machine.spool(make_process_config()))[0]
    assert finding.level is Level.WARN
    assert "belongs to" in finding.text
    assert list((tmp_path / "var" / "spool").iterdir()) == []


async def test_local_spool_in_a_cluster_is_a_warning(make_process_config: MakeProcessConfig) -> None:
    process_config = make_process_config(log={"url": "kafka://127.0.0.1:9092"})
    assert "same storage for all processes" in _by_subject(await machine.spool(process_config))["spool shared"].text


@pytest.mark.parametrize(
    ("text", "level", "expected"),
    [
        (None, Level.FAIL, "no such file"),
        ("[users]\nnobody", Level.FAIL, "directory.toml"),
        ("# nobody\n", Level.WARN, "has no domains"),
        (directory_toml(), Level.OK, "domains: 1, users: 2"),
    ],
)
async def test_directory_file_is_checked(
    make_process_config: MakeProcessConfig, tmp_path: Path, text: str | None, level: Level, expected: str
) -> None:
    process_config = make_process_config()
    (tmp_path / "directory.toml").unlink() if text is None else (tmp_path / "directory.toml").write_text(text)
    (finding,) = await machine.directory(process_config)
    assert (finding.level, expected in finding.text, bool(finding.advice)) == (level, True, level is not Level.OK)


# --- DNS


@pytest.fixture
async def dns_server() -> AsyncIterator[DnsServer]:
    async with DnsServer(Zone(addresses={"mx.example.test": ["127.0.0.1"]})) as server:
        yield server


async def test_dns_failure_and_missing_host_name_are_reported(
    make_process_config: MakeProcessConfig, dns_server: DnsServer
) -> None:
    process_config = make_process_config(
        delivery={"relay": ""}, resolver={"servers": [dns_server.address], "timeout": "500ms"}
    )
    (finding,) = await machine.dns(process_config)
    assert (finding.level, finding.subject) == (Level.OK, f"dns {dns_server.address}")

    dns_server.zone.addresses.clear()
    _, finding = await machine.dns(process_config)
    assert (finding.level, finding.subject) == (Level.WARN, "node.hostname")

    dns_server.zone.fail.add("mx.example.test")
    (finding,) = await machine.dns(process_config)
    assert (finding.level, "SERVFAIL" in finding.text) == (Level.FAIL, True)


async def test_one_silent_name_server_of_two_is_a_warning(
    make_process_config: MakeProcessConfig, dns_server: DnsServer
) -> None:
    async with DnsServer(Zone(silent={"mx.example.test"})) as silent:
        servers = [silent.address, dns_server.address]
        process_config = make_process_config(
            ingress={"sender_domain_must_resolve": True}, resolver={"servers": servers, "timeout": "500ms"}
        )
        findings = await machine.dns(process_config)
    assert [(finding.subject, finding.level) for finding in findings] == [
        (f"dns {silent.address}", Level.WARN),
        (f"dns {dns_server.address}", Level.OK),
    ]


async def test_dns_is_not_queried_when_not_used(make_process_config: MakeProcessConfig) -> None:
    (finding,) = await machine.dns(make_process_config(resolver={"servers": ["127.0.0.1:1"]}))
    assert (finding.level, "not used" in finding.text) == (Level.OK, True)


# --- ports


@pytest.mark.parametrize(
    ("key", "answer", "level", "expected"),
    [
        ("ingress.smtp_listen", b"220 other.example.test ESMTP Postfix\r\n", Level.FAIL, "in use by another program"),
        ("ingress.smtp_listen", b"220 mx.example.test ESMTP eilpost\r\n", Level.OK, "eilpost is running"),
        ("ingress.smtp_listen", b"421 4.3.2 mx.example.test too busy\r\n", Level.WARN, "421"),
        ("mailstore.pop3_listen", b"+OK Dovecot ready.\r\n", Level.FAIL, "in use by another program"),
        ("mailstore.pop3_listen", b"", Level.WARN, "sends no greeting"),
        ("http.listen", b"HTTP/1.1 200 OK\r\n\r\n<html>", Level.FAIL, "in use by another program"),
        (
            "http.listen",
            b'HTTP/1.1 503 x\r\n\r\n{"ready": false, "reasons": ["draining"], "roles": {"router": true}}',
            Level.WARN,
            "not ready: draining",
        ),
        (
            "http.listen",
            b'HTTP/1.1 200 OK\r\n\r\n{"ready": true, "roles": {"router": true}}',
            Level.OK,
            "ready: router",
        ),
    ],
)
async def test_server_on_a_port_in_use_is_identified(
    make_process_config: MakeProcessConfig, key: str, answer: bytes, level: Level, expected: str
) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, separator, body = answer.partition(b"\r\n\r\n")
        writer.write(head + separator)
        await writer.drain()
        if body:  # a busy server sends the body later
            await asyncio.sleep(0.02)
            writer.write(body)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    section, name = key.split(".")
    try:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        by_subject = _by_subject(await ports.examine(make_process_config(**{section: {name: address}}).settings))
    finally:
        server.close()
        await server.wait_closed()
    assert (by_subject[f"port {key}"].level, expected in by_subject[f"port {key}"].text) == (level, True)
    assert [finding.level for subject, finding in by_subject.items() if subject != f"port {key}"] == [
        Level.OK,
        Level.OK,
    ]


async def test_listen_address_of_another_machine_is_a_failure(make_process_config: MakeProcessConfig) -> None:
    by_subject = _by_subject(
        await ports.examine(make_process_config(ingress={"smtp_listen": "192.0.2.1:2525"}).settings)
    )
    assert by_subject["port ingress.smtp_listen"].level is Level.FAIL
    assert "ingress.smtp_listen" in by_subject["port ingress.smtp_listen"].advice[0]


# --- output


def test_findings_are_printed_with_their_advice(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [ok("spool", "good"), warn("a long name", "so so", "look", "and look"), fail("x", "\x1b[2J", "do")]
    write(findings, Output())
    assert capsys.readouterr().out.splitlines() == [
        "OK    spool        good",
        "WARN  a long name  so so",
        "      -> look",
        "      -> and look",
        "FAIL  x            ?[2J",
        "      -> do",
        "",
        "3 checks: 1 OK, 1 WARN, 1 FAIL",
    ]
    assert summary([Level.OK, Level.OK]) == "2 checks: all OK"
    assert [status([]), status([Level.OK, Level.WARN]), status([Level.WARN, Level.FAIL, Level.OK])] == [0, 0, 1]
    document = json.loads(json.dumps(as_json(findings)))
    assert document["level"] == "FAIL"
    assert document["findings"][1] == {
        "level": "WARN",
        "what": "a long name",
        "text": "so so",
        "advice": ["look", "and look"],
    }


def test_certificate_near_expiry_is_a_warning() -> None:
    from datetime import UTC, datetime

    from eilpost.doctor.brokers import _certificate_finding

    now = datetime(2026, 11, 25, tzinfo=UTC)
    levels = [_certificate_finding("x", now + timedelta(days=days), now, "renew it").level for days in (-1, 0, 13, 15)]
    assert levels == [Level.FAIL, Level.FAIL, Level.WARN, Level.OK]
