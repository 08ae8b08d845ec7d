"""Process of one or all roles: opens their ports in order, serves until a signal, drains, and closes in reverse.

Only one process can open an embedded log, so it runs all roles; on Kafka each role can be a process. The mailstore
needs no log. An error that an operator can correct is one line (ServiceError, SettingsError, LogUnusable, ...).
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import structlog

from eilpost.maintenance import Maintenance
from eilpost.tenants import tenant_queues
from eilpost.wiring import (
    ROLES,
    Plan,
    make_directory,
    make_log,
    make_mailboxes,
    make_mailstore,
    make_resolver,
    make_role,
    make_spool,
)
from mail import logging_setup, service
from mail.endpoint import parse
from mail.service import ServiceError
from mail.settings import SettingsError
from mail.settings_file import ENVIRONMENT_PREFIX
from mail.signals import Signals

if TYPE_CHECKING:
    from mail.settings import Settings

logger = structlog.get_logger()

# Name in the log, section and key of each listening address; an empty address is not served.
INGRESS, POP3, HTTP = (
    ("smtp", "ingress", "smtp_listen"),
    ("pop3", "mailstore", "pop3_listen"),
    ("http", "http", "listen"),
)


def run_all(plan: Plan, on_ready: Callable[[], None] = lambda: None, support: Sequence[service.Role] = ()) -> int:
    """Run all roles, and `support` until they have stopped; the process's exit status."""
    return _run_process(plan, lambda signals: _run_roles(plan, ROLES, signals, on_ready, support))


def run_mailstore(plan: Plan) -> int:
    """Serve the mailboxes and nothing else; the process's exit status."""
    if not plan.settings.mailstore.pop3_listen:
        raise SettingsError(
            "mailstore.pop3_listen is empty, nothing to serve; set an address there, or by "
            "EILPOST_MAILSTORE__POP3_LISTEN=HOST:PORT"
        )
    if plan.settings.mailboxes.url.startswith("memory:"):
        raise SettingsError('mailboxes.url = "memory:": the mailboxes of a mailstore alone would get no mail')
    return _run_process(plan, lambda signals: _run_mailstore_role(plan, signals))


def run_role(name: str, plan: Plan) -> int:
    """Run one role on a shared log; the process's exit status."""
    scheme = plan.settings.log.url.partition(":")[0]
    if scheme in ("embedded", "memory"):
        raise SettingsError(
            f'log.url = "{plan.settings.log.url}": only one process can open this log, and {name} alone would not'
            " deliver mail; run `eilpost up`, which runs all roles in one process, or set log.url to a Kafka, like"
            ' "kafka://127.0.0.1:9092"'
        )
    if name == "ingress" and not plan.settings.ingress.smtp_listen:
        raise SettingsError(
            "ingress.smtp_listen is empty, nothing to serve; set an address there, or by "
            "EILPOST_INGRESS__SMTP_LISTEN=HOST:PORT"
        )
    return _run_process(plan, lambda signals: _run_roles(plan, (name,), signals))


def _run_process(plan: Plan, main: Callable[[Signals], Coroutine[Any, Any, None]]) -> int:
    node = plan.settings.node
    logging_setup.configure(node.log_level, node.log_format)
    os.umask(0o077)  # only this user reads mail
    _raise_open_file_limit(plan.settings)

    async def main_with_errors() -> None:
        try:
            with Signals() as signals:
                signals.begin_startup()
                await main(signals)
        except asyncio.CancelledError:
            if not signals.stop.is_set():
                raise
        except OSError as error:
            if error.filename is None:
                raise
            raise ServiceError(f"{error.filename}: {error.strerror}") from error

    status = service.run(main_with_errors)
    if status == service.EXIT_OK:
        logger.info("stopped")
    return status


def _raise_open_file_limit(settings: Settings) -> None:
    """Raise the limit of open files above the limits of connections; the usual 1024 is lower."""
    pop3 = 2 * settings.mailstore.max_connections  # a socket and an open mailbox each
    wanted = settings.ingress.max_connections + pop3 + settings.delivery.max_connections + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        logger.warning("open file limit below connection limits", limit=hard, required=wanted, advice="raise ulimit -n")
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run_roles(
    plan: Plan,
    names: Sequence[str],
    signals: Signals,
    on_ready: Callable[[], None] = lambda: None,
    support: Sequence[service.Role] = (),
) -> None:
    """Run these roles on one log."""
    from eilpost.http_server import HttpServer

    settings = plan.settings
    addresses = {"ingress": INGRESS, "mailstore": POP3}
    served = [name for name in names if name not in addresses or _address(settings, addresses[name])]
    listening = (*(addresses[name] for name in served if name in addresses), HTTP)
    async with AsyncExitStack() as stack:
        directory = make_directory(plan)
        await directory.start()
        stack.push_async_callback(directory.close)
        signals.on_reload(directory.reload)
        _check_ports(settings, *listening)  # first, so that a failed start creates no files
        mail_log = make_log(plan, directory)
        await mail_log.start()
        stack.push_async_callback(mail_log.close)
        signals.on_reload(mail_log.reload)
        spool = make_spool(plan)
        await spool.start()
        stack.push_async_callback(spool.close)
        resolver = make_resolver(plan)
        mailboxes = make_mailboxes(plan) if {"delivery", "mailstore"} & set(served) else None
        roles = [
            make_role(
                name, plan, log=mail_log, spool=spool, directory=directory, resolver=resolver, mailboxes=mailboxes
            )
            for name in served
        ]
        health = service.Health()
        await service.run_roles(
            roles,
            settings.node.drain_timeout,
            _ready_callback(settings, *listening, on_ready=on_ready),
            support=[
                HttpServer(settings=settings.http, health=health, log=mail_log),
                Maintenance(
                    settings=settings.spool,
                    log=mail_log,
                    spool=spool,
                    sweeps="router" in served and not plan.tenant,
                    other_queues=lambda: tenant_queues(plan, directory.snapshot),
                ),
                *support,
            ],
            health=health,
            signals=signals,
        )


async def _run_mailstore_role(plan: Plan, signals: Signals) -> None:
    from eilpost.http_server import HttpServer

    settings = plan.settings
    async with AsyncExitStack() as stack:
        directory = make_directory(plan)
        await directory.start()
        stack.push_async_callback(directory.close)
        signals.on_reload(directory.reload)
        _check_ports(settings, POP3, HTTP)
        health = service.Health()
        await service.run_roles(
            [make_mailstore(plan, mailboxes=make_mailboxes(plan), directory=directory)],
            settings.node.drain_timeout,
            _ready_callback(settings, POP3, HTTP),
            support=[HttpServer(settings=settings.http, health=health)],
            health=health,
            signals=signals,
        )


def _address(settings: Settings, key: tuple[str, str, str]) -> str:
    return str(getattr(getattr(settings, key[1]), key[2]))


def _check_ports(settings: Settings, *keys: tuple[str, str, str]) -> None:
    """Raises ServiceError that names all addresses in use."""
    taken = [(section, key) for _, section, key in keys if _is_taken(getattr(getattr(settings, section), key))]
    if taken:
        several = len(taken) > 1
        names = ", ".join(f"{section}.{key}" for section, key in taken)
        where = ", ".join(getattr(getattr(settings, section), key) for section, key in taken)
        variables = ", ".join(f"{ENVIRONMENT_PREFIX}{section}__{key}".upper() for section, key in taken)
        raise ServiceError(
            f"{names}: cannot listen on {where}: the {'ports are' if several else 'port is'} in use (is eilpost running"
            f" already?); set {'other addresses' if several else 'another address'} there, or by {variables}"
        )


def _is_taken(where: str) -> bool:
    if not where:
        return False
    try:
        host, port = parse(where)
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def _ready_callback(
    settings: Settings, *keys: tuple[str, str, str], on_ready: Callable[[], None] = lambda: None
) -> Callable[[], None]:
    served = {name: where for name, section, key in keys if (where := getattr(getattr(settings, section), key))}

    def announce() -> None:
        on_ready()  # before the log line
        logger.info("ready", hostname=settings.node.hostname, **served)

    return announce
