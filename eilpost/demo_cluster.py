"""`eilpost demo --cluster`, what `make cluster` calls: seven processes on a Kafka of three brokers.

Two each of ingress, router and delivery, and one mailstore. A supervisor on one machine, as Kubernetes would be on
many: it makes the demo's world and the topics, starts the processes, says when one has gone, and starts it again. So
that a person can kill any of them while mail flows. It is no way to run a cluster for others: the brokers, the spool
and the mailboxes share this machine. Next: `eilpost/demo.py`.
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
from eilpost.compose import log_settings
from eilpost.guard import Guard
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

_AGAIN_SECONDS = 1.0
_BROKERS_SECONDS = 60.0
_STOP_SECONDS = 15.0  # `node.drain` above, and a little


@dataclass(frozen=True, slots=True)
class Ports:
    """Of 127.0.0.1. `http`: of the first process; the others' follow."""

    smtp: tuple[int, int] = (2525, 2526)
    pop3: int = 2110
    http: int = 8025

    @classmethod
    def in_a_row(cls, first: int) -> Ports:
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


def prepare(folder: Path, brokers: str) -> Path:
    """Make what is missing in `folder`; the configuration's path."""
    return demo.prepare(folder, CONFIGURATION.format(brokers=brokers))


def run(path: Path, program: str, ports: Ports = Ports()) -> int:
    """Make the topics, run the processes until Ctrl-C; the exit status."""
    return asyncio.run(_run(path, program, ports))


async def _run(path: Path, program: str, ports: Ports) -> int:
    settings = log_settings(configuration.plan(path))
    await _await_brokers(settings)
    await _make_topics(settings)
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    everyone = members(ports)
    _say(_banner(path, program, ports, len(everyone)))
    telling = asyncio.create_task(_tell_ready(everyone))
    guard = Guard()
    try:
        await asyncio.gather(*(_supervise(member, path, program, guard, stop, hurry) for member in everyone))
    finally:
        guard.close()
    telling.cancel()
    _say("all stopped; what was accepted is in Kafka and goes on at the next start")
    return 0


async def _await_brokers(settings: LogSettings) -> None:
    """All of them, as after `make kafka` in another terminal; after a while those that are there have to do."""
    from mail.log.kafka.access import make_access
    from mail.log.kafka.reaching import Unreached, reach

    access = make_access(settings)
    until, is_told = time.monotonic() + _BROKERS_SECONDS, False
    while time.monotonic() < until:
        answers = await asyncio.gather(*(reach(access, address) for address in access.servers))
        missing = [answer for answer in answers if isinstance(answer, Unreached)]
        if not missing:
            return
        if not is_told:
            _say(f"waiting for the brokers, which `make kafka NODES=3` starts: {missing[0].address} {missing[0].what}")
            is_told = True
        await asyncio.sleep(0.5)


async def _make_topics(settings: LogSettings) -> None:
    from mail.log.kafka.access import make_access
    from mail.log.kafka.making import create, open_admin

    access = make_access(settings)
    admin = await open_admin(access)
    try:
        done = await create(admin, access, settings)
    finally:
        await admin.close()
    if done:
        _say(f"topics: {len(done)} made")


async def _supervise(
    member: Member, path: Path, program: str, guard: Guard, stop: asyncio.Event, hurry: asyncio.Event
) -> None:
    """Run the process again and again until `stop`, then end it; it never outlives us."""
    stopping = asyncio.ensure_future(stop.wait())
    log_file = path.parent / f"{member.name}.log"
    quick = 0
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
                    process_group=guard.group,  # Ctrl-C is ours to pass on
                )
            _say(f"  {member.name:12} pid {process.pid:<8} log {log_file}")
            ending = asyncio.ensure_future(process.wait())
            await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await _end(process, ending, hurry)
                return
            status = ending.result()
            if status == EXIT_UNUSABLE:  # it cannot run as things are, and says why
                last = log_file.read_text(errors="replace").strip().rpartition("\n")[2]
                _say(f"  {member.name} cannot run: {last}")
            else:
                _say(f"  {member.name} {_how(status)}; started again in a moment")
            quick = quick + 1 if time.monotonic() - began < _AGAIN_SECONDS * 5 and status > 0 else 0
            await asyncio.wait({stopping}, timeout=_AGAIN_SECONDS * min(30, 1 + quick * quick))
    finally:
        stopping.cancel()


async def _end(process: asyncio.subprocess.Process, ending: asyncio.Future[int], hurry: asyncio.Event) -> None:
    """Politely for `_STOP_SECONDS`, and less when `hurry` is set; then for good."""
    if process.returncode is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # one that a person has stopped hears nothing
        hurrying = asyncio.ensure_future(hurry.wait())
        ends: set[asyncio.Future[Any]] = {ending, hurrying}
        await asyncio.wait(ends, timeout=_STOP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if process.returncode is None:
            process.kill()  # what was accepted is in Kafka
    await ending


async def _tell_ready(everyone: Sequence[Member]) -> None:
    """One line, once every process says that it is ready."""
    waiting = {member.environment["EILPOST_HTTP__LISTEN"] for member in everyone}
    while waiting:
        await asyncio.sleep(0.5)
        for where in list(waiting):
            if await asyncio.to_thread(_is_ready, where):
                waiting.discard(where)
    _say("\nAll are ready: send mail now.\n")


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


def _how(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _banner(path: Path, program: str, ports: Ports, count: int) -> str:
    run = f"{program} {{}} --config {shlex.quote(str(path))}"
    return f"""
A cluster of {count} processes on 127.0.0.1: SMTP {ports.smtp[0]} and {ports.smtp[1]}, POP3 {ports.pop3}, HTTP from \
{ports.http} on.
Mailboxes: {" and ".join(f"{user}@{demo.DOMAIN}" for user in demo.USERS)}, password {demo.PASSWORD}. Stop: Ctrl-C.

Try, in another terminal: send mail as README says, and meanwhile end any process below, or a broker, by `kill -9 PID`.
  {run.format("doctor")}
  {run.format("queue")}
  {run.format("trace QUEUE_ID")}
"""


def program() -> str:
    """How this command was called, to start others the same way."""
    return shlex.join([sys.executable, "-m", "eilpost"])
