"""A wrong option is one line that names it, and exit status 2."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eilpost import cli
from tests.support.servers.ports import free_port

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["eilpost", "load", *options])
        with pytest.raises(SystemExit) as system_exit:
            cli.main()
        out, err = capsys.readouterr()
        assert not out
        return int(system_exit.value.code or 0), err

    return call


@pytest.mark.parametrize(
    "options",
    [
        ["--target", "nonsense"],
        ["--target", "127.0.0.1:0"],
        ["--target", "127.0.0.1:99999"],
        ["--sink", "127.0.0.1"],
        ["--rate", "-1"],
        ["--rate", "many"],
        ["--duration", "60"],
        ["--duration", "0s"],
        ["--duration", "25h"],
        ["--settle", "soon"],
        ["--messages", "0"],
        ["--messages", "5000000", "--recipients", "2"],
        ["--sessions", "0"],
        ["--sessions", "1001"],
        ["--per-connection", "0"],
        ["--size", "10"],
        ["--size", "10kB:x"],
        ["--size", "65MiB"],
        ["--recipients", "101"],
        ["--domains", "0"],
        ["--domains", "1", "--failing", "5%"],
        ["--failing", "5"],
        ["--deferring", "101%"],
        ["--failing", "60%", "--deferring", "60%"],
        ["--domain", "gmail.com"],
        ["--sender", "someone@gmail.com"],
        ["--sender", "nobody"],
        ["--sender", "a b@load.test"],
        ["--target", "8.8.8.8:2525"],
        ["--target", "8.8.8.8:25", "--allow-public"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_option_is_a_one_line_error(run: Run, options: list[str]) -> None:
    status, err = run("--sink", f"127.0.0.1:{free_port()}", *options)
    assert status == 2
    assert err.startswith("eilpost: ")
    assert err.count("\n") == 1
    assert options[0].lstrip("-") in err


def test_help_and_docs_agree_on_messages_in_doubt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["eilpost", "load", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    expected = (
        "every message was accepted, and delivered or bounced (messages in doubt, without a reply to the final dot, may"
        " or may not arrive: they do not fail the load)"
    )
    assert f"0 {expected}" in " ".join(capsys.readouterr().out.split())
    page = Path(__file__).parents[4] / "docs" / "load.md"
    assert f"| 0 | {expected} |" in page.read_text(encoding="utf-8").replace("*", "")


def test_target_that_refuses_connections_is_an_error(run: Run) -> None:
    port = free_port()
    status, err = run("--target", f"127.0.0.1:{port}", "--sink", f"127.0.0.1:{free_port()}")
    assert (status, err) == (2, f"eilpost: no target responds: 127.0.0.1:{port}: connection refused\n")


def test_sink_port_in_use_is_an_error(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, err = run("--target", f"127.0.0.1:{free_port()}", "--sink", f"127.0.0.1:{port}")
    assert status == 2
    assert err.startswith(f"eilpost: --sink 127.0.0.1:{port}: cannot listen: ")
    assert err.count("\n") == 1
