"""Journey 26: what `make cluster` runs. Mail goes in at both doors and is fetched, processes are ended and come again.

Its ports are free ones, all else as a person gets it: three brokers, seven processes, and Ctrl-C at the end. One of the
brokers is killed too.
"""

from __future__ import annotations

import os
import poplib
import re
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from eilpost import demo
from tests.support import guarded
from tests.support.kafka import MakesClusters
from tests.support.ports import free_port

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.timeout(300)]

LETTERS = 200

RUN = """
import sys
from pathlib import Path
from eilpost import demo_cluster as demo
folder, brokers, *ports = sys.argv[1:]
one, two, pop3, http = map(int, ports)
path = demo.prepare(Path(folder), brokers)
raise SystemExit(demo.run(path, demo.program(), demo.Ports((one, two), pop3, http)))
"""


class Running:
    def __init__(self, process: subprocess.Popen[bytes], said: Path) -> None:
        self.process = process
        self._said = said

    def said(self) -> str:
        return self._said.read_text()

    def pid(self, name: str) -> int:
        return int(re.findall(rf"{name} +pid (\d+)", self.said())[-1])


@contextmanager
def running(folder: Path, brokers: str, ports: tuple[int, ...]) -> Iterator[Running]:
    said = folder / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder / "demo"), brokers, *map(str, ports)],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            process_group=guarded.group(),
        )
    seen = Running(process, said)
    try:
        yield seen
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                for pid in map(int, re.findall(r"pid (\d+)", seen.said())):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def until(what: Callable[[], bool], text: Callable[[], str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, text()
        time.sleep(0.1)


def send(port: int, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.sendmail("bob@example.test", ["alice@example.test"], f"Subject: {subject}\r\n\r\nhello\r\n")


def subjects(port: int) -> set[str]:
    client = poplib.POP3("127.0.0.1", port, timeout=20)
    try:
        client.user("alice@example.test")
        client.pass_(demo.PASSWORD)
        count, _ = client.stat()
        lines = [line for number in range(1, count + 1) for line in client.retr(number)[1]]
        return {line.removeprefix(b"Subject: ").decode() for line in lines if line.startswith(b"Subject: ")}
    finally:
        client.quit()


class Letters:
    """What a sender that repeats what got no 250 has come to."""

    accepted = 0


@contextmanager
def flow(ports: tuple[int, int], count: int) -> Iterator[Letters]:
    """README's sender: one letter after the other, at both doors in turn."""
    letters, over = Letters(), threading.Event()

    def run() -> None:
        for number in range(count):
            while not over.is_set():
                try:
                    send(ports[number % 2], f"flow-{number}")
                    letters.accepted += 1
                    break
                except (OSError, smtplib.SMTPException):
                    over.wait(1)
            over.wait(0.05)

    sender = threading.Thread(target=run)
    sender.start()
    try:
        yield letters
    finally:
        over.set()
        sender.join()


def test_the_demo_cluster(kafka_cluster: MakesClusters, tmp_path: Path) -> None:
    brokers = kafka_cluster(3)
    smtp, pop3, http = (free_port(), free_port()), free_port(), _seven_free_ports()
    with running(tmp_path, f"kafka://{brokers.bootstrap}", (*smtp, pop3, http)) as cluster:
        until(lambda: "All are ready" in cluster.said(), cluster.said)
        assert f"SMTP {smtp[0]} and {smtp[1]}, POP3 {pop3}" in cluster.said()
        for number, port in enumerate(smtp):
            send(port, f"before-{number}")

        ended = {name: cluster.pid(name) for name in ("ingress-1", "router-1", "delivery-2")}
        for pid in ended.values():
            os.kill(pid, signal.SIGKILL)
        send(smtp[1], "meanwhile")
        until(lambda: all(cluster.pid(name) != pid for name, pid in ended.items()), cluster.said)
        assert cluster.said().count("was ended by SIGKILL; started again in a moment") == len(ended)
        until(lambda: subjects(pop3) == {"before-0", "before-1", "meanwhile"}, cluster.said)

        mailstore = cluster.pid("mailstore-1")
        with flow(smtp, LETTERS) as letters:
            until(lambda: letters.accepted > LETTERS // 10, cluster.said)
            brokers.node(2).kill()
            os.kill(mailstore, signal.SIGKILL)
            until(lambda: cluster.pid("mailstore-1") != mailstore, cluster.said)
            assert letters.accepted < LETTERS, "all was over before anything was lost"
            until(lambda: letters.accepted == LETTERS, lambda: f"{letters.accepted} accepted\n{cluster.said()}", 120)
        flowed = {f"flow-{number}" for number in range(LETTERS)}
        until(lambda: subjects(pop3) >= flowed, lambda: f"{flowed - subjects(pop3)}\n{cluster.said()}", 90)

        os.kill(cluster.pid("router-2"), signal.SIGSTOP)  # it has to be woken to hear that it is to end
        cluster.process.send_signal(signal.SIGINT)
        assert cluster.process.wait(60) == 0
        assert "all stopped; what was accepted is in Kafka" in cluster.said()
        assert "Traceback" not in cluster.said()


def test_its_processes_do_not_outlive_a_demo_that_is_killed(kafka_cluster: MakesClusters, tmp_path: Path) -> None:
    brokers = kafka_cluster(3)
    ports = (free_port(), free_port(), free_port(), _seven_free_ports())
    with running(tmp_path, f"kafka://{brokers.bootstrap}", ports) as cluster:
        until(lambda: cluster.said().count(" pid ") == 7, cluster.said)
        pids = [int(pid) for pid in re.findall(r" pid (\d+)", cluster.said())]
        until(lambda: all(_lives(pid) for pid in pids), cluster.said)
        os.kill(pids[0], signal.SIGSTOP)  # what is frozen could not end by itself
        cluster.process.kill()
        cluster.process.wait(10)
        until(lambda: not any(_lives(pid) for pid in pids), lambda: f"{pids} live on", 10)


def _lives(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def _seven_free_ports() -> int:
    """The first of seven in a row."""
    while True:
        first = free_port()
        if first + 7 < 65_536 and all(_is_free(first + n) for n in range(7)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
