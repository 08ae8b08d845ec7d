"""The only place where an adapter meets a role: a URL's scheme chooses the adapter, a role gets its ports.

It never starts anything and never decides about mail. An unknown scheme or a malformed URL is a `SettingsError` that
names the key. A relative path is taken from the folder of the configuration file, so that the server and the commands
that look at it find the same files from wherever they are called. Adapters are imported when they are chosen.
Next: `eilpost/onebox.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mail.settings import SettingsError

if TYPE_CHECKING:
    from mail.directory import Directory
    from mail.directory.file import FileDirectory
    from mail.log import HistoryLog, Log
    from mail.resolver import Resolver
    from mail.route import ToRelay
    from mail.service import Role
    from mail.settings import Settings
    from mail.spool import Spool
    from mailstore.mailboxes import Mailboxes

T = TypeVar("T")

ROLES = ("ingress", "router", "delivery", "mailstore")


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings, and the folder their relative paths start from."""

    settings: Settings
    base: Path

    def path(self, text: str) -> Path:
        return self.base / text


def choose(key: str, url: str, schemes: Mapping[str, Callable[[str], T]], example: str, later: Iterable[str] = ()) -> T:
    """Call the maker of the URL's scheme with the rest of the URL. Raises SettingsError."""
    scheme, colon, rest = url.partition(":")
    if colon and scheme in schemes:
        return schemes[scheme](rest)
    if scheme in later:
        raise SettingsError(f'{key} = "{url}": {scheme} is not in this version; use for example {key} = "{example}"')
    known = " or ".join(f'"{name}:"' for name in schemes)
    raise SettingsError(f'{key} = "{url}": the URL must begin with {known}; for example {key} = "{example}"')


def _needs_path(key: str, url: str, rest: str) -> str:
    if not rest or rest.startswith("//"):
        raise SettingsError(f'{key} = "{url}": a path is missing after "{url.partition(":")[0]}:"')
    return rest


def _can_be_written(key: str, folder: Path) -> None:
    """Say now what every delivery would say later."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{key}: {error.filename}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"{key}: {folder} cannot be written by this user: change its owner, or name another folder")


def make_log(plan: Plan) -> Log:
    settings = plan.settings.log

    def embedded(rest: str) -> Log:
        from mail.log.embedded import EmbeddedLog

        return EmbeddedLog(plan.path(_needs_path("log.url", settings.url, rest)), settings)

    def memory(_rest: str) -> Log:
        from mail.log.memory import MemoryLog

        return MemoryLog(settings)

    return choose(
        "log.url", settings.url, {"embedded": embedded, "memory": memory}, "embedded:var/log.db", later=("kafka",)
    )


def make_history(plan: Plan) -> HistoryLog:
    """What trace and the queue view read, whether the server runs or not."""
    url = plan.settings.log.url

    def embedded(rest: str) -> HistoryLog:
        from mail.log.embedded import EmbeddedHistory

        return EmbeddedHistory(plan.path(_needs_path("log.url", url, rest)))

    def memory(_rest: str) -> HistoryLog:
        raise SettingsError('log.url = "memory:" keeps nothing that another process could read')

    return choose("log.url", url, {"embedded": embedded, "memory": memory}, "embedded:var/log.db", later=("kafka",))


def make_spool(plan: Plan) -> Spool:
    url = plan.settings.spool.url

    def disk(rest: str) -> Spool:
        from mail.spool import SpoolUnavailable
        from mail.spool.disk import DiskSpool

        path = plan.path(_needs_path("spool.url", url, rest))
        try:
            return DiskSpool(path)
        except SpoolUnavailable as error:
            raise SettingsError(f"spool.url: {error}") from None

    def memory(_rest: str) -> Spool:
        from mail.spool.memory import MemorySpool

        return MemorySpool()

    return choose("spool.url", url, {"file": disk, "memory": memory}, "file:var/spool", later=("s3", "gs", "az"))


def directory_path(plan: Plan) -> Path:
    """The file of a file directory, for the commands that edit it."""
    url = plan.settings.directory.url

    def file(rest: str) -> Path:
        return plan.path(_needs_path("directory.url", url, rest))

    return choose("directory.url", url, {"file": file}, "file:directory.toml", later=("postgresql",))


def make_directory(plan: Plan) -> FileDirectory:
    from mail.directory.file import FileDirectory

    return FileDirectory(directory_path(plan))


def make_resolver(plan: Plan) -> Resolver:
    from mail.resolver.dnspython import DnsResolver

    return DnsResolver(plan.settings.resolver)


def _ids_kept(settings: Settings) -> timedelta:
    """For how long a mailbox knows the delivery ids it has had: longer than any delivery can be tried again."""
    return max(timedelta(days=14), 2 * settings.router.lifetime)


def make_mailboxes(plan: Plan) -> Mailboxes:
    settings = plan.settings

    def maildir(rest: str) -> Mailboxes:
        from mailstore.maildir import Maildir

        path = plan.path(_needs_path("mailboxes.url", settings.mailboxes.url, rest))
        _can_be_written("mailboxes.url", path)
        return Maildir(path, settings.node.hostname, remember=_ids_kept(settings))

    def memory(_rest: str) -> Mailboxes:
        from mailstore.memory import MemoryMailboxes

        return MemoryMailboxes()

    return choose(
        "mailboxes.url",
        settings.mailboxes.url,
        {"maildir": maildir, "memory": memory},
        "maildir:var/mail",
        later=("postgresql",),
    )


def relay_of(settings: Settings) -> ToRelay | None:
    """`delivery.relay` as a route, or None when mail goes by MX. Raises SettingsError."""
    from mail.endpoint import parse_relay

    url = settings.delivery.relay
    if not url:
        return None
    try:
        return parse_relay(url)
    except ValueError as error:
        raise SettingsError(f'delivery.relay = "{url}": {error}; or "" to deliver by MX') from None


def make_role(
    name: str,
    plan: Plan,
    *,
    log: Log,
    spool: Spool,
    directory: Directory,
    resolver: Resolver,
    mailboxes: Mailboxes,
) -> Role:
    """The one place that knows which ports a role needs."""
    settings = plan.settings
    match name:
        case "ingress":
            from ingress.server import Ingress

            return Ingress(
                settings=settings.ingress,
                node=settings.node,
                spool_settings=settings.spool,
                log_settings=settings.log,
                alias_depth=settings.router.alias_depth,
                log=log,
                spool=spool,
                directory=directory,
                resolver=resolver,
            )
        case "router":
            from router.server import Router

            return Router(
                settings=settings.router,
                node=settings.node,
                relay=relay_of(settings),
                log=log,
                spool=spool,
                directory=directory,
                resolver=resolver,
            )
        case "delivery":
            from delivery.server import Delivery

            return Delivery(
                settings=settings.delivery,
                node=settings.node,
                log=log,
                spool=spool,
                directory=directory,
                resolver=resolver,
                mailboxes=mailboxes,
            )
        case "mailstore":
            return make_mailstore(plan, mailboxes=mailboxes, directory=directory)
        case _:
            raise ValueError(f"there is no role {name!r}")


def make_mailstore(plan: Plan, *, mailboxes: Mailboxes, directory: Directory) -> Role:
    from mailstore.pop3.server import Pop3

    return Pop3(settings=plan.settings.mailstore, node=plan.settings.node, mailboxes=mailboxes, directory=directory)
