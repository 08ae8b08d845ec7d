"""The two ends of a move as a person names them: a log's URL or a configuration file each.

In charge of what settings either end has, and of refusing what cannot go well before anything is opened: the same log
twice, a log that is not there, one that is in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from eilpost import configuration
from eilpost.wiring import Plan, log_settings
from mail.endpoint import parse_brokers
from mail.log import LogUnavailable, LogUnusable
from mail.service import ServiceError
from mail.settings import LogSettings, SettingsError

_SCHEMES = ("embedded", "kafka", "memory")
_POLL_SECONDS = 1.0
INLINE_ON_KAFKA = 4 << 20  # as the settings allow; a record has to fit into a broker's memory several times


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`option` is "--from" or "--to"."""

    option: str
    plan: Plan

    @property
    def log(self) -> LogSettings:
        return self.plan.settings.log

    @property
    def scheme(self) -> str:
        return self.log.url.partition(":")[0]

    @property
    def path(self) -> Path:
        """Of an embedded log."""
        return self.plan.path(self.log.url.partition(":")[2])

    @property
    def inline_max_bytes(self) -> int:
        inline_max = self.plan.settings.spool.inline_max
        return min(inline_max, INLINE_ON_KAFKA) if self.scheme == "kafka" else inline_max


def parse_endpoints(source: str, target: str, config: Path | None, tenant: str = "") -> tuple[Endpoint, Endpoint]:
    """A URL stands for log.url of `config`, or of the other end's file, or of the configuration that is found. A
    dedicated `tenant` is meant on the ends that are a Kafka, which has topics of its own for it. Raises SettingsError.
    """
    files = [Path(text) for text in (source, target) if not _is_url(text)]
    rest = config or (files[0] if files else None)
    both = _parse_endpoint("--from", source, rest, tenant), _parse_endpoint("--to", target, rest, tenant)
    if tenant and not any(end.plan.tenant for end in both):
        raise SettingsError(f"--tenant {tenant}: neither end is a Kafka, and only there a tenant has topics of its own")
    return both


def _is_url(text: str) -> bool:
    return text.partition(":")[0] in _SCHEMES and ":" in text


def _parse_endpoint(option: str, text: str, rest: Path | None, tenant: str) -> Endpoint:
    if not _is_url(text):
        if not Path(text).exists():
            raise SettingsError(
                f'{option} {text}: neither a configuration file that exists nor the URL of a log, like "embedded:FILE"'
                ' or "kafka://HOST:PORT"'
            )
        plan = configuration.load_plan(Path(text))
        changes: dict[str, object] = {}
    else:
        plan = configuration.load_plan(rest)
        # The numbers of shards in that file are those of its own log.
        changes = {} if text == plan.settings.log.url else {"url": text, "shards": 0, "delivery_shards": 0}
    if option == "--from":
        changes["durability"] = "dev"  # what is unsafe may be left
    log = plan.settings.log.model_copy(update=changes)
    end = Endpoint(option, replace(plan, settings=plan.settings.model_copy(update={"log": log})))
    if end.scheme == "memory":
        raise SettingsError(f"{option} {text}: a log in memory is gone with its process, nothing can be moved")
    if end.scheme == "kafka":
        try:
            parse_brokers(log.url)
        except ValueError as error:
            raise SettingsError(f"{option} {text}: {error}") from None
        end = Endpoint(option, end.plan.for_tenant(tenant))
    return end


def check_endpoints(source: Endpoint, target: Endpoint) -> None:
    """Raises SettingsError for one log named twice, and for a file that is no log yet."""
    if source.scheme == "embedded" and not source.path.is_file():
        raise SettingsError(f"{source.option}: there is no log at {source.path}")
    if source.scheme == target.scheme:
        if source.scheme == "embedded":
            same = source.path.resolve() == target.path.resolve()
        else:
            brokers = [set(parse_brokers(end.log.url)) for end in (source, target)]
            same = source.log.prefix == target.log.prefix and bool(brokers[0] & brokers[1])
        if same:
            raise SettingsError(
                f"--from and --to are the same log, {source.log.url}: name two (is EILPOST_LOG__URL set? It stands"
                " above both configurations)"
            )


def share_spool(source: Endpoint, target: Endpoint) -> bool:
    """Whether both ends read the same content by the same name."""
    one, other = (end.plan.settings.spool.url for end in (source, target))
    schemes = {url.partition(":")[0] for url in (one, other)}
    if schemes == {"file"}:
        paths = [end.plan.path(end.plan.settings.spool.url.partition(":")[2]).resolve() for end in (source, target)]
        return paths[0] == paths[1]
    return one == other


async def require_unused(end: Endpoint, say: Callable[[str], None]) -> None:
    """On Kafka: raises ServiceError while routers or deliveries of others are alive. One that was killed counts as
    alive until its session is over: so long it is waited for. (An embedded log has a lock.)
    """
    if end.scheme != "kafka":
        return
    from mail.log.kafka.access import make_access
    from mail.log.kafka.cluster_info import ClusterInfo
    from mail.log.kafka.diagnose import explain_failure, require_broker
    from mail.log.kafka.history import DELIVERY, ROUTER

    access = make_access(log_settings(end.plan), end.plan.tenant)
    await require_broker(access)
    names = [access.group(ROUTER), access.group(DELIVERY)]
    loop = asyncio.get_running_loop()
    wait_seconds = end.log.session_timeout.total_seconds() + 2 * _POLL_SECONDS
    deadline = loop.time() + wait_seconds
    is_reported = False
    async with ClusterInfo(access) as cluster_info:
        while True:
            try:
                groups = await cluster_info.describe_groups(names)
            except LogUnavailable as error:
                raise LogUnusable(await explain_failure(access, error)) from None
            alive = [f"{name} has {members}" for name, (_, members) in groups.items() if members]
            if not alive:
                return
            if loop.time() > deadline:
                raise ServiceError(
                    f"{end.option} {access.url} is in use (members of its groups: {', '.join(alive)}): stop every"
                    " router and delivery there, and ingress too, then move"
                )
            if not is_reported:
                is_reported = True
                say(
                    f"{access.url}: {', '.join(alive)} members; those that were killed are gone in {wait_seconds:.0f} s"
                )
            await asyncio.sleep(_POLL_SECONDS)
