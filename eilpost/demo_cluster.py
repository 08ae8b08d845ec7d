"""`eilpost demo --cluster`, what `make cluster` calls: seven processes on a Kafka of three brokers.

Two each of ingress, router and delivery, and one mailstore. A supervisor on one machine, as Kubernetes would be on
many: it makes the demo's world and the topics, starts the processes, says when one has gone, and starts it again. So
that a person can kill any of them while mail flows. It is no way to run a cluster for others: the brokers, the spool
and the mailboxes share this machine.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from eilpost import configuration, demo
from eilpost.child_supervisor import ChildSupervisor
from eilpost.wiring import log_settings
from mail.service import EXIT_UNUSABLE
from mail.settings import LogSettings

BROKERS = "kafka://127.0.0.1:9092,127.0.0.1:9093,127.0.0.1:9094"

CONFIGURATION = """\
# Made by `eilpost demo --cluster`, for all its processes; what differs between them (their ports) is set by the
# environment. Relative paths start from the folder of this file.

[node]
hostname = "mx.example.test"
drain = "10s"

[log]
url = "{brokers}"
prefix = "demo."
shards = 4
delivery_shards = 8
session_timeout = "6s"   # a killed process is missed sooner than by default; its work goes to the others then

[spool]
url = "file:spool"

[directory]
url = "file:directory.toml"

[mailboxes]
url = "maildir:mail"

[ingress]
sender_domain_must_resolve = false
"""

_RESTART_SECONDS = 1.0
_BROKERS_SECONDS = 60.0
_STOP_SECONDS = 15.0  # `node.drain` above, and a little


@dataclass(frozen=True, slots=True)
class Ports:
    """Of 127.0.0.1. `http`: of the first process; the others' follow."""

    smtp: tuple[int, int] = (2525, 2526)
    pop3: int = 2110
    http: int = 8025

    @classmethod
    def consecutive(cls, first: int) -> Ports:
        """Ten of them: two SMTP, POP3, seven HTTP."""
        return cls((first, first + 1), first + 2, first + 3)


@dataclass(frozen=True, slots=True)
class Member:
    """One process: a role, and the settings that are its own."""

    name: str
    role: str
    environment: Mapping[str, str]


def members(ports: Ports) -> Sequence[Member]:
    own = [
        *((f"ingress-{n}", {"EILPOST_INGRESS__MX": f"127.0.0.1:{port}"}) for n, port in enumerate(ports.smtp, 1)),
        *((name, dict[str, str]()) for name in ("router-1", "router-2", "delivery-1", "delivery-2")),
        ("mailstore-1", {"EILPOST_MAILSTORE__POP3": f"127.0.0.1:{ports.pop3}"}),
    ]
    return [
        Member(name, name.partition("-")[0], environment | {"EILPOST_HTTP__LISTEN": f"127.0.0.1:{ports.http + number}"})
        for number, (name, environment) in enumerate(own)
    ]


def create_files(folder: Path, brokers: str) -> Path:
    """Make what is missing in `folder`; the configuration's path."""
    return demo.create_files(folder, CONFIGURATION.format(brokers=brokers))


def run(path: Path, program: str, ports: Ports = Ports()) -> int:
    """Make the topics, run the processes until Ctrl-C; the exit status."""
    return asyncio.run(_run(path, program, ports))


async def _run(path: Path, program: str, ports: Ports) -> int:
    settings = log_settings(configuration.load_plan(path))
    await _await_brokers(settings)
    await _create_topics(settings)
    stop, kill_now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: (kill_now if stop.is_set() else stop).set())
    all_members = members(ports)
    _print_line(_banner(path, program, ports, len(all_members)))
    ready_task = asyncio.create_task(_announce_ready(all_members))
    supervisor = ChildSupervisor()
    try:
        await asyncio.gather(*(_supervise(member, path, program, supervisor, stop, kill_now) for member in all_members))
    finally:
        supervisor.close()
    ready_task.cancel()
    _print_line("all stopped; what was accepted is in Kafka and goes on at the next start")
    return 0


async def _await_brokers(settings: LogSettings) -> None:
    """All of them, as after `make kafka` in another terminal; after a while those that are there have to do."""
    from mail.log.kafka.access import make_access
    from mail.log.kafka.diagnose import Unreachable, check_broker

    access = make_access(settings)
    until, is_announced = time.monotonic() + _BROKERS_SECONDS, False
    while time.monotonic() < until:
        answers = await asyncio.gather(*(check_broker(access, address) for address in access.bootstrap_servers))
        missing = [answer for answer in answers if isinstance(answer, Unreachable)]
        if not missing:
            return
        if not is_announced:
            _print_line(
                f"waiting for the brokers, which `make kafka NODES=3` starts: {missing[0].address} {missing[0].what}"
            )
            is_announced = True
        await asyncio.sleep(0.5)


async def _create_topics(settings: LogSettings) -> None:
    from mail.log.kafka.access import make_access
    from mail.log.kafka.create_topics import create_missing, open_admin

    access = make_access(settings)
    admin = await open_admin(access)
    try:
        done = await create_missing(admin, access, settings)
    finally:
        await admin.close()
    if done:
        _print_line(f"topics: {len(done)} made")


async def _supervise(
    member: Member, path: Path, program: str, supervisor: ChildSupervisor, stop: asyncio.Event, kill_now: asyncio.Event
) -> None:
    """Run the process again and again until `stop`, then end it; it never outlives us."""
    stopping = asyncio.ensure_future(stop.wait())
    log_file = path.parent / f"{member.name}.log"
    quick_exits = 0
    try:
        while not stop.is_set():
            began = time.monotonic()
            with log_file.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *shlex.split(program),
                    *(member.role, "--config", str(path)),
                    env=os.environ | member.environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=supervisor.process_group,  # Ctrl-C is ours to pass on
                )
            _print_line(f"  {member.name:12} pid {process.pid:<8} log {log_file}")
            ending = asyncio.ensure_future(process.wait())
            await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await _end(process, ending, kill_now)
                return
            status = ending.result()
            if status == EXIT_UNUSABLE:  # it cannot run as things are, and says why
                last = log_file.read_text(errors="replace").strip().rpartition("\n")[2]
                _print_line(f"  {member.name} cannot run: {last}")
            else:
                _print_line(f"  {member.name} {_exit_text(status)}; started again in a moment")
            quick_exits = quick_exits + 1 if time.monotonic() - began < _RESTART_SECONDS * 5 and status > 0 else 0
            await asyncio.wait({stopping}, timeout=_RESTART_SECONDS * min(30, 1 + quick_exits * quick_exits))
    finally:
        stopping.cancel()


async def _end(process: asyncio.subprocess.Process, ending: asyncio.Future[int], kill_now: asyncio.Event) -> None:
    """Politely for `_STOP_SECONDS`, and less when `hurry` is set; then for good."""
    if process.returncode is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # one that a person has stopped hears nothing
        kill_waiter = asyncio.ensure_future(kill_now.wait())
        ends: set[asyncio.Future[Any]] = {ending, kill_waiter}
        await asyncio.wait(ends, timeout=_STOP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        kill_waiter.cancel()
        if process.returncode is None:
            process.kill()  # what was accepted is in Kafka
    await ending


async def _announce_ready(all_members: Sequence[Member]) -> None:
    """One line, once every process says that it is ready."""
    waiting = {member.environment["EILPOST_HTTP__LISTEN"] for member in all_members}
    while waiting:
        await asyncio.sleep(0.5)
        for where in list(waiting):
            if await asyncio.to_thread(_is_ready, where):
                waiting.discard(where)
    _print_line("\nAll are ready: send mail now.\n")


def _is_ready(where: str) -> bool:
    host, _, port = where.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _exit_text(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _print_line(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _banner(path: Path, program: str, ports: Ports, count: int) -> str:
    run = f"{program} {{}} --config {shlex.quote(str(path))}"
    return f"""
A cluster of {count} processes on 127.0.0.1: SMTP {ports.smtp[0]} and {ports.smtp[1]}, POP3 {ports.pop3}, HTTP from \
{ports.http} on.
Mailboxes: {" and ".join(f"{user}@{demo.DOMAIN}" for user in demo.USERS)}, password {demo.PASSWORD}. Stop: Ctrl-C.

Try, in another terminal: send mail (docs/install.md), and kill any process below, or a broker: `kill -9 PID`.
  {run.format("doctor")}
  {run.format("queue")}
  {run.format("trace QUEUE_ID")}
"""


def program() -> str:
    """How this command was called, to start others the same way."""
    return shlex.join([sys.executable, "-m", "eilpost"])
