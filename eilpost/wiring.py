"""Wiring of adapters and roles: a URL's scheme selects the adapter of a port, a role gets its ports.

A malformed URL is a `SettingsError` that names the key. Relative paths start from the folder of the configuration file,
so that servers and commands find the same files. An adapter is imported when it is selected.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mail.log.topics import tenant_prefix
from mail.masking import masked
from mail.settings_section import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mail.directory import Directory
    from mail.directory.file import FileDirectory
    from mail.log import HistoryLog, Log
    from mail.log.kafka.access import Access
    from mail.resolver import Resolver
    from mail.route import ToRelay
    from mail.service import Role
    from mail.settings import LogSettings, Settings
    from mail.spool import Spool
    from mailstore.mailboxes import Mailboxes

ROLES = ("ingress", "router", "delivery", "mailstore")


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """Settings, and the folder where their relative paths start."""

    settings: Settings
    base: Path

    # The dedicated tenant of this process; empty: the shared tenants.
    tenant: str = ""

    def path(self, text: str) -> Path:
        return self.base / text

    def for_tenant(self, tenant: str) -> ProcessConfig:
        """The configuration of a process of a dedicated tenant, whose topics have its name in their prefix. Raises
        SettingsError.
        """
        if not tenant:
            return self
        log = self.settings.log
        if not log.url.startswith("kafka:"):
            raise SettingsError(f'--tenant {tenant}: log.url = "{log.url}" is one log for all tenants; use a Kafka log')
        from mail.directory.file import load

        snapshot, _ = load(directory_path(self))
        tenant_entry = snapshot.tenants.get(tenant)
        if tenant_entry is None or not tenant_entry.dedicated:
            names = ", ".join(sorted(name for name, entry in snapshot.tenants.items() if entry.dedicated)) or "none"
            raise SettingsError(
                f"--tenant {tenant}: {directory_path(self)} has no [tenants.{tenant}] with hosting ="
                f' "dedicated" (dedicated are: {names})'
            )
        # The shard counts of the shared topics do not apply to a tenant's.
        log_changes = {"prefix": tenant_prefix(log.prefix, tenant), "shards": 0, "delivery_shards": 0}
        settings = self.settings.model_copy(update={"log": log.model_copy(update=log_changes)})
        return replace(self, settings=settings, tenant=tenant)


def _scheme(url: str) -> str:
    return url.partition(":")[0]  # one of `mail.settings_values.SCHEMES`: the settings refuse any other


def _path(process_config: ProcessConfig, key: str, url: str) -> Path:
    """The path of a URL like "file:DIRECTORY". Raises SettingsError."""
    scheme, _, path = url.partition(":")
    if not path or path.startswith("//"):
        raise SettingsError(f'{key} = "{masked(url)}": a path is missing after "{scheme}:"')
    return process_config.path(path)


def _require_writable(key: str, folder: Path) -> None:
    """Raises SettingsError at the start, not at each delivery."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{key}: {error.filename}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(
            f"{key}: {folder} cannot be written by this user: change its owner, or name another directory"
        )


def require_package(module: str, key: str, url: str, extra: str) -> None:
    """Raises SettingsError if the library of an adapter is not installed."""
    if find_spec(module) is None:
        raise SettingsError(f'{key} = "{masked(url)}": {module} is not installed: pip install "eilpost[{extra}]"')


def log_settings(process_config: ProcessConfig) -> LogSettings:
    """The log's settings, with paths from the configuration's folder."""
    log = process_config.settings.log
    files = {
        key: str(process_config.path(value))
        for key in ("tls_ca", "tls_cert", "tls_key")
        if (value := getattr(log, key))
    }
    return log.model_copy(update=files)


async def create_topics(access: Access, settings: LogSettings) -> list[str]:
    """Create the missing topics on Kafka; a line for each."""
    from mail.log.kafka.create_topics import create_missing, open_admin

    admin = await open_admin(access)
    try:
        return await create_missing(admin, access, settings)
    finally:
        await admin.close()


def make_log(process_config: ProcessConfig, directory: Directory | None = None) -> Log:
    """`directory`: the tenants with their own topics, for an ingress."""
    settings = process_config.settings.log
    match _scheme(settings.url):
        case "kafka":
            require_package("aiokafka", "log.url", settings.url, "kafka")
            from mail.log.kafka import KafkaLog

            def dedicated(tenant: str) -> bool:
                entry = None if directory is None or process_config.tenant else directory.snapshot.tenants.get(tenant)
                return entry is not None and entry.dedicated

            return KafkaLog(log_settings(process_config), dedicated, process_config.tenant)
        case "memory":
            from mail.log.memory import MemoryLog

            return MemoryLog(settings)
        case _:
            from mail.log.embedded import EmbeddedLog

            return EmbeddedLog(_path(process_config, "log.url", settings.url), settings)


def make_history(process_config: ProcessConfig) -> HistoryLog:
    """The log as `trace` and `queue` read it, with or without a running server."""
    url = process_config.settings.log.url
    match _scheme(url):
        case "kafka":
            require_package("aiokafka", "log.url", url, "kafka")
            from mail.log.kafka import KafkaHistory

            return KafkaHistory(log_settings(process_config), process_config.tenant)
        case "memory":
            raise SettingsError('log.url = "memory:" cannot be read by another process')
        case _:
            from mail.log.embedded import EmbeddedHistory

            return EmbeddedHistory(_path(process_config, "log.url", url))


def offline_location(history: HistoryLog) -> str:
    """Where the log is that was read, if no process runs on it; else empty, as always on Kafka."""
    return str(getattr(history, "location", "")) if getattr(history, "is_offline", False) else ""


def make_spool(process_config: ProcessConfig) -> Spool:
    url = process_config.settings.spool.url
    match _scheme(url):
        case "file":
            from mail.spool import SpoolUnavailable
            from mail.spool.disk import DiskSpool

            try:
                return DiskSpool(_path(process_config, "spool.url", url))
            except SpoolUnavailable as error:
                raise SettingsError(f"spool.url: {error}") from None
        case "memory":
            from mail.spool.memory import MemorySpool

            return MemorySpool()
        case _:
            from mail.spool.bucket_url import parse_bucket

            try:
                from mail.spool.object_spool import ObjectSpool
                from mail.spool.object_store import open_store
            except ModuleNotFoundError as error:
                if error.name != "obstore":
                    raise
                text = f'spool.url = "{masked(url)}": needs the package obstore: pip install "eilpost[objects]"'
                raise SettingsError(text) from None
            bucket = parse_bucket(url)
            return ObjectSpool(open_store(bucket, process_config.settings.spool), str(bucket))


def directory_path(process_config: ProcessConfig) -> Path:
    """The file of a file directory, for the commands that edit it."""
    return _path(process_config, "directory.url", process_config.settings.directory.url)


def make_directory(process_config: ProcessConfig) -> FileDirectory:
    from mail.directory.file import FileDirectory

    return FileDirectory(directory_path(process_config))


def make_resolver(process_config: ProcessConfig) -> Resolver:
    from mail.resolver.dnspython import DnsResolver

    return DnsResolver(process_config.settings.resolver)


def delivery_id_retention(settings: Settings) -> timedelta:
    """How long a mailbox stores delivery ids: longer than a delivery can be retried."""
    return max(timedelta(days=14), 2 * settings.router.queue_lifetime)


def make_mailboxes(process_config: ProcessConfig) -> Mailboxes:
    settings = process_config.settings
    url = settings.mailboxes.url
    if _scheme(url) == "memory":
        from mailstore.memory import MemoryMailboxes

        return MemoryMailboxes()
    from mailstore.maildir import Maildir

    folder = _path(process_config, "mailboxes.url", url)
    _require_writable("mailboxes.url", folder)
    return Maildir(folder, settings.node.hostname, retention=delivery_id_retention(settings))


def relay_route(settings: Settings) -> ToRelay | None:
    """`delivery.relay` as a route, or None when mail goes by MX."""
    from mail.endpoint import parse_relay

    return parse_relay(settings.delivery.relay) if settings.delivery.relay else None


def make_role(
    name: str,
    process_config: ProcessConfig,
    *,
    log: Log,
    spool: Spool,
    directory: Directory,
    resolver: Resolver,
    mailboxes: Mailboxes | None,
) -> Role:
    """Build a role from its ports; only delivery and mailstore need `mailboxes`."""
    settings = process_config.settings
    make: Callable[..., Role]
    match name:
        case "ingress":
            from ingress.listener import configured_listeners
            from ingress.server import Ingress

            depth = settings.router.max_alias_depth
            make = partial(
                Ingress,
                listeners=configured_listeners(settings.ingress, settings.node, alias_depth=depth),
                settings=settings.ingress,
                spool_settings=settings.spool,
                log_settings=settings.log,
            )
        case "router":
            from router.server import Router

            make = partial(Router, settings=settings.router, relay=relay_route(settings))
        case "delivery":
            from delivery.own_addresses import OwnAddresses
            from delivery.server import DeliveryRole
            from mail import endpoint

            assert mailboxes is not None
            listen = [endpoint.parse(settings.ingress.smtp_listen)] if settings.ingress.smtp_listen else []
            own = OwnAddresses(listen, [(each, settings.delivery.mx_port) for each in settings.delivery.own_addresses])
            make = partial(DeliveryRole, settings=settings.delivery, mailboxes=mailboxes, own_addresses=own)
        case "mailstore":
            assert mailboxes is not None
            return make_mailstore(process_config, mailboxes=mailboxes, directory=directory)
        case _:
            raise ValueError(f"there is no role {name!r}")
    return make(node=settings.node, log=log, spool=spool, directory=directory, resolver=resolver)


def make_mailstore(process_config: ProcessConfig, *, mailboxes: Mailboxes, directory: Directory) -> Role:
    from mailstore.pop3.server import Pop3Server

    return Pop3Server(
        settings=process_config.settings.mailstore,
        node=process_config.settings.node,
        mailboxes=mailboxes,
        directory=directory,
    )
