"""Process of one or all roles: opens their ports in order, serves until a signal, drains, and closes in reverse.

Only one process can open an embedded log, so it runs all roles; on Kafka each role can be a process. The mailstore
needs no log. An error that an operator can correct is one line (ServiceError, SettingsError, LogUnusable, ...).
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import structlog

from eilpost import lost_log
from eilpost.listen import HTTP, INGRESS, POP3, ListenSetting, is_in_use
from eilpost.maintenance import Maintenance
from eilpost.tenants import tenant_queues
from eilpost.wiring import (
    ROLES,
    ProcessConfig,
    make_directory,
    make_log,
    make_mailboxes,
    make_mailstore,
    make_resolver,
    make_role,
    make_spool,
)
from mail import logging_setup, service
from mail.service import ServiceError
from mail.settings_section import SettingsError
from mail.signals import Signals

if TYPE_CHECKING:
    from mail.directory.file import FileDirectory
    from mail.log import Log
    from mail.settings import Settings
    from mail.spool import Spool

logger = structlog.get_logger()


def run(
    process_config: ProcessConfig,
    names: Sequence[str] = ROLES,
    on_ready: Callable[[], None] = lambda: None,
    support: Sequence[service.Role] = (),
) -> int:
    """Run these roles, and `support` until they have stopped; the process's exit status."""
    node = process_config.settings.node
    logging_setup.configure(node.log_level, node.log_format)
    os.umask(0o077)  # only this user reads mail
    _raise_open_file_limit(process_config.settings)

    async def main_with_errors() -> None:
        try:
            with Signals() as signals:
                signals.begin_startup()
                await _run_roles(process_config, names, signals, on_ready, support)
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


def run_mailstore(process_config: ProcessConfig) -> int:
    """Serve the mailboxes and nothing else; the process's exit status."""
    if not process_config.settings.mailstore.pop3_listen:
        raise SettingsError(
            "mailstore.pop3_listen is empty, nothing to serve; set an address there, or by "
            "EILPOST_MAILSTORE__POP3_LISTEN=HOST:PORT"
        )
    if process_config.settings.mailboxes.url.startswith("memory:"):
        raise SettingsError('mailboxes.url = "memory:": the mailboxes of a mailstore alone would get no mail')
    return run(process_config, ("mailstore",))


def run_role(name: str, process_config: ProcessConfig) -> int:
    """Run one role on a shared log; the process's exit status."""
    scheme = process_config.settings.log.url.partition(":")[0]
    if scheme in ("embedded", "memory"):
        raise SettingsError(
            f'log.url = "{process_config.settings.log.url}": only one process can open this log, and {name} alone would'
            " not deliver mail; run `eilpost up`, which runs all roles in one process, or set log.url to a Kafka, like"
            ' "kafka://127.0.0.1:9092"'
        )
    if name == "ingress" and not process_config.settings.ingress.smtp_listen:
        raise SettingsError(
            "ingress.smtp_listen is empty, nothing to serve; set an address there, or by "
            "EILPOST_INGRESS__SMTP_LISTEN=HOST:PORT"
        )
    return run(process_config, (name,))


def _warn_of_root() -> None:
    """Nothing here needs root; ports below 1024 need CAP_NET_BIND_SERVICE only."""
    if os.geteuid() == 0:
        advice = "use a user without privileges; ports below 1024 need the capability CAP_NET_BIND_SERVICE only"
        logger.warning("running as root", advice=advice)


def _raise_open_file_limit(settings: Settings) -> None:
    """Raise the limit of open files above the limits of connections; the usual 1024 is lower."""
    pop3 = 2 * settings.mailstore.max_connections  # a socket and an open mailbox each
    required = settings.ingress.max_connections + pop3 + settings.delivery.max_connections + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < required:
        logger.warning(
            "open file limit below connection limits", limit=hard, required=required, advice="raise ulimit -n"
        )
        required = hard
    if soft != resource.RLIM_INFINITY and soft < required:
        resource.setrlimit(resource.RLIMIT_NOFILE, (required, hard))


async def _run_roles(
    process_config: ProcessConfig,
    names: Sequence[str],
    signals: Signals,
    on_ready: Callable[[], None],
    support: Sequence[service.Role],
) -> None:
    """Run these roles, on one log unless it is the mailstore alone."""
    from eilpost.http_server import HttpServer

    settings = process_config.settings
    listeners = {"ingress": INGRESS, "mailstore": POP3}
    served = [name for name in names if name not in listeners or listeners[name].address(settings)]
    listening = (*(listeners[name] for name in served if name in listeners), HTTP)
    addresses = {setting: address for setting in listening if (address := setting.address(settings))}
    health = service.Health()

    def announce() -> None:
        on_ready()  # before the log line
        named = {setting.name: address for setting, address in addresses.items()}
        logger.info("ready", hostname=settings.node.hostname, **named)
        _warn_of_root()

    async with AsyncExitStack() as stack:
        directory = make_directory(process_config)
        await _start(stack, directory)
        signals.on_reload(directory.reload)
        _check_ports(addresses)  # first, so that a failed start creates no files
        if served == ["mailstore"]:
            roles = [make_mailstore(process_config, mailboxes=make_mailboxes(process_config), directory=directory)]
            own_support: list[service.Role] = [HttpServer(settings=settings.http, health=health)]
        else:
            _warn_about_lost_log(process_config)
            log = make_log(process_config, directory)
            await _start(stack, log)
            signals.on_reload(log.reload)
            spool = make_spool(process_config)
            await _start(stack, spool)
            make = partial(make_role, log=log, spool=spool, directory=directory, resolver=make_resolver(process_config))
            mailboxes = make_mailboxes(process_config) if {"delivery", "mailstore"} & set(served) else None
            roles = [make(name, process_config, mailboxes=mailboxes) for name in served]
            maintenance = Maintenance(
                settings=settings.spool,
                log=log,
                spool=spool,
                sweeps="router" in served and not process_config.tenant,
                other_queues=lambda: tenant_queues(process_config, directory.snapshot),
            )
            own_support = [HttpServer(settings=settings.http, health=health, log=log), maintenance]
        await service.run_roles(
            roles,
            settings.node.drain_timeout,
            announce,
            support=[*own_support, *support],
            health=health,
            signals=signals,
        )


def _warn_about_lost_log(process_config: ProcessConfig) -> None:
    """Log that an embedded log is new while the spool has content. (The log itself reports a used directory.)"""
    log_scheme, _, log_path = process_config.settings.log.url.partition(":")
    spool_scheme, _, spool_path = process_config.settings.spool.url.partition(":")
    if log_scheme != "embedded" or spool_scheme != "file":
        return
    log, spool = process_config.path(log_path), process_config.path(spool_path)
    if lost_log.is_missing(log) and not lost_log.was_used(log) and lost_log.has_content(spool):
        logger.error(
            "log file is missing or empty, but the spool has mail: queued mail of an earlier log may be missing",
            path=str(log),
            advice="stop eilpost; check log.url, or restore the file from a backup",
        )


async def _start(stack: AsyncExitStack, port: FileDirectory | Log | Spool) -> None:
    await port.start()
    stack.push_async_callback(port.close)


def _check_ports(addresses: Mapping[ListenSetting, str]) -> None:
    """Raises ServiceError that names all addresses in use."""
    in_use = [f"{address} ({setting})" for setting, address in addresses.items() if is_in_use(address)]
    if in_use:
        raise ServiceError(f"{', '.join(in_use)}: in use, perhaps by another eilpost; stop it, or set another address")
