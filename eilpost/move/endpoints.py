"""Endpoints of a move, each given as the URL of a log or as a configuration file.

Before anything is opened, it refuses the same log twice, a missing log and a log in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from eilpost import configuration
from eilpost.wiring import ProcessConfig, log_settings
from mail.endpoint import parse_brokers
from mail.log import LogUnavailable, LogUnusable
from mail.service import ServiceError
from mail.settings import LogSettings
from mail.settings_section import SettingsError

_SCHEMES = ("embedded", "kafka", "memory")
_POLL_SECONDS = 1.0
INLINE_ON_KAFKA = 4 << 20  # the limit of spool.max_inline_size on Kafka


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`option` is "--from" or "--to"."""

    option: str
    process_config: ProcessConfig

    @property
    def log(self) -> LogSettings:
        return self.process_config.settings.log

    @property
    def scheme(self) -> str:
        return self.log.url.partition(":")[0]

    @property
    def path(self) -> Path:
        """The file of an embedded log."""
        return self.process_config.path(self.log.url.partition(":")[2])

    @property
    def inline_max_bytes(self) -> int:
        max_inline_size = self.process_config.settings.spool.max_inline_size
        return min(max_inline_size, INLINE_ON_KAFKA) if self.scheme == "kafka" else max_inline_size


def parse_endpoints(source: str, target: str, config: Path | None, tenant: str = "") -> tuple[Endpoint, Endpoint]:
    """Parse --from and --to. A URL replaces log.url of `config`, else of the other endpoint's file, else of the default
    configuration. A dedicated `tenant` applies to Kafka endpoints. Raises SettingsError.
    """
    files = [Path(text) for text in (source, target) if not _is_url(text)]
    base_config = config or (files[0] if files else None)
    endpoints = (
        _parse_endpoint("--from", source, base_config, tenant),
        _parse_endpoint("--to", target, base_config, tenant),
    )
    if tenant and not any(endpoint.process_config.tenant for endpoint in endpoints):
        raise SettingsError(
            f"--tenant {tenant}: --from or --to must be a Kafka log; only there tenants have own topics"
        )
    return endpoints


def _is_url(text: str) -> bool:
    return text.partition(":")[0] in _SCHEMES and ":" in text


def _parse_endpoint(option: str, text: str, base_config: Path | None, tenant: str) -> Endpoint:
    if not _is_url(text):
        if not Path(text).exists():
            raise SettingsError(
                f'{option} {text}: an existing configuration file or the URL of a log is expected, like "embedded:FILE"'
                ' or "kafka://HOST:PORT"'
            )
        process_config = configuration.load_process_config(Path(text))
        changes: dict[str, object] = {}
    else:
        process_config = configuration.load_process_config(base_config)
        # The shard counts in the file belong to its own log.
        changes = {} if text == process_config.settings.log.url else {"url": text, "shards": 0, "delivery_shards": 0}
    if option == "--from":
        changes["durability"] = "dev"  # unsafe topics are allowed as the source
    log = process_config.settings.log.model_copy(update=changes)
    endpoint = Endpoint(
        option, replace(process_config, settings=process_config.settings.model_copy(update={"log": log}))
    )
    if endpoint.scheme == "memory":
        raise SettingsError(f"{option} {text}: a log in memory cannot be moved: it is lost when its process ends")
    if endpoint.scheme == "kafka":
        try:
            parse_brokers(log.url)
        except ValueError as error:
            raise SettingsError(f"{option} {text}: {error}") from None
        endpoint = Endpoint(option, endpoint.process_config.for_tenant(tenant))
    return endpoint


def check_endpoints(source: Endpoint, target: Endpoint) -> None:
    """Raises SettingsError when both endpoints are the same log or the source file does not exist."""
    if source.scheme == "embedded" and not source.path.is_file():
        raise SettingsError(f"{source.option}: there is no log at {source.path}")
    if source.scheme == target.scheme:
        if source.scheme == "embedded":
            same = source.path.resolve() == target.path.resolve()
        else:
            brokers = [set(parse_brokers(endpoint.log.url)) for endpoint in (source, target)]
            same = source.log.prefix == target.log.prefix and bool(brokers[0] & brokers[1])
        if same:
            raise SettingsError(
                f"--from and --to are the same log, {source.log.url}: name two different logs"
                " (EILPOST_LOG__URL, if set, overrides both configurations)"
            )


def share_spool(source: Endpoint, target: Endpoint) -> bool:
    def location(endpoint: Endpoint) -> Path | str:
        scheme, _, path = (url := endpoint.process_config.settings.spool.url).partition(":")
        return endpoint.process_config.path(path).resolve() if scheme == "file" else url

    return location(source) == location(target)


async def require_unused(endpoint: Endpoint, print_message: Callable[[str], None]) -> None:
    """On Kafka, raise ServiceError while the consumer groups have members. Members that were killed remain until their
    session times out, so wait for that long. (An embedded log has a lock.)
    """
    if endpoint.scheme != "kafka":
        return
    from mail.log.kafka.access import make_access
    from mail.log.kafka.cluster_info import ClusterInfo
    from mail.log.kafka.diagnose import explain_failure, require_broker
    from mail.log.topics import DELIVERY, ROUTER

    access = make_access(log_settings(endpoint.process_config), endpoint.process_config.tenant)
    await require_broker(access)
    names = [access.group(ROUTER), access.group(DELIVERY)]
    loop = asyncio.get_running_loop()
    wait_seconds = endpoint.log.session_timeout.total_seconds() + 2 * _POLL_SECONDS
    deadline = loop.time() + wait_seconds
    is_reported = False
    async with ClusterInfo(access) as cluster_info:
        while True:
            try:
                groups = await cluster_info.describe_groups(names)
            except LogUnavailable as error:
                raise LogUnusable(await explain_failure(access, error)) from None
            members = ", ".join(f"{name} has {count}" for name, (_, count) in groups.items() if count)
            if not members:
                return
            if loop.time() > deadline:
                raise ServiceError(
                    f"{endpoint.option} {access.url} is in use (group members: {members}): stop all ingress, router and"
                    " delivery processes, then run the command again"
                )
            if not is_reported:
                is_reported = True
                print_message(f"{access.url}: {members} members; waiting up to {wait_seconds:.0f} s for them to end")
            await asyncio.sleep(_POLL_SECONDS)
