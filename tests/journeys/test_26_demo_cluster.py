"""Journey 26: `make kafka NODES=3` and `make cluster`, in which a process of each role and a broker are killed under
load and restarted.

The mail is sent to both ingress processes, for many mailboxes and for other domains. Folders and ports are the test's.
"""

from __future__ import annotations

import os
import poplib
import re
import signal
import smtplib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from eilpost import demo
from tests.support.servers import supervised
from tests.support.servers.kafka import ClusterFactory
from tests.support.servers.ports import block_until, free_ports_from

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.timeout(300)]

MESSAGES = 200

BROKER = Path(__file__).parents[2] / "deploy" / "kafka" / "broker.py"
PORTS = 11  # two SMTP, POP3, seven HTTP, the sink
USERS = 20


class Running:
    def __init__(self, process: subprocess.Popen[bytes], said: Path) -> None:
        self.process = process
        self._said = said

    def said(self) -> str:
        return self._said.read_text()

    def pid(self, name: str) -> int:
        """Pid of a process of `make cluster` or a node of `make kafka`, from the last line that reports it."""
        return int(re.findall(rf"{name} +(?:pid|is process) (\d+)", self.said())[-1])

    def pids(self) -> set[int]:
        return set(map(int, re.findall(r" (?:pid|is process) (\d+)", self.said())))

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(120)  # brokers hand over their partitions


@contextmanager
def running(said: Path, *command: str) -> Iterator[Running]:
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            process_group=supervised.group(),
        )
    try:
        yield Running(process, said)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()  # its supervisor ends the processes that it started
                process.wait()


def make_cluster(folder: Path, brokers: str, first: int) -> AbstractContextManager[Running]:
    """`make cluster` with the test's folders and ports."""
    given = ("--dir", str(folder / "demo"), "--brokers", brokers, "--port", str(first))
    return running(folder / "said", "-m", "eilpost", "demo", "--cluster", *given)


def make_kafka(folder: Path, first: int) -> AbstractContextManager[Running]:
    """`make kafka NODES=3` with the test's folders and ports."""
    given = ("--nodes", "3", "--port", str(first), "--dir", str(folder / "kafka"))
    return running(folder / "kafka-said", str(BROKER), "up", *given)


def alive(folder: Path) -> list[str]:
    """The state of each broker in `broker.py status`."""
    asked = [sys.executable, str(BROKER), "status", "--dir", str(folder / "kafka")]
    return subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()


def until(what: Callable[[], bool], text: Callable[[], str], seconds: float = 60) -> None:
    block_until(what, deadline_seconds=seconds, what=text)


def recipient(number: int) -> str:
    """Every third message is for another domain, the others are for the mailboxes in turn."""
    return f"you@elsewhere{number}.test" if number % 3 == 2 else f"user{number % USERS + 1}@example.test"


def send(port: int, number: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.sendmail("bob@example.test", [recipient(number)], f"Subject: flow-{number}\r\n\r\nhello\r\n")


def subjects(port: int) -> set[str]:
    return set().union(*(subjects_of(f"user{number}@example.test", port) for number in range(1, USERS + 1)))


def subjects_of(user: str, port: int) -> set[str]:
    client = poplib.POP3("127.0.0.1", port, timeout=20)
    try:
        client.user(user)
        client.pass_(demo.PASSWORD)
        count, _ = client.stat()
        lines = [line for number in range(1, count + 1) for line in client.retr(number)[1]]
        return {line.removeprefix(b"Subject: ").decode() for line in lines if line.startswith(b"Subject: ")}
    finally:
        client.quit()


class FlowCount:
    """Messages of a sender that repeats each message without a 250."""

    accepted = 0


@contextmanager
def flow(ports: tuple[int, int], count: int) -> Iterator[FlowCount]:
    """The sender of docs/install.md: one message after the other, alternating between both ingresses."""
    counts, over = FlowCount(), threading.Event()

    def run() -> None:
        for number in range(count):
            while not over.is_set():
                try:
                    send(ports[number % 2], number)
                    counts.accepted += 1
                    break
                except (OSError, smtplib.SMTPException):
                    over.wait(1)
            over.wait(0.05)

    sender = threading.Thread(target=run)
    sender.start()
    try:
        yield counts
    finally:
        over.set()
        sender.join()


def sink_count(cluster: Running) -> int:
    numbers = re.findall(r"^sink: .*message (\d+)", cluster.said(), re.MULTILINE)
    return int(numbers[-1]) if numbers else 0


def test_demo_cluster_survives_killed_processes_and_brokers(tmp_path: Path) -> None:
    kafka_port, first = free_ports_from(*range(3), *range(100, 103)), free_ports_from(*range(PORTS))
    smtp, pop3 = (first, first + 1), first + 2
    bootstrap = ",".join(f"127.0.0.1:{kafka_port + n}" for n in range(3))
    with (
        make_kafka(tmp_path, kafka_port) as kafka,
        make_cluster(tmp_path, f"kafka://{bootstrap}", first) as cluster,  # it waits for the brokers
    ):
        until(lambda: len(kafka.pids()) == 3, kafka.said)
        assert f'For eilpost: log.url = "kafka://{bootstrap}"' in kafka.said()
        until(lambda: "All are ready" in cluster.said(), cluster.said)
        assert f"SMTP {smtp[0]} and {smtp[1]}, POP3 {pop3}" in cluster.said()

        with flow(smtp, MESSAGES) as counts:
            until(lambda: counts.accepted > MESSAGES // 10, cluster.said)
            victims = ("ingress-1", "router-1", "delivery-2", "mailstore-1")
            ended, node = {name: cluster.pid(name) for name in victims}, kafka.pid("node 2")
            for pid in (*ended.values(), node):
                os.kill(pid, signal.SIGKILL)
            until(lambda: all(cluster.pid(name) != pid for name, pid in ended.items()), cluster.said)
            assert counts.accepted < MESSAGES, "all was over before anything was lost"
            until(lambda: counts.accepted == MESSAGES, lambda: f"{counts.accepted} accepted\n{cluster.said()}", 120)
        assert cluster.said().count("was ended by SIGKILL; restarting") == len(ended)
        flowed = {f"flow-{number}" for number in range(MESSAGES) if recipient(number).endswith("@example.test")}
        until(lambda: subjects(pop3) == flowed, lambda: f"{flowed ^ subjects(pop3)}\n{cluster.said()}", 90)

        at_sink = MESSAGES - len(flowed)
        until(lambda: sink_count(cluster) >= at_sink, lambda: f"{sink_count(cluster)} of {at_sink}\n{cluster.said()}")
        for name in ("router-1", "router-2", "delivery-1", "delivery-2"):
            assert '"delivery_id"' in (tmp_path / "demo" / f"{name}.log").read_text(), f"{name} did nothing"

        assert "  node 2 exited, restarting in 20 s" in kafka.said()
        until(lambda: kafka.pid("node 2") != node, kafka.said)
        until(lambda: all(line.endswith(" alive: [1, 2, 3]") for line in alive(tmp_path)), lambda: str(alive(tmp_path)))

        os.kill(cluster.pid("router-2"), signal.SIGSTOP)  # must be resumed to handle the signal
        for each, last in ((cluster, "all stopped; accepted mail is in Kafka"), (kafka, "Kafka stopped; the data")):
            assert each.interrupt() == 0
            assert last in each.said()
            assert "Traceback" not in each.said()
            assert not any(_lives(pid) for pid in each.pids())


def test_processes_end_with_a_killed_demo(kafka_cluster: ClusterFactory, tmp_path: Path) -> None:
    brokers = kafka_cluster(3)
    with make_cluster(tmp_path, f"kafka://{brokers.bootstrap}", free_ports_from(*range(PORTS))) as cluster:
        until(lambda: cluster.said().count(" pid ") == 7, cluster.said)
        pids = list(cluster.pids())
        until(lambda: all(_lives(pid) for pid in pids), cluster.said)
        os.kill(pids[0], signal.SIGSTOP)  # a stopped process cannot end by itself
        cluster.process.kill()
        cluster.process.wait(10)
        until(lambda: not any(_lives(pid) for pid in pids), lambda: f"{pids} live on", 10)


def _lives(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False
