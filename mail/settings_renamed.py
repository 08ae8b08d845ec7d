"""Former names of settings, each with its present name.

A former name is refused with the present one, in the file, the environment and the Helm values.
"""

from __future__ import annotations

RENAMED = {
    "node.drain": "node.drain_timeout",
    "log.events_kept": "log.events_retention",
    "log.backlog_max": "log.max_unrouted_messages",
    "spool.inline_max": "spool.max_inline_size",
    "spool.expire": "spool.retention",
    "resolver.cache_max": "resolver.max_cache_entries",
    "ingress.mx": "ingress.smtp_listen",
    "ingress.max_size": "ingress.max_message_size",
    "ingress.bytes_in_flight": "ingress.max_in_flight_bytes",
    "ingress.bytes_in_flight_per_client": "ingress.max_in_flight_bytes_per_client",
    "ingress.sender_check_exempts_relay": "ingress.sender_check_exempts_relay_networks",
    "router.lifetime": "router.queue_lifetime",
    "router.retry": "router.retry_delays",
    "router.window": "router.max_active_deliveries_per_site",
    "router.window_bytes": "router.max_active_bytes_per_site",
    "router.in_hand_max": "router.max_active_deliveries",
    "router.recipients_per_delivery": "router.max_recipients_per_delivery",
    "router.batch": "router.max_batch_records",
    "router.alias_depth": "router.max_alias_depth",
    "delivery.port": "delivery.mx_port",
    "delivery.connections_per_site": "delivery.max_connections_per_site",
    "delivery.connections": "delivery.max_connections",
    "delivery.in_flight": "delivery.max_in_flight_deliveries",
    "delivery.in_flight_bytes": "delivery.max_in_flight_bytes",
    "delivery.idle": "delivery.idle_timeout",
    "delivery.messages_per_connection": "delivery.max_messages_per_connection",
    "delivery.dead_site": "delivery.reconnect_backoff",
    "mailstore.pop3": "mailstore.pop3_listen",
    "mailstore.idle": "mailstore.idle_timeout",
}
