"""Load driver: smtp-source through one server into smtp-sink.

smtp-sink prints its count (`-c`) after every message; a thread reads the pipe every two milliseconds, which is the
resolution of the last arrival's time. Load stays on loopback and ends by itself.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from tests.bench import machine
from tests.bench.servers import Server
from tests.support.servers.ports import free_port, wait_for_greeting

SESSIONS = 20


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load. `reused`: the source sends all messages of a session over one connection."""

    size_bytes: int
    reused: bool
    messages: int

    @property
    def name(self) -> str:
        return f"{self.size_bytes // 1000} kB, {'reused' if self.reused else 'new'} connections"


@dataclass(frozen=True, slots=True)
class Round:
    """Result of one server under one load. Rates are messages per second; CPU is milliseconds per message."""

    server: str
    accepted_rate: float
    end_to_end_rate: float
    cpu_ms: float
    load_cpu_ms: float  # of smtp-source and smtp-sink
    other_cpu_share: float  # share of the machine used by other processes: 0 on an idle machine
    memory_bytes: int
    flushes: int | None


class CountingSink:
    """smtp-sink with its message count; the last message arrived at `last_at` (monotonic)."""

    def __init__(self) -> None:
        self.port = free_port()
        self.count = 0
        self.last_at = 0.0
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            ["smtp-sink", *user, "-c", "-m", "1000", f"127.0.0.1:{self.port}", "1000"],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        wait_for_greeting(self.port)

    @property
    def leader(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        tail = b""
        while chunk := os.read(descriptor, 65536):
            now = time.monotonic()
            tail = tail[-100:] + chunk
            counts = re.findall(rb"mesg=(\d+)\r", tail)
            if counts and int(counts[-1]) > self.count:
                self.last_at = now
                self.count = int(counts[-1])
            time.sleep(0.002)

    def wait_for(self, count: int, silence_seconds: float = 60.0) -> bool:
        """True once `count` messages have arrived; False if none arrived for a while."""
        last, changed = self.count, time.monotonic()
        while self.count < count:
            time.sleep(0.005)
            if self.count != last:
                last, changed = self.count, time.monotonic()
            elif time.monotonic() - changed > silence_seconds:
                return False
        return True

    def __enter__(self) -> CountingSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._thread.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()


class LoadFailed(Exception):
    """The load could not be completed; the text states the reason."""


def drive(server: Server, sink: CountingSink, scenario: Scenario) -> Round:
    """Send one load through `server` and wait until the sink has all of it."""
    expected = sink.count + scenario.messages
    flushes = machine.disk_flushes(server.disk)
    busy, cpu, sink_cpu = machine.busy_seconds(), server.cpu_seconds(), machine.cpu_seconds(sink.leader)
    source_cpu = _children_seconds()
    with machine.Highest(server.resident_bytes) as memory:
        begun = time.monotonic()
        command = ["smtp-source", "-s", str(SESSIONS), "-m", str(scenario.messages), "-l", str(scenario.size_bytes)]
        if scenario.reused:
            command.append("-d")
        command += ["-M", "source.test", "-f", "bench@sender.test", "-t", "recipient@remote.test"]
        source = subprocess.run([*command, f"127.0.0.1:{server.port}"], stderr=subprocess.PIPE, timeout=600)
        accepted_at = time.monotonic()
        if source.returncode != 0:
            raise LoadFailed(f"smtp-source against {server.name}: {source.stderr.decode(errors='replace')[-500:]}")
        if not sink.wait_for(expected):
            raise LoadFailed(f"{server.name}: {expected - sink.count} of {scenario.messages} messages did not arrive")
        done_at = sink.last_at
        time.sleep(0.3)  # remaining work counts for the server
    ended = time.monotonic()
    server_cpu = server.cpu_seconds() - cpu
    load_cpu = machine.cpu_seconds(sink.leader) - sink_cpu + _children_seconds() - source_cpu
    other = machine.busy_seconds() - busy - server_cpu - load_cpu
    after = machine.disk_flushes(server.disk)
    return Round(
        server=server.name,
        accepted_rate=scenario.messages / (accepted_at - begun),
        end_to_end_rate=scenario.messages / (done_at - begun),
        cpu_ms=server_cpu * 1000 / scenario.messages,
        load_cpu_ms=load_cpu * 1000 / scenario.messages,
        other_cpu_share=max(0.0, other / (ended - begun) / (os.cpu_count() or 1)),
        memory_bytes=memory.value,
        flushes=None if flushes is None or after is None else after - flushes,
    )


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
