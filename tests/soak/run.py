"""A soak: `eilpost load` through two servers in a row, the first of which is killed again and again.

    eilpost load --> front (SIGKILL and restart every minute) --> relay (never restarted) --> sink of the load

Both keep the embedded log. The front shows that kills lose nothing; the relay, which also defers, bounces and sees the
connections of the front break, shows that memory, open files, tasks and disk do not grow.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.support.servers import supervised
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, Sections
from tests.support.servers.ports import free_port

SIZES = "2kB:90,100kB:9,1MB:1"
FAILING, DEFERRING = "2%", "2%"
RETENTION = "2m"  # of events: older ones are removed, so the disk has an upper limit
_SETTLE_SECONDS = 120  # after the last message, for the retries of both servers
_SAMPLE_SECONDS = 5.0


class Sample(NamedTuple):
    """State of the relay, some time after the first message."""

    seconds: float
    memory_bytes: int
    open_files: int
    threads: int
    tasks: int
    log_bytes: int
    spool_bytes: int


@dataclass(slots=True)
class Soak:
    """`load`: the JSON of `eilpost load`."""

    rate: float
    kills: int = 0
    samples: list[Sample] = field(default_factory=list)
    load: dict[str, Any] = field(default_factory=dict)
    status: int | None = None  # of `eilpost load`

    def growth(self, name: str) -> float:
        """The mean of a figure in the last third of the run, divided by that in the second third. The first third is
        the start: caches fill, and the windows of the sites grow.
        """
        values = [float(getattr(sample, name)) for sample in self.samples]
        third = len(values) // 3
        second, last = values[third : 2 * third], values[2 * third :]
        return (sum(last) / len(last)) / (sum(second) / len(second)) if sum(second) else 1.0


def fastest_rate(folder: Path, seconds: int) -> float:
    """Messages a second that the two servers deliver without a limit and without kills."""
    with _servers(folder) as (front, _relay, sink):
        result, _ = _finish(_load(front, sink, 0, seconds))
    return float(result["delivered_per_second"])


def soak(folder: Path, seconds: int, rate: float, kill_every_seconds: float) -> Soak:
    """Run the load for `seconds`, then wait until every recipient is accounted for."""
    run = Soak(rate)
    with _servers(folder) as (front, relay, sink):
        load = _load(front, sink, rate, seconds)
        began = time.monotonic()
        next_kill = began + kill_every_seconds
        while load.poll() is None:
            time.sleep(min(_SAMPLE_SECONDS, seconds / 30))
            now = time.monotonic()
            if now < began + seconds:
                run.samples.append(_sample(relay, now - began))
            if next_kill <= now < began + seconds:
                next_kill += kill_every_seconds
                front.kill()
                front.start()
                run.kills += 1
        run.load, run.status = _finish(load)
        assert relay.is_running, relay.output()[-4000:]
        for server in (front, relay):
            assert "traceback" not in server.output(), server.output()[-4000:]
    return run


@contextmanager
def _servers(folder: Path) -> Iterator[tuple[EilpostProcess, EilpostProcess, int]]:
    """The front, the relay, and the port of the sink."""
    sink = free_port()
    relay = EilpostProcess(folder / "relay", _settings(sink))
    front = EilpostProcess(folder / "front", _settings(relay.mx))
    try:
        relay.start()
        front.start()
        yield front, relay, sink
    finally:
        front.kill()
        relay.kill()


def _settings(next_hop_port: int) -> Sections:
    return {
        "log": {"events_retention": RETENTION},
        "router": {"retry_delays": ["5s"]},
        "delivery": {"relay": f"smtp://127.0.0.1:{next_hop_port}", "reconnect_backoff": "1s"},
    }


def _load(front: EilpostProcess, sink: int, rate: float, seconds: int) -> subprocess.Popen[str]:
    options = (
        f"--target=127.0.0.1:{front.mx}", f"--sink=127.0.0.1:{sink}", f"--rate={rate:g}", f"--duration={seconds}s",
        f"--size={SIZES}", f"--failing={FAILING}", f"--deferring={DEFERRING}", f"--settle={_SETTLE_SECONDS}s", "--json",
    )  # fmt: skip
    return subprocess.Popen(
        [str(EILPOST), "load", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=supervised.group(),
    )


def _finish(load: subprocess.Popen[str]) -> tuple[dict[str, Any], int]:
    output, _ = load.communicate()
    return json.loads(output), load.returncode


def _sample(relay: EilpostProcess, seconds: float) -> Sample:
    process = psutil.Process(relay.pid)
    with process.oneshot():
        memory, files, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
    return Sample(
        seconds,
        memory,
        files,
        threads,
        int(relay.metric("eilpost_event_loop_tasks")),
        _size(relay.home.glob("log.db*")),
        _size((relay.home / "spool").rglob("*")),
    )


def _size(paths: Iterator[Path] | Sequence[Path]) -> int:
    total = 0
    for path in paths:
        try:
            total += path.stat().st_blocks * 512 if path.is_file() else 0
        except FileNotFoundError:  # removed meanwhile
            continue
    return total
