"""The compared servers, each configured as a careful relay: a message is durable before its 250.

Postfix keeps Debian's defaults (100 processes, 20 connections to one destination, queue flushed before the 250) without
TLS, chroot and logging. eilpost keeps its defaults (20 connections to one site), runs all four roles, and logs to a
file at `info`.
"""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

from tests.bench import machine
from tests.support.servers.eilpost_process import EilpostProcess
from tests.support.servers.postfix import Postfix


class Server(ABC):
    """A running server that relays to `sink_port`, in a session of its own."""

    name: str
    port: int

    @property
    @abstractmethod
    def leader(self) -> int:
        """Pid of its session's leader."""

    @property
    @abstractmethod
    def disk(self) -> Path:
        """Location of its queue."""

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        return machine.cpu_seconds(self.leader)

    def resident_bytes(self) -> int:
        return machine.resident_bytes(self.leader)

    @abstractmethod
    def stop(self) -> None: ...


class PostfixServer(Server):
    name = "Postfix"

    def __init__(self, sink_port: int) -> None:
        self.settings = {"relayhost": f"[127.0.0.1]:{sink_port}"}
        self._postfix = Postfix(self.settings, log=False)
        self._postfix.__enter__()
        self.port = self._postfix.port

    @property
    def leader(self) -> int:
        return self._postfix.pid

    @property
    def disk(self) -> Path:
        return self._postfix.home

    def stop(self) -> None:
        self._postfix.stop()


class EilpostServer(Server):
    name = "eilpost"

    def __init__(self, sink_port: int, command: tuple[str, ...] = (), name: str = "eilpost") -> None:
        self.name = name
        self._home = Path(tempfile.mkdtemp(prefix="eilpost-bench-"))
        self.settings = {"delivery": {"relay": f"smtp://127.0.0.1:{sink_port}"}}
        self._box = EilpostProcess(self._home, self.settings, command=command, own_session=True)
        self._box.__enter__()
        self.port = self._box.mx

    @property
    def leader(self) -> int:
        return self._box.pid

    @property
    def disk(self) -> Path:
        return self._home

    def output(self) -> str:
        return self._box.output()

    def stop(self) -> None:
        try:
            if self._box.is_running:
                self._box.stop(60)
        finally:
            shutil.rmtree(self._home, ignore_errors=True)
