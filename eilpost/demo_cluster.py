"""`eilpost demo --cluster`, which `make cluster` calls: supervisor of seven processes on a Kafka of three brokers.

It creates the demo's files and the topics, starts two processes each of ingress, router and delivery and one of
mailstore, and restarts a process that ends, so that any of them can be killed while mail flows. It also runs the demo's
sink. It is for trying only: brokers, spool and mailboxes are on one machine.
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
from eilpost.demo_sink import DemoSink, sink_port
from eilpost.listen import is_in_use
from eilpost.wiring import create_topics, log_settings
from mail.backoff import backoff
from mail.service import EXIT_UNUSABLE, ServiceError
from mail.settings import LogSettings
from mail.tasks import background, is_set_within

BROKERS = "kafka://127.0.0.1:9092,127.0.0.1:9093,127.0.0.1:9094"
BROKERS_SECONDS = 60.0  # how long a start waits for them

CONFIGURATION = f"""\
# Made by `eilpost demo --cluster`, for all its processes; their ports are set by the environment.
# Relative paths start from the folder of this file.

[node]
hostname = "mx.example.test"
drain_timeout = "10s"

[log]
url = "{{brokers}}"
prefix = "demo."
shards = 4
delivery_shards = 8
session_timeout = "6s"   # shorter than by default: the others take over the shards of a killed process sooner

{demo.STORAGE}
[ingress]
sender_domain_must_resolve = false

{demo.RELAY}"""

_HTTP_LISTEN = "EILPOST_HTTP__LISTEN"
_RESTART_SECONDS, _RESTART_SECONDS_MAX = 1.0, 30.0
_STOP_SECONDS = 15.0  # longer than `node.drain_timeout` above
_MORE_USERS = 20  # mailboxes in all shards


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports on 127.0.0.1; `http` is the first of seven. `sink` None: the port of `delivery.relay`."""

    smtp: tuple[int, int] = (2525, 2526)
    pop3: int = 2110
    http: int = 8025
    sink: int | None = None

    @classmethod
    def consecutive(cls, first: int) -> Ports:
        """Eleven ports: two SMTP, POP3, seven HTTP, the sink."""
        return cls((first, first + 1), first + 2, first + 3, first + 10)


@dataclass(frozen=True, slots=True)
class Member:
    """One process, "router-1", and its own settings."""

    name: str
    environment: Mapping[str, str]


def members(ports: Ports, common: Mapping[str, str]) -> Sequence[Member]:
    listeners = {
        "ingress-1": {"EILPOST_INGRESS__SMTP_LISTEN": ports.smtp[0]},
        "ingress-2": {"EILPOST_INGRESS__SMTP_LISTEN": ports.smtp[1]},
        **{name: dict[str, int]() for name in ("router-1", "router-2", "delivery-1", "delivery-2")},
        "mailstore-1": {"EILPOST_MAILSTORE__POP3_LISTEN": ports.pop3},
    }
    return [
        Member(
            name, {**common, **{key: f"127.0.0.1:{port}" for key, port in (own | {_HTTP_LISTEN: http_port}).items()}}
        )
        for http_port, (name, own) in enumerate(listeners.items(), ports.http)
    ]


def create_files(folder: Path, brokers: str) -> Path:
    """Create the missing files in `folder`; the configuration's path."""
    return demo.create_files(folder, CONFIGURATION.format(brokers=brokers), _MORE_USERS)


def run(path: Path, program: str, ports: Ports = Ports()) -> int:
    """Create the topics and run the processes until Ctrl-C; the exit status."""
    return asyncio.run(_run(path, program, ports))


async def _run(path: Path, program: str, ports: Ports) -> int:
    from mail.log.kafka.access import make_access

    process_config = configuration.load_process_config(path)
    sink = sink_port(path, process_config.settings)
    environment = dict[str, str]()
    if sink is not None and ports.sink is not None:
        sink = ports.sink
        environment = {"EILPOST_DELIVERY__RELAY": f"smtp://127.0.0.1:{sink}"}
    all_members = members(ports, environment)
    _check_ports(all_members)
    settings = log_settings(process_config)
    await _await_brokers(settings, f"{program} doctor --config {shlex.quote(str(path))}")
    if created := await create_topics(make_access(settings), settings):
        _print_line(f"topics: {len(created)} created")
    stop, kill_now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: (kill_now if stop.is_set() else stop).set())
    relay = process_config.settings.delivery.relay or "the Internet"
    sink_ready, sink_stop = asyncio.Event(), asyncio.Event()
    sink_task = None
    if sink is not None:
        demo_sink = DemoSink(sink)
        sink_task = asyncio.create_task(demo_sink.run(sink_ready.set, sink_stop))
        await sink_ready.wait()
        relay = "the demo's sink and is printed here" if demo_sink.listens else f"smtp://127.0.0.1:{sink}"
    _print_line(_banner(path, program, ports, len(all_members), relay))
    supervisor = ChildSupervisor()
    try:
        async with background(_announce_ready(all_members)):
            await asyncio.gather(*(_supervise(member, path, supervisor, stop, kill_now) for member in all_members))
    finally:
        supervisor.close()
        sink_stop.set()
        if sink_task is not None:
            await sink_task
    _print_line("all stopped; accepted mail is in Kafka and is delivered after the next start")
    return 0


def _check_ports(all_members: Sequence[Member]) -> None:
    """Raises ServiceError that names all addresses in use."""
    addresses = [
        value for member in all_members for name, value in member.environment.items() if name.endswith("_LISTEN")
    ]
    in_use = [address for address in addresses if is_in_use(address)]
    if in_use == addresses:
        raise ServiceError(
            "a demo cluster runs already and keeps running: all its ports are in use; stop it with Ctrl-C in its "
            "terminal, or start another with `eilpost demo --cluster --port PORT`"
        )
    if in_use:
        raise ServiceError(
            f"{', '.join(in_use)}: in use, perhaps by `make run`; stop it, or use `eilpost demo --cluster --port PORT`"
        )


async def _await_brokers(settings: LogSettings, doctor: str) -> None:
    """Wait until all brokers answer, `BROKERS_SECONDS` at most, because `make kafka` may have just been started.

    Raises ServiceError if none answers then, or none can without a change of the settings. `doctor`: the command.
    """
    from mail.log.kafka.access import make_access
    from mail.log.kafka.diagnose import Unreachable, check_broker

    access = make_access(settings)
    deadline, is_announced = time.monotonic() + BROKERS_SECONDS, False
    while True:
        results = await asyncio.gather(*(check_broker(access, address) for address in access.bootstrap_servers))
        missing = [result for result in results if isinstance(result, Unreachable)]
        is_late, is_transient = time.monotonic() >= deadline, any(result.is_transient for result in missing)
        if not missing or (is_late and len(missing) < len(results)):
            return
        if len(missing) == len(results) and (is_late or not is_transient):
            advice = "start the brokers with `make kafka NODES=3`" if is_transient else missing[0].advice
            raise ServiceError(f"{missing[0].address} {missing[0].reason}: {advice}; see also `{doctor}`")
        if not is_announced:
            _print_line(
                f"waiting for the brokers, which `make kafka NODES=3` starts: {missing[0].address} {missing[0].reason}"
            )
            is_announced = True
        await asyncio.sleep(0.5)


async def _supervise(
    member: Member, path: Path, supervisor: ChildSupervisor, stop: asyncio.Event, kill_now: asyncio.Event
) -> None:
    """Run the process and restart it until `stop`, then end it."""
    stopping = asyncio.ensure_future(stop.wait())
    log_file = path.parent / f"{member.name}.log"
    pauses = backoff(_RESTART_SECONDS, _RESTART_SECONDS_MAX)
    try:
        while not stop.is_set():
            started_at = time.monotonic()
            with log_file.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "eilpost", member.name.partition("-")[0], "--config", str(path)),
                    env=os.environ | member.environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=supervisor.process_group,  # without the terminal's Ctrl-C
                )
            _print_line(f"  {member.name:12} pid {process.pid:<8} log {log_file}")
            ending = asyncio.ensure_future(process.wait())
            await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await _stop_process(process, ending, kill_now)
                return
            status = ending.result()
            if status == EXIT_UNUSABLE:  # the last log line has the reason
                last = log_file.read_text(errors="replace").strip().rpartition("\n")[2]
                _print_line(f"  {member.name} cannot run: {last}")
            else:
                _print_line(f"  {member.name} {_exit_text(status)}; restarting")
            if time.monotonic() - started_at >= _RESTART_SECONDS * 5 or status <= 0:
                pauses = backoff(_RESTART_SECONDS, _RESTART_SECONDS_MAX)
            await is_set_within(stop, next(pauses))
    finally:
        stopping.cancel()


async def _stop_process(
    process: asyncio.subprocess.Process, ending: asyncio.Future[int], kill_now: asyncio.Event
) -> None:
    """SIGTERM, and SIGKILL after `_STOP_SECONDS` or once `kill_now` is set."""
    if process.returncode is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a stopped process would not handle SIGTERM
        kill_waiter = asyncio.ensure_future(kill_now.wait())
        ends: set[asyncio.Future[Any]] = {ending, kill_waiter}
        await asyncio.wait(ends, timeout=_STOP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        kill_waiter.cancel()
        if process.returncode is None:
            process.kill()  # accepted mail is in Kafka
    await ending


async def _announce_ready(all_members: Sequence[Member]) -> None:
    waiting = {member.environment[_HTTP_LISTEN] for member in all_members}
    while waiting:
        await asyncio.sleep(0.5)
        for address in list(waiting):
            if await asyncio.to_thread(_is_ready, address):
                waiting.discard(address)
    _print_line("\nAll are ready: send mail now.\n")


def _is_ready(address: str) -> bool:
    host, _, port = address.partition(":")
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


def _banner(path: Path, program: str, ports: Ports, count: int, relay: str) -> str:
    run = f"{program} {{}} --config {shlex.quote(str(path))}"
    return f"""
A cluster of {count} processes on 127.0.0.1: SMTP {ports.smtp[0]} and {ports.smtp[1]}, POP3 {ports.pop3}, HTTP from \
{ports.http} on.
Mailboxes: {", ".join(f"{user}@{demo.DOMAIN}" for user in demo.USERS)} and user1 to user{_MORE_USERS}, password \
{demo.PASSWORD}. Stop: Ctrl-C.
Mail for other domains goes to {relay}.

Try, in another terminal: send mail (docs/install.md), and kill any process below, or a broker: `kill -9 PID`.
  {run.format("doctor")}
  {run.format("queue")}
  {run.format("trace QUEUE_ID")}
"""
