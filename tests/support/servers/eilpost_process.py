"""All roles of eilpost in one real process with its own ports and directories; can be killed and restarted.

Runs `eilpost up --config FILE`. Ports and directories persist across restarts.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import poplib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher

from tests.support.servers import supervised
from tests.support.servers.ports import free_port

EILPOST = Path(sys.executable).parent / "eilpost"
PASSWORD = "eilpost-demo"
_HASH = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)  # weak and fast

Sections = Mapping[str, Mapping[str, Any]]


def toml(sections: Sections) -> str:
    """Sections of plain values as TOML; a JSON string, number, boolean or list of those is valid TOML."""
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items()) + "\n"
        for name, section in sections.items()
    )


def directory_toml(users: tuple[str, ...] = ("alice", "bob"), aliases: Mapping[str, list[str]] | None = None) -> str:
    text = '[domains."example.test"]\n\n'
    for user in users:
        text += f'[users."{user}@example.test"]\npassword = "{_HASH}"\n\n'
    if aliases:
        text += "[aliases]\n" + "".join(f"{json.dumps(name)} = {json.dumps(to)}\n" for name, to in aliases.items())
    return text


class EilpostProcess:
    """`home` is its directory; `settings` are sections of eilpost.toml on top of the tests' defaults.

    With `own_session` it leads a session, whose use of the machine a benchmark measures; else it ends with the run.
    """

    def __init__(
        self,
        home: Path,
        settings: Sections | None = None,
        *,
        directory: str | None = None,
        command: tuple[str, ...] = (),
        own_session: bool = False,
    ) -> None:
        self.home = home
        self._own_session = own_session
        self.command = command or (str(EILPOST), "up")
        self.mx, self.pop3, self.http = free_port(), free_port(), free_port()
        self.starts = 0
        self._output_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        sections: dict[str, dict[str, Any]] = {
            "node": {"hostname": "mx.example.test", "log_format": "json", "drain_timeout": "5s"},
            "log": {"url": f"embedded:{home}/log.db"},
            "spool": {"url": f"file:{home}/spool"},
            "directory": {"url": f"file:{home}/directory.toml"},
            "mailboxes": {"url": f"maildir:{home}/mail"},
            "ingress": {"smtp_listen": f"127.0.0.1:{self.mx}", "sender_domain_must_resolve": False},
            "router": {},
            "delivery": {},
            "mailstore": {"pop3_listen": f"127.0.0.1:{self.pop3}"},
            "http": {"listen": f"127.0.0.1:{self.http}"},
        }
        for name, section in (settings or {}).items():
            sections.setdefault(name, {}).update(section)
        home.mkdir(parents=True, exist_ok=True)
        self.config = home / "eilpost.toml"
        self.config.write_text(toml(sections))
        (home / "directory.toml").write_text(directory if directory is not None else directory_toml())
        (home / "directory.toml").chmod(0o600)  # it has password hashes

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        self.starts += 1
        self._output_start = len(self.output())
        output = (self.home / "output").open("ab")
        with output:
            self._process = subprocess.Popen(
                [*self.command, "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={
                    key: value for key, value in os.environ.items() if not key.startswith("EILPOST_") or "BENCH" in key
                },
                start_new_session=self._own_session,
                process_group=None if self._own_session else supervised.group(),
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, deadline_seconds: float = 30.0) -> None:
        end = time.monotonic() + deadline_seconds
        while time.monotonic() < end:
            if not self.is_running:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/readyz")[0] == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"eilpost did not become ready:\n{self.output()[-4000:]}")

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(label in sample for label in wanted):
                total += float(value)
        return total

    def output(self) -> str:
        """Output and log of all starts."""
        path = self.home / "output"
        return path.read_text(errors="replace") if path.exists() else ""

    def output_since_start(self) -> str:
        return self.output()[self._output_start :]

    def run(self, *arguments: str, ok: bool = True, environment: Mapping[str, str] | None = None) -> str:
        """Run another `eilpost` command with the same configuration; returns its standard output."""
        done = subprocess.run(
            [str(EILPOST), *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | (environment or {}),
        )
        if ok:
            assert done.returncode == 0, f"eilpost {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def freeze(self) -> None:
        """SIGSTOP: connections stay open without replies."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # all its threads have stopped

    def thaw(self) -> None:
        """SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    @property
    def is_frozen(self) -> bool:
        """Whether it is stopped, by any process."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        return False

    def kill(self) -> None:
        """SIGKILL by pid, and wait for its end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, deadline_seconds: float = 20.0) -> int:
        """Its exit status after its end."""
        assert self._process is not None
        return self._process.wait(deadline_seconds)

    def stop(self, deadline_seconds: float = 20.0) -> int:
        """SIGTERM; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"eilpost did not end on SIGTERM:\n{self.output()[-4000:]}") from None

    def resident_bytes(self, what: str = "VmRSS") -> int:
        """Resident memory now, or its maximum (`VmHWM`)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(what + ":"):
                return int(line.split()[1]) * 1024
        raise KeyError(what)

    def mailbox(self, user: str) -> list[bytes]:
        """All messages of a mailbox by POP3, as sent (CRLF lines)."""
        pop = poplib.POP3("127.0.0.1", self.pop3, timeout=30)
        try:
            pop.user(f"{user}@example.test")
            pop.pass_(PASSWORD)
            count = len(pop.list()[1])
            return [b"".join(line + b"\r\n" for line in pop.retr(number + 1)[1]) for number in range(count)]
        finally:
            pop.quit()

    def maildir(self, user: str) -> list[bytes]:
        """All messages of a mailbox, from its files."""
        return [
            path.read_bytes()
            for path in sorted((self.home / "mail").rglob("*"))
            if path.is_file() and path.parent.name in ("new", "cur") and user in str(path.relative_to(self.home))
        ]

    def __enter__(self) -> EilpostProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
