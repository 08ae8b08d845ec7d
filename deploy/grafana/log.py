"""Log dashboard: lag, consumption, confirmation, rebalances, shards, and content of the spool."""

from deploy.grafana.board import Board
from deploy.grafana.panels import ANY_IS_BAD, BYTES_PER_SECOND, COUNT, ORANGE, RED, SECONDS, lines, number, steps
from deploy.grafana.promql import BY_ROLE, PROCESS, mean, percentiles, process, quantile, rate, rate_by, series, total


def _lag(topic: str) -> str:
    return f"sum(max by (namespace, tenant) ({series('consumer_lag_records', topic=topic)}))"


_ALL_SHARDS = series("shards", role="router")
_LAGGING = ((1000, ORANGE), (10000, RED))
_LAG_TEXT = "Records of the topic that are not consumed yet, over all shards. "

_STATS = (
    number(1, "Lag of accepted", _lag("accepted"))
    .thresholds(steps(*_LAGGING))
    .description(_LAG_TEXT + "Routers consume it; the autoscaler of the router role looks at it."),
    number(2, "Lag of dispatched", _lag("dispatched"))
    .thresholds(steps(*_LAGGING))
    .description(_LAG_TEXT + "Delivery processes consume it; deliveries in flight count."),
    number(3, "Lag of attempted", _lag("attempted"))
    .thresholds(steps(*_LAGGING))
    .description(_LAG_TEXT + "Routers consume it."),
    number(4, "Produce time (p99)", quantile(0.99, "produce_duration_seconds", selected=BY_ROLE), SECONDS)
    .thresholds(steps((0.5, ORANGE), (2.5, RED)))
    .description("From an append or a transaction to its confirmation by the log."),
    number(5, "Stopped shards", total("shards_stopped"))
    .thresholds(ANY_IS_BAD)
    .description("Shards that are not processed because a newer eilpost wrote a record. An operator must act."),
    number(6, "Produce errors", f"sum(increase({series('produce_errors_total', selected=BY_ROLE)}[$__range]))")
    .decimals(0)
    .thresholds(ANY_IS_BAD)
    .description("Appends and commits that the log did not confirm, in the chosen time."),
)

_TOPICS = (
    lines(
        10,
        "Lag by topic",
        {"{{topic}}": f"sum by (topic) (max by (namespace, tenant, topic) ({series('consumer_lag_records')}))"},
        COUNT,
    ).description("Records not consumed yet, over all shards of the cluster."),
    lines(11, "Records consumed by topic", rate_by("consumed_records_total", "topic")).description(
        "Records read for processing, per second."
    ),
    lines(12, "Produce time", percentiles("produce_duration_seconds", selected=BY_ROLE), SECONDS).description(
        "From an append or a transaction to its confirmation by the log. Every 250 of ingress waits for one."
    ),
    lines(13, "Produce errors by role", rate_by("produce_errors_total", "role", selected=BY_ROLE)).description(
        "Appends and commits that the log did not confirm, per second."
    ),
    lines(
        16,
        "Requests in a commit of the embedded log",
        {"requests": mean("log_commit_requests"), "commits per second": rate("log_commit_requests_count")},
        COUNT,
    ).description("Mean number of requests that one commit writes. With Kafka there are no such commits."),
    lines(
        20,
        "Produce time by role (p99)",
        {"{{role}}": quantile(0.99, "produce_duration_seconds", "role", selected=BY_ROLE)},
        SECONDS,
    ).description("From an append or a transaction to its confirmation by the log."),
)

_SHARDS = (
    lines(
        14,
        "Rebalances by role",
        {"{{role}}": f"60 * {rate('consumer_rebalances_total', 'role')}"},
        "suffix: /min",
        bars=True,
    )
    .span(8)
    .description("Completed rebalances of the consumer groups, per minute. Each stops the group for some seconds."),
    lines(
        15,
        "Shards by process",
        {"{{role}} {{process}}": process(f"({total('shards_owned', 'role, pod, instance')} > 0)")},
        COUNT,
        stacked=True,
    )
    .span(8)
    .description("Shards that a process owns, by the role that processes them."),
    lines(
        21,
        "Shards that are not processed",
        {
            "{{process}}": process(
                f"({total('shards_owned', PROCESS, role='router')} - {total('shards_routed', PROCESS)})"
            ),
            "no owner": f"sum(max by (namespace, tenant) ({_ALL_SHARDS})) - {total('shards_owned', role='router')}",
        },
        COUNT,
    )
    .span(8)
    .description(
        "Shards of the routers without a finished batch in the last minute, by the router that owns them. An idle "
        "shard finishes an empty batch each second. The alert is at 5 minutes."
    ),
)

_SPOOL = (
    lines(17, "Spool bytes per second", rate_by("spool_bytes_total", "direction", selected=BY_ROLE), BYTES_PER_SECOND)
    .span(8)
    .description("Content of messages larger than spool.max_inline_size, written by ingress and read by delivery."),
    lines(
        18,
        "Duration of spool operations",
        percentiles("spool_duration_seconds", "operation", selected=BY_ROLE),
        SECONDS,
    )
    .span(8)
    .description("p50 and p99 by operation; only operations that succeeded."),
    lines(19, "Spool errors by kind", rate_by("spool_errors_total", "kind", selected=BY_ROLE))
    .span(8)
    .description("unavailable: an operation failed; damaged: content is missing or its checksum is wrong."),
)

BOARD = Board(
    "kafka-and-log",
    "eilpost-log",
    "Kafka and log",
    "Lag and consumption of the topics, confirmation of writes, rebalances and shards, and the spool.",
    (("", _STATS), ("Topics", _TOPICS), ("Shards", _SHARDS), ("Spool", _SPOOL)),
    by_role=True,
)
