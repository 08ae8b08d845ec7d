"""Signals to real processes (docs/operate.md, "Signals")."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mail.signals import EXIT_INTERRUPTED
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, directory_toml
from tests.support.servers.ports import block_until

pytestmark = pytest.mark.slow

NO_KAFKA = {"log": {"url": "kafka://127.0.0.1:1", "durability": "dev"}}


def wait_for(true: Callable[[], object], awaited: str) -> None:
    block_until(true, poll_seconds=0.002, what=awaited)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt:"))
    return bool(caught & 1 << number - 1)


def events(box: EilpostProcess, event: str) -> list[dict[str, object]]:
    lines = (json.loads(line) for line in box.output().splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("role", ["up", "mailstore", "ingress", "router", "delivery"])
def test_signals_reload_drain_or_are_ignored(tmp_path: Path, role: str) -> None:
    settings = {} if role in ("up", "mailstore") else NO_KAFKA  # a cluster role waits for Kafka
    box = EilpostProcess(tmp_path, settings, command=(str(EILPOST), role))
    try:
        box.start(wait=False)
        wait_for(lambda: catches(box.pid, signal.SIGTERM), "handlers")
        ignored = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
        for number in ignored:
            os.kill(box.pid, number)
        wait_for(lambda: len(events(box, "signal ignored")) == len(ignored), "signals ignored")
        (tmp_path / "directory.toml").write_text(directory_toml(("alice", "bob", "carol")))
        wait_for(lambda: events(box, "directory reloaded"), "the directory's own watch")
        os.kill(box.pid, signal.SIGHUP)
        wait_for(lambda: len(events(box, "directory reloaded")) == 2, "reload by SIGHUP")
        assert box.is_running
        os.kill(box.pid, signal.SIGQUIT)
        wait_for(lambda: not box.is_running, "the end")
        assert box.stop() == 0
        assert [event["action"] for event in events(box, "signal")] == ["reload", "drain"]
        assert events(box, "stopped")
    finally:
        box.kill()


def test_closed_streams_do_not_become_sockets(tmp_path: Path) -> None:
    """libuv aborts where it would close a socket with the number of a standard stream."""
    box = EilpostProcess(tmp_path, command=("sh", "-c", 'exec "$0" up "$@" <&- >&-', str(EILPOST)))
    try:
        box.start()
        streams = [Path(f"/proc/{box.pid}/fd/{number}").readlink() for number in (0, 1)]
        assert streams == [Path(os.devnull)] * 2
        assert box.stop() == 0
    finally:
        box.kill()


def test_reload_signals_during_the_start_do_not_end_the_process(tmp_path: Path) -> None:
    box = EilpostProcess(tmp_path)
    try:
        box.start(wait=False)
        wait_for(lambda: catches(box.pid, signal.SIGHUP), "the first handler")
        assert not catches(box.pid, signal.SIGTERM)  # the event loop does not run yet
        while not events(box, "ready"):
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
                os.kill(box.pid, number)
            time.sleep(0.02)
            assert box.is_running
        assert box.stop() == 0
    finally:
        box.kill()


def test_sigterm_during_the_start_ends_the_process_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts connections without replies: a start waits for it
        box = EilpostProcess(
            tmp_path,
            {"log": {"url": f"kafka://127.0.0.1:{mute.getsockname()[1]}"}},
            command=(str(EILPOST), "router"),
        )
        try:
            box.start(wait=False)
            mute.settimeout(20)
            with mute.accept()[0]:
                started_at = time.monotonic()
                assert box.stop() == 0
                assert time.monotonic() - started_at < 4.5, (
                    box.output()
                )  # and not the 6 s that a broker has for an answer
            assert [event["action"] for event in events(box, "signal")] == ["cancel the start"]
            assert not events(box, "log not usable yet, retrying")
            assert "traceback" not in box.output().lower()
        finally:
            box.kill()


def test_third_terminating_signal_ends_the_process_without_a_drain(tmp_path: Path) -> None:
    box = EilpostProcess(tmp_path)
    try:
        box.start()
        box.freeze()  # all three arrive before the drain can end
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            os.kill(box.pid, number)
        os.kill(box.pid, signal.SIGCONT)
        assert box.wait() == EXIT_INTERRUPTED
        assert [event["action"] for event in events(box, "signal")] == ["drain", "end the drain"]
        assert not events(box, "stopped")
    finally:
        box.kill()


def test_closed_terminal_drains(tmp_path: Path) -> None:
    box = EilpostProcess(tmp_path)
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [str(EILPOST), "up", "--config", str(box.config)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(terminal), os.O_RDWR)),  # its controlling terminal
    )
    try:
        os.close(terminal)
        text = b""
        while b"ready" not in text:
            text += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
