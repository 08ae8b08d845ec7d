"""Commands run in this process on a test's settings, with their output, exit status and a time limit."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from deploy.kafka.cluster import Cluster
from eilpost import cli
from tests.support.servers.eilpost_process import directory_toml, toml
from tests.support.servers.ports import free_port

Run = Callable[..., tuple[int, str, str]]
LIMIT_SECONDS = 20


@contextmanager
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`run("router", log={...})` runs the command on these settings; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "directory.toml").write_text(directory_toml())
    (tmp_path / "directory.toml").chmod(0o600)
    for name in ("EILPOST_CONFIG", "EILPOST_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level, umask = root.handlers[:], root.level, os.umask(0o022)

    def call(*arguments: str, log: dict[str, Any], **sections: dict[str, Any]) -> tuple[int, str, str]:
        usual: dict[str, dict[str, Any]] = {
            "node": {"log_level": "warning"},
            "log": {"durability": "dev", "replication": 1, "session_timeout": "6s"} | log,
            "ingress": {"smtp_listen": f"127.0.0.1:{free_port()}", "sender_domain_must_resolve": False},
            "delivery": {"relay": "smtp://127.0.0.1:2626"},
            "mailstore": {"pop3_listen": ""},
            "http": {"listen": ""},
        }
        (tmp_path / "eilpost.toml").write_text(toml(usual | sections))
        monkeypatch.setattr(sys, "argv", ["eilpost", *arguments])
        began = time.monotonic()
        # A command that should be refused but runs would never end.
        ending = threading.Timer(LIMIT_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
        ending.start()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            ending.cancel()
        assert time.monotonic() - began < LIMIT_SECONDS
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)
    os.umask(umask)
    structlog.reset_defaults()


def one_line(err: str) -> str:
    """The error output of a command, which must be one line."""
    assert err.startswith("eilpost: ")
    assert err.count("\n") == 1, err
    return err


def refused(answer: tuple[int, str, str]) -> str:
    """The one error line of a command that cannot run as configured."""
    status, out, err = answer
    assert (status, out) == (2, "")
    return one_line(err)


def secured_log(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    """`[log]` for the secured listener, with valid credentials."""
    secured = cluster.credentials
    assert secured is not None
    return {
        "url": f"kafka://{cluster.addresses('secure')}",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_username": secured.user,
        "sasl_password": secured.password,
        "tls": True,
        "tls_ca": str(secured.ca),
        **changes,
    }
