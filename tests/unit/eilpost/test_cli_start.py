"""Start of a server from the command line: a start that cannot succeed is one line and leaves no files."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.clients.commands import Run, one_line
from tests.support.servers.eilpost_process import EilpostProcess

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("role", ["ingress", "router", "delivery"])
def test_single_role_on_an_embedded_log_is_refused(run: Run, role: str) -> None:
    status, _, err = run(role)
    assert status == 2
    assert "eilpost up" in one_line(err)


def _starts(box: EilpostProcess) -> tuple[int, str]:
    """Run the command to its end; returns its exit status and stderr."""
    result = subprocess.run(
        [*box.command, "--config", str(box.config)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("section", "key"), [("ingress", "smtp_listen"), ("mailstore", "pop3_listen"), ("http", "listen")]
)
def test_used_port_names_the_key(tmp_path: Path, section: str, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        address = f"127.0.0.1:{occupied.getsockname()[1]}"
        box = EilpostProcess(tmp_path, {section: {key: address}})
        before = {path.name for path in tmp_path.iterdir()}
        status, err = _starts(box)
    assert status == 2
    assert one_line(err).startswith(f"eilpost: {address} ({section}.{key}): in use, perhaps by another eilpost;")
    assert {path.name for path in tmp_path.iterdir()} == before  # a failed start leaves no files


def test_all_used_ports_are_named_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [occupied.getsockname()[1] for occupied in (first, second)]
        box = EilpostProcess(
            tmp_path,
            {
                "ingress": {"smtp_listen": f"127.0.0.1:{ports[0]}"},
                "mailstore": {"pop3_listen": f"127.0.0.1:{ports[1]}"},
            },
        )
        status, err = _starts(box)
    assert status == 2
    both = f"127.0.0.1:{ports[0]} (ingress.smtp_listen), 127.0.0.1:{ports[1]} (mailstore.pop3_listen)"
    assert one_line(err).startswith(f"eilpost: {both}: in use")


def test_mailstore_without_listeners_is_one_line(run: Run, home: Path) -> None:
    (home / "eilpost.toml").write_text('[mailstore]\npop3_listen = ""\n')
    status, _, err = run("mailstore")
    assert (status, "mailstore.pop3_listen is empty, nothing to serve" in one_line(err)) == (2, True)


def test_second_process_on_the_same_data_directory_is_one_line(tmp_path: Path) -> None:
    with EilpostProcess(tmp_path / "home") as first:
        if not first.is_running:
            first.start()
        status, err = _starts(EilpostProcess(tmp_path / "second", {"log": {"url": f"embedded:{first.home}/log.db"}}))
        assert status == 2
        assert str(first.home) in one_line(err)
        assert first.is_running
