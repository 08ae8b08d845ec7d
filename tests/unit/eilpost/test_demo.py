"""The demo's files: created once and kept; and the commands of its banner work."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eilpost import demo
from mail.directory.file import load
from mail.settings_file import load as load_settings
from tests.support.servers import supervised
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, directory_toml
from tests.support.servers.ports import free_port, wait_for_greeting, wait_until

pytestmark = pytest.mark.slow


def _bash(command: str) -> str:
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_created_configuration_is_valid_and_kept(tmp_path: Path) -> None:
    configuration = demo.create_files(tmp_path / "var" / "demo")
    directory = configuration.parent / "directory.toml"
    snapshot, _ = load(directory)
    assert set(snapshot.users) == {"alice@example.test", "bob@example.test"}
    assert all(user.password for user in snapshot.users.values())
    assert directory.stat().st_mode & 0o777 == 0o600
    assert load_settings(configuration, {}).ingress.smtp_listen == "127.0.0.1:2525"
    configuration.write_text(configuration.read_text() + "# mine\n")
    before = configuration.read_text(), directory.read_text()
    demo.create_files(configuration.parent)
    assert (configuration.read_text(), directory.read_text()) == before


def test_banner_follows_the_settings(tmp_path: Path) -> None:
    environment = {"EILPOST_INGRESS__SMTP_LISTEN": "127.0.0.1:4025", "EILPOST_MAILSTORE__POP3_LISTEN": "127.0.0.1:4110"}
    text = demo.banner(load_settings(None, environment), tmp_path / "eilpost.toml", "eilpost")
    first = text.strip().splitlines()[:2]
    assert "127.0.0.1:4025" in first[0]
    assert "127.0.0.1:4110" in first[0]
    assert "alice@example.test" in first[1]
    assert "eilpost-demo" in first[1]
    assert "team@example.test" in first[1]
    assert "/dev/tcp/127.0.0.1/4025" in text
    assert f"eilpost trace QUEUE_ID --config {tmp_path}/eilpost.toml\n" in text
    assert f"eilpost queue --config {tmp_path}/eilpost.toml\n" in text
    relayed = load_settings(None, {"EILPOST_DELIVERY__RELAY": "smtp://127.0.0.1:2627"})
    assert "Mail for other domains goes to smtp://127.0.0.1:2627." in demo.banner(relayed, tmp_path, "eilpost")
    assert "is printed here" in demo.banner(relayed, tmp_path, "eilpost", sink_listens=True)
    assert "HTTP off" in demo.banner(load_settings(None, {"EILPOST_HTTP__LISTEN": ""}), tmp_path, "eilpost")
    assert "POP3 off" in demo.banner(load_settings(None, {"EILPOST_MAILSTORE__POP3_LISTEN": ""}), tmp_path, "eilpost")


def test_banner_names_a_configuration_outside_the_default_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EILPOST_CONFIG", raising=False)
    path = demo.create_files(Path("var/demo"))
    settings = load_settings(path, {})
    assert "--config" not in demo.banner(settings, path, "eilpost")
    (tmp_path / "eilpost.toml").touch()
    assert "eilpost queue --config var/demo/eilpost.toml\n" in demo.banner(settings, path, "eilpost")


async def test_commands_of_the_readme_work(tmp_path: Path) -> None:
    aliases = {"team@example.test": ["alice@example.test", "bob@example.test"]}
    with EilpostProcess(tmp_path / "home", directory=directory_toml(aliases=aliases)) as box:
        readme = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")
        readme = readme.replace("2525", str(box.mx)).replace("2110", str(box.pop3))
        send, fetch = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)[:2]
        response = _bash(send)
        queue_id = re.search(r"queued as (\S+)", response)
        assert queue_id is not None, response
        await wait_until(lambda: box.maildir("alice") and box.maildir("bob"), what="the message in both mailboxes")
        assert "team@example.test -> alice@example.test, bob@example.test" in box.run("trace", queue_id[1])
        assert "Hi all" in _bash(fetch)
        box.stop()
        assert '"session ended"' not in box.output()  # each command sends QUIT


@contextmanager
def _make_run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command of `make run` in `tmp_path`, once it is ready, and its SMTP port."""
    makefile = (Path(__file__).resolve().parents[3] / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^run: .*\n\t@\$\(BIN\)/eilpost (.*)$", makefile, re.MULTILINE)
    assert recipe is not None
    ports = {
        name: free_port()
        for name in ("EILPOST_INGRESS__SMTP_LISTEN", "EILPOST_MAILSTORE__POP3_LISTEN", "EILPOST_HTTP__LISTEN")
    }
    environment = {**os.environ, **{name: f"127.0.0.1:{port}" for name, port in ports.items()}}
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [str(EILPOST), *recipe[1].split()],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=output,
            process_group=supervised.group(),
        )
    try:
        wait_for_greeting(ports["EILPOST_INGRESS__SMTP_LISTEN"], deadline_seconds=60)
        wait_for_greeting(ports["EILPOST_MAILSTORE__POP3_LISTEN"])
        yield process, ports["EILPOST_INGRESS__SMTP_LISTEN"]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_demo_starts_like_make_run(tmp_path: Path) -> None:
    with _make_run(tmp_path) as (process, _):
        assert (tmp_path / "var" / "demo" / "eilpost.toml").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    assert "alice@example.test" in (tmp_path / "output").read_text(encoding="utf-8")


async def test_mail_for_other_domains_is_printed_and_does_not_leave_the_machine(tmp_path: Path) -> None:
    sink = free_port()
    demo.create_files(tmp_path / "var" / "demo", demo.CONFIGURATION.replace("127.0.0.1:2627", f"127.0.0.1:{sink}"))
    with _make_run(tmp_path) as (_, port):
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("bob@example.test", ["you@elsewhere.test"], "Subject: Hello\r\n\r\nHi\r\n")
        output, line = tmp_path / "output", "sink: message 1: <bob@example.test> -> <you@elsewhere.test>"
        await wait_until(lambda: line in output.read_text(), what="the line of the sink")
    assert "printed here" in output.read_text()


async def test_commands_of_the_banner_work(tmp_path: Path) -> None:
    with EilpostProcess(tmp_path / "home") as box:
        settings = load_settings(box.config, {})
        banner = demo.banner(settings, box.config, str(EILPOST))
        by_hand = next(line.strip() for line in banner.splitlines() if "printf" in line)
        fetch = next(line.strip() for line in banner.splitlines() if "poplib" in line)

        response = _bash(by_hand)
        queue_id = re.search(r"queued as (\S+)", response)
        assert queue_id is not None, response
        await wait_until(lambda: box.maildir("alice"), what="the message in its mailbox")
        assert "Hi Alice" in _bash(fetch)
        assert "delivered" in box.run("trace", queue_id[1])
        assert box.run("queue") == "the queue is empty\n"
        assert box.get("/readyz")[1].endswith("}\n")
        box.stop()
        events = [json.loads(line) for line in box.output().splitlines() if line.startswith("{")]
        routed, attempted = (next(e for e in events if e["event"] == name) for name in ("routed", "attempted"))
        assert routed["delivery_id"] == attempted["delivery_id"] == f"{queue_id[1]}-1"
        assert routed["site"] == attempted["site"]
        assert "remote" not in attempted  # no remote server accepted it


def test_mailstore_alone_serves_pop3(tmp_path: Path) -> None:
    box = EilpostProcess(tmp_path / "home", command=(str(EILPOST), "mailstore"))
    with box:
        assert box.mailbox("alice") == []
        assert set(json.loads(box.get("/readyz")[1])["roles"]) == {"http", "mailstore"}
        assert box.stop() == 0
        [ready] = [line for line in box.output().splitlines() if '"ready"' in line]
        assert set(json.loads(ready)) == {"time", "level", "event", "hostname", "pop3", "http"}


def test_disabled_protocols_are_not_reported_as_ready(tmp_path: Path) -> None:
    with EilpostProcess(tmp_path / "home", {"mailstore": {"pop3_listen": ""}}) as box:
        roles = set(json.loads(box.get("/readyz")[1])["roles"])
        assert roles == {"http", "maintenance", "ingress", "router", "delivery"}
        assert box.stop() == 0
        events = [json.loads(line) for line in box.output().splitlines() if line.startswith("{")]
        assert "pop3" not in next(event for event in events if event["event"] == "ready")
        assert [event["event"] for event in events][-3:] == ["signal", "draining", "stopped"]
