"""Duration of a relay client's transaction, without and with outsiders that occupy connections.

Outsiders have addresses of 127.1.0.0/16, ten connections each, in a process of their own: idle ones send nothing, slow
ones send message data at one octet a second. A outsider whose connection ends connects again after five seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers.eilpost_process import EilpostProcess

IDLE, SLOW = 2000, 200
_PER_ADDRESS = 10
_RETRY_SECONDS = 5.0
_SETTLE_SECONDS = 15.0  # until the stress time-out has ended sessions that began before it
_CONTENT = "Subject: bench\r\n\r\n" + "x" * 70 + "\r\n"


@dataclass(frozen=True, slots=True)
class Transactions:
    """Milliseconds from the connection to the reply to QUIT."""

    label: str
    p50: float
    p99: float


def measure(transactions: int = 2000) -> list[Transactions]:
    """With the default settings, and with enough connections for all outsiders."""
    return [*_measure("default", {}, transactions), *_measure("max_connections = 4000", _MANY, transactions)]


_MANY = {"max_connections": 4000}


def _measure(name: str, settings: dict[str, object], transactions: int) -> list[Transactions]:
    with tempfile.TemporaryDirectory(prefix="eilpost-bench-") as home:
        server = EilpostProcess(
            Path(home), {"node": {"log_level": "warning"}, "ingress": {"relay_networks": ["127.0.0.1/32"], **settings}}
        )
        with server:
            _transactions(server.mx, 300)  # warm up
            alone = _quantiles(f"{name}, no outsiders", _transactions(server.mx, transactions))
            command = [sys.executable, "-m", "tests.bench.flood", str(server.mx)]
            with subprocess.Popen(command, stdin=subprocess.PIPE) as outsiders:
                try:
                    time.sleep(_SETTLE_SECONDS)
                    connected = int(server.metric("eilpost_smtp_connections", listener="mx"))
                    together = _quantiles(
                        f"{name}, {IDLE} idle and {SLOW} slow outsiders ({connected} connected)",
                        _transactions(server.mx, transactions),
                    )
                finally:
                    assert outsiders.stdin is not None
                    outsiders.stdin.close()  # ends the process
            return [alone, together]


def _transactions(port: int, count: int) -> list[float]:
    """One after the other, each with a connection of its own."""
    durations = []
    for _ in range(count):
        started = time.perf_counter()
        with smtplib.SMTP("127.0.0.1", port, "client.example.test", timeout=30) as client:
            client.sendmail("alice@example.test", ["alice@example.test"], _CONTENT)
        durations.append(1000 * (time.perf_counter() - started))
    return durations


def _quantiles(label: str, durations: list[float]) -> Transactions:
    of_hundred = statistics.quantiles(durations, n=100)
    return Transactions(label, of_hundred[49], of_hundred[98])


def one_line(measured: Transactions) -> str:
    return f"{measured.label:70} transaction {measured.p50:.1f} ms (p99 {measured.p99:.1f})"


async def _outsider(port: int, number: int, *, slow: bool) -> None:
    third, fourth = divmod(number // _PER_ADDRESS, 250)
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(f"127.1.{third}.{fourth + 1}", 0)
            )
            try:
                if slow:
                    for command in ("", "EHLO slow.test", "MAIL FROM:<>", "RCPT TO:<alice@example.test>", "DATA"):
                        if command:
                            writer.write(command.encode() + b"\r\n")
                        while (await reader.readuntil(b"\r\n"))[3:4] == b"-":
                            pass
                    while not reader.at_eof():
                        writer.write(b"x")
                        await asyncio.sleep(1)
                await reader.read()
            finally:
                writer.close()
        await asyncio.sleep(_RETRY_SECONDS)


async def _load(port: int) -> None:
    loop = asyncio.get_running_loop()
    tasks = [asyncio.create_task(_outsider(port, number, slow=number < SLOW)) for number in range(IDLE + SLOW)]
    await loop.run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(_load(int(sys.argv[1])))
