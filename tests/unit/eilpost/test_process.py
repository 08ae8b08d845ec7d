"""A process's use of its machine: file descriptor limit, file modes, and configuration by environment variables
only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.servers import supervised
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, directory_toml
from tests.support.servers.ports import free_port

pytestmark = pytest.mark.slow


def _in_a_pod(folder: Path, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Run `eilpost` with its settings as the only environment, without HOME and PATH."""
    (folder / "directory.toml").write_text(directory_toml())
    usual = {
        "EILPOST_LOG__URL": f"embedded:{folder}/log.db",
        "EILPOST_SPOOL__URL": f"file:{folder}/spool",
        "EILPOST_DIRECTORY__URL": f"file:{folder}/directory.toml",
        "EILPOST_MAILBOXES__URL": f"maildir:{folder}/mail",
        "EILPOST_INGRESS__SMTP_LISTEN": f"127.0.0.1:{free_port()}",
        "EILPOST_MAILSTORE__POP3_LISTEN": f"127.0.0.1:{free_port()}",
        "EILPOST_HTTP__LISTEN": f"127.0.0.1:{free_port()}",
        "EILPOST_NODE__LOG_FORMAT": "json",
        "EILPOST_PORT": "tcp://10.96.0.7:25",  # Kubernetes sets it for a Service named eilpost
        "EILPOST_SERVICE_HOST": "10.96.0.7",
    }
    return subprocess.Popen(
        [str(EILPOST), *arguments],
        env=usual | settings,
        cwd="/",
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=supervised.group(),
    )


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        (("up",), {"EILPOST_LOG__URL": "kafka://k1"}, "log.url"),
        (("up",), {"EILPOST_LOG__ULR": "kafka://k1:9092"}, "EILPOST_LOG__ULR: there is no such key; did you mean url?"),
        (("up",), {"EILPOST_LOG_URL": "kafka://k1:9092"}, "did you mean EILPOST_LOG__URL?"),
        (("up",), {"EILPOST_DELIVERY__RELAY": "smtp://me:hush@relay:587"}, 'delivery.relay: found "smtp://***@relay'),
        (("up",), {"EILPOST_DIRECTORY__URL": "file:/gone.toml"}, "/gone.toml"),
        (("up",), {"EILPOST_SPOOL__URL": "file:/dev/null/spool"}, "spool"),
        (("up",), {"EILPOST_MAILBOXES__URL": "maildir:/dev/null/mail"}, "mailboxes.url"),
        (("up",), {"EILPOST_HTTP__LISTEN": "192.0.2.1:80"}, "http.listen"),
        (("up",), {"EILPOST_INGRESS__SMTP_LISTEN": "192.0.2.1:25"}, "ingress.smtp_listen"),
        (("router",), {}, "log.url"),
        (
            ("router",),
            {"EILPOST_LOG__URL": "kafka://127.0.0.1:1", "EILPOST_LOG__TLS": "yes", "EILPOST_LOG__TLS_CA": "/no.pem"},
            "log.tls_ca",
        ),
    ],
)
def test_wrong_setting_is_one_line_as_termination_message(
    tmp_path: Path, arguments: tuple[str, ...], settings: Mapping[str, str], says: str
) -> None:
    process = _in_a_pod(tmp_path, *arguments, **settings)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    *before, last = err.splitlines()
    assert last.startswith("eilpost: ")
    assert says in last
    assert "hush" not in err
    assert [json.loads(line)["level"] for line in before if json.loads(line)["level"] != "info"] == []
    assert "Traceback" not in err


def test_process_runs_by_environment_variables_without_warnings(tmp_path: Path) -> None:
    process = _in_a_pod(tmp_path, "up")
    assert process.stderr is not None
    try:
        first = json.loads(process.stderr.readline())
        assert (first["event"], first["level"]) == ("ready", "info")
    finally:
        process.send_signal(signal.SIGTERM)
        err = process.stderr.read()  # not `communicate`, which omits what `readline` has read ahead
        process.communicate(timeout=30)
    assert process.returncode == 0
    warnings = [line["event"] for line in map(json.loads, err.splitlines()) if line["level"] != "info"]
    assert warnings == (["running as root"] if os.geteuid() == 0 else [])


def test_process_raises_its_file_limit_and_creates_private_files(tmp_path: Path) -> None:
    poor = ("bash", "-c", 'ulimit -Sn 128; umask 000; exec "$0" "$@"', str(EILPOST), "up")
    with EilpostProcess(tmp_path / "home", {"ingress": {"max_connections": 700}}, command=poor) as box:
        limits = Path(f"/proc/{box.pid}/limits").read_text().splitlines()
        soft = next(line.split()[3] for line in limits if line.startswith("Max open files"))
        assert int(soft) >= 700 + 500 + 500
        made = [path for path in box.home.rglob("*") if path.name not in ("eilpost.toml", "directory.toml", "output")]
        assert {path.name for path in made} >= {"log.db", "spool", "mail"}
        assert {oct(path.stat().st_mode & 0o077) for path in made} == {"0o0"}
