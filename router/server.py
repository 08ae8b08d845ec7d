"""The router role: owns router shards of the log and runs `process_shard` for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mail.directory import Directory
from mail.log import LogUnusable, RouterLog, RouterShard
from mail.resolver import Resolver
from mail.route import ToRelay
from mail.service import ServiceError
from mail.settings import NodeSettings
from mail.settings_roles import RouterSettings
from mail.spool import Spool
from router.metrics import Metrics
from router.resolve import BatchResolver
from router.routing_context import RoutingPolicy
from router.shard import RouterResources, process_shard
from router.site_limits import SiteLimits


class Router:
    """The router role. One per process."""

    name = "router"

    def __init__(
        self,
        *,
        settings: RouterSettings,
        node: NodeSettings,
        relay: ToRelay | None,
        log: RouterLog,
        spool: Spool,
        directory: Directory,
        resolver: Resolver,
    ) -> None:
        self._settings = settings
        self._policy = make_routing_policy(settings, node, relay)
        self._log = log
        self._spool = spool
        self._directory = directory
        self._resolver = resolver

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        batch_resolver = BatchResolver(self._resolver)
        metrics = Metrics()
        resources = RouterResources(
            self._policy, self._settings.max_batch_records, self._spool, self._directory, batch_resolver, metrics
        )

        async def run_shard(shard: RouterShard) -> None:
            try:
                await process_shard(shard, resources, stop)
            finally:
                metrics.shard_released(shard.number)

        try:
            await self._log.own_router_shards(run_shard, stop, ready)
        except LogUnusable as error:
            raise ServiceError(str(error)) from error
        finally:
            await batch_resolver.close()


def make_routing_policy(settings: RouterSettings, node: NodeSettings, relay: ToRelay | None) -> RoutingPolicy:
    """The routing policy from the settings."""
    return RoutingPolicy(
        hostname=node.hostname,
        relay=relay,
        lifetime=settings.queue_lifetime,
        retry=tuple(settings.retry_delays) or RoutingPolicy("").retry,
        limits=SiteLimits(
            settings.max_active_deliveries_per_site, settings.max_active_bytes_per_site, settings.max_active_deliveries
        ),
        recipients_per_delivery=settings.max_recipients_per_delivery,
        alias_depth=settings.max_alias_depth,
    )
