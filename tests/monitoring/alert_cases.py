"""Test cases for the alerts: the series of a healthy cluster, and the changes by the fault of each alert.

A series is a selector and its values in promtool's notation, one a minute: `0+60x150` grows by 60 each minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MINUTES = 150

INGRESS = 'namespace="mail",tenant="shared",role="ingress",pod="ingress-0"'
ROUTER = 'namespace="mail",tenant="shared",role="router",pod="router-0"'
DELIVERY = 'namespace="mail",tenant="shared",role="delivery",pod="delivery-0"'
MAILSTORE = 'namespace="mail",tenant="shared",role="mailstore",pod="mailstore-0"'
ACME = 'namespace="mail",tenant="acme",role="delivery",pod="delivery-acme-0"'
EXPECTED = 'namespace_tenant_role:eilpost_expected:info{namespace="mail",tenant="acme",role="delivery"}'
CLAIM = 'namespace="mail",persistentvolumeclaim="mail-eilpost-mailboxes"'
HPA = 'namespace="mail",horizontalpodautoscaler="mail-eilpost-ingress"'


def steady(value: float) -> str:
    return f"{value}x{MINUTES}"


def per_minute(count: float) -> str:
    return f"0+{count}x{MINUTES}"


def _histogram(name: str, labels: str, buckets: Mapping[str, float]) -> dict[str, str]:
    """Observations per minute up to each bound, the last of which is +Inf."""
    series = {f'{name}_bucket{{{labels},le="{le}"}}': per_minute(count) for le, count in buckets.items()}
    return series | {f"{name}_count{{{labels}}}": per_minute(buckets["+Inf"])}


def _accepts(fast: float, slow: float) -> dict[str, str]:
    return _histogram(
        "eilpost_accept_duration_seconds", INGRESS, {"0.1": fast, "2.5": fast, "5.0": fast + slow, "+Inf": fast + slow}
    )


def _first_attempts(punctual: float, late: float) -> dict[str, str]:
    return _histogram(
        "eilpost_first_attempt_delay_seconds",
        ROUTER,
        {"1.0": punctual, "60.0": punctual, "300.0": punctual + late, "+Inf": punctual + late},
    )


def _loop_lag(fast: float, slow: float) -> dict[str, str]:
    return _histogram(
        "eilpost_event_loop_lag_seconds", ROUTER, {"0.01": fast, "0.5": fast, "1.0": fast + slow, "+Inf": fast + slow}
    )


def _attempts(provider: str, delivered: float, deferred: float) -> dict[str, str]:
    where = f'{DELIVERY},transport="smtp",provider="{provider}"'
    return {
        f'eilpost_delivery_attempts_total{{{where},result="delivered"}}': per_minute(delivered),
        f'eilpost_delivery_attempts_total{{{where},result="deferred"}}': per_minute(deferred),
        f'eilpost_delivery_attempts_total{{{where},result="failed"}}': per_minute(1),
    }


def _ready(labels: str) -> dict[str, str]:
    return {f"up{{{labels}}}": steady(1), f"eilpost_ready{{{labels}}}": steady(1)}


_POLICY_FAILURES = f'eilpost_delivery_failures_total{{{DELIVERY},transport="smtp",provider="google",status="4.7"}}'

HEALTHY: Mapping[str, str] = {
    **_ready(INGRESS),
    **_ready(ROUTER),
    **_ready(DELIVERY),
    **_ready(MAILSTORE),
    **_ready(ACME),
    EXPECTED: steady(1),
    f'eilpost_messages_received_total{{{INGRESS},result="accepted"}}': per_minute(600),
    f'eilpost_messages_received_total{{{INGRESS},result="tempfail"}}': per_minute(6),
    f'eilpost_messages_received_total{{{INGRESS},result="rejected"}}': per_minute(30),
    f'eilpost_smtp_replies_total{{{INGRESS},verb="CONNECT",reply_class="4"}}': per_minute(0),
    **_accepts(600, 0),
    f"eilpost_produce_errors_total{{{INGRESS}}}": steady(3),
    f"eilpost_produce_errors_total{{{ROUTER}}}": steady(0),
    f'eilpost_spool_errors_total{{{DELIVERY},kind="unavailable"}}': steady(2),
    f'eilpost_spool_errors_total{{{DELIVERY},kind="damaged"}}': steady(0),
    f'eilpost_consumer_lag_records{{{INGRESS},topic="accepted"}}': steady(40),
    f'eilpost_consumer_lag_records{{{ROUTER},topic="accepted"}}': steady(40),
    f'eilpost_consumed_records_total{{{ROUTER},topic="accepted"}}': per_minute(600),
    f'eilpost_consumer_lag_records{{{ROUTER},topic="dispatched"}}': steady(200),
    f'eilpost_consumed_records_total{{{DELIVERY},topic="dispatched"}}': per_minute(600),
    f"eilpost_shards{{{ROUTER}}}": steady(12),
    f"eilpost_shards{{{INGRESS.replace('ingress', 'router', 1)}}}": steady(0),  # an ingress does not export it
    f"eilpost_shards_routed{{{ROUTER}}}": steady(12),
    f"eilpost_shards_stopped{{{ROUTER}}}": steady(0),
    f"eilpost_routed_messages_total{{{ROUTER}}}": per_minute(600),
    f"eilpost_queue_runnable_recipients{{{ROUTER}}}": steady(50),
    f"eilpost_queue_oldest_runnable_timestamp_seconds{{{ROUTER}}}": f"0+60x{MINUTES}",  # constant since this minute
    **_first_attempts(600, 3),
    f"eilpost_ledger_drift_recipients{{{ROUTER}}}": steady(0),
    f"eilpost_quarantined_deliveries{{{ROUTER}}}": steady(0),
    f"eilpost_corrupt_records{{{ROUTER}}}": steady(0),
    **_attempts("google", 300, 20),
    **_attempts("other", 280, 20),
    _POLICY_FAILURES: per_minute(2),
    f'eilpost_delivery_failures_total{{{DELIVERY},transport="smtp",provider="google",status="5.1"}}': per_minute(90),
    f'eilpost_delivered_messages_total{{{DELIVERY},transport="smtp"}}': per_minute(580),
    f"eilpost_delivery_sources_suspended{{{DELIVERY}}}": steady(0),
    **_loop_lag(6000, 0),
    f'eilpost_dns_duration_seconds_count{{{ROUTER},result="found"}}': per_minute(60),
    f'eilpost_dns_duration_seconds_count{{{ROUTER},result="error"}}': per_minute(3),
    f"eilpost_directory_last_reload_successful{{{INGRESS}}}": steady(1),
    f"eilpost_directory_last_reload_successful{{{ROUTER}}}": steady(1),
    f'eilpost_certificate_expiry_timestamp_seconds{{{ROUTER},use="kafka"}}': steady(90 * 86400),
    f"kubelet_volume_stats_available_bytes{{{CLAIM}}}": steady(60e9),
    f"kubelet_volume_stats_capacity_bytes{{{CLAIM}}}": steady(100e9),
    f"kube_horizontalpodautoscaler_status_current_replicas{{{HPA}}}": steady(4),
    f"kube_horizontalpodautoscaler_spec_max_replicas{{{HPA}}}": steady(10),
}

_MAIL = {"namespace": "mail"}
_SHARED = _MAIL | {"tenant": "shared"}
_ROUTER = _SHARED | {"role": "router"}
_ROUTER_POD = _ROUTER | {"pod": "router-0"}
_DELIVERY_POD = _SHARED | {"role": "delivery", "pod": "delivery-0"}


@dataclass(frozen=True)
class Fault:
    """`changes`: values by selector; None removes a series. `labels`: those of the fired alert; `also`: other
    alerts.
    """

    alert: str
    labels: Mapping[str, str]
    changes: Mapping[str, str | None]
    also: frozenset[str] = field(default_factory=frozenset)
    name: str = ""

    @property
    def id(self) -> str:
        return self.alert + (f"-{self.name}" if self.name else "")


_NO_ATTEMPT_SUCCEEDS = {
    **_attempts("google", 0, 320),
    **_attempts("other", 0, 300),
    f'eilpost_delivered_messages_total{{{DELIVERY},transport="smtp"}}': steady(86000),
}

FAULTS = (
    Fault(
        "EilpostIngressDown",
        _MAIL,
        {f"up{{{INGRESS}}}": steady(0), f"eilpost_ready{{{INGRESS}}}": None},
        name="does-not-answer",
    ),
    Fault("EilpostIngressDown", _MAIL, {f"eilpost_ready{{{INGRESS}}}": steady(0)}, name="not-ready"),
    Fault(
        "EilpostIngressDown",
        _MAIL,
        {f"up{{{INGRESS}}}": None, f"eilpost_ready{{{INGRESS}}}": None},
        name="no-target",
    ),
    Fault(
        "EilpostIngressTempFailing",
        _MAIL,
        {f'eilpost_messages_received_total{{{INGRESS},result="tempfail"}}': per_minute(60)},
        name="data",
    ),
    Fault(
        "EilpostIngressTempFailing",
        _MAIL,
        {f'eilpost_smtp_replies_total{{{INGRESS},verb="CONNECT",reply_class="4"}}': per_minute(100)},
        name="connect",
    ),
    Fault("EilpostAcceptSlow", _MAIL, _accepts(500, 100)),
    Fault("EilpostProduceErrors", _ROUTER, {f"eilpost_produce_errors_total{{{ROUTER}}}": per_minute(1)}),
    Fault(
        "EilpostConsumerStalled",
        _SHARED,  # the other shards are processed: records are consumed
        {f"eilpost_shards_routed{{{ROUTER}}}": steady(11)},
        name="one-shard",
    ),
    Fault(
        "EilpostConsumerStalled",
        _SHARED,
        {f"eilpost_shards_routed{{{ROUTER}}}": steady(0)},
        name="all-shards",
    ),
    Fault(
        "EilpostShardsStopped",
        _ROUTER_POD,
        {f"eilpost_shards_stopped{{{ROUTER}}}": steady(1), f"eilpost_shards_routed{{{ROUTER}}}": steady(11)},
    ),
    Fault(
        "EilpostSpoolErrors",
        _SHARED | {"role": "delivery", "kind": "damaged"},
        {f'eilpost_spool_errors_total{{{DELIVERY},kind="damaged"}}': per_minute(1)},
    ),
    Fault(
        "EilpostNothingDelivered",
        _SHARED,
        _NO_ATTEMPT_SUCCEEDS,
        also=frozenset({"EilpostDeferralsHigh"}),
        name="attempts-fail",
    ),
    Fault(
        "EilpostNothingDelivered",
        _SHARED,
        {
            f"eilpost_routed_messages_total{{{ROUTER}}}": steady(0),
            f'eilpost_delivered_messages_total{{{DELIVERY},transport="smtp"}}': steady(0),
        },
        name="no-attempts",
    ),
    Fault("EilpostFirstAttemptSLOBurn", _SHARED, _first_attempts(500, 100)),
    Fault(
        "EilpostLedgerDrift", _SHARED | {"pod": "router-0"}, {f"eilpost_ledger_drift_recipients{{{ROUTER}}}": "-1x150"}
    ),
    Fault(
        "EilpostQueueAgeHigh",
        _SHARED,
        {f"eilpost_queue_oldest_runnable_timestamp_seconds{{{ROUTER}}}": steady(60)},
    ),
    Fault("EilpostQuarantinedMessages", _SHARED, {f"eilpost_quarantined_deliveries{{{ROUTER}}}": steady(1)}),
    Fault("EilpostCorruptRecords", _SHARED, {f"eilpost_corrupt_records{{{ROUTER}}}": steady(1)}),
    Fault("EilpostDeferralsHigh", _SHARED, _attempts("other", 100, 400)),
    Fault(
        "EilpostProviderBlocking",
        _SHARED | {"provider": "google"},
        {_POLICY_FAILURES: per_minute(50)},
    ),
    Fault(
        "EilpostSourceSuspended",
        _SHARED | {"pod": "delivery-0"},
        {f"eilpost_delivery_sources_suspended{{{DELIVERY}}}": steady(1)},
    ),
    Fault(
        "EilpostRoleDown",
        _ROUTER,
        {f"up{{{ROUTER}}}": steady(0), f"eilpost_ready{{{ROUTER}}}": None},
        name="does-not-answer",
    ),
    Fault("EilpostRoleDown", _ROUTER, {f"up{{{ROUTER}}}": None, f"eilpost_ready{{{ROUTER}}}": None}, name="no-target"),
    Fault(
        "EilpostRoleDown",
        _MAIL | {"tenant": "acme", "role": "delivery"},
        {f"up{{{ACME}}}": None, f"eilpost_ready{{{ACME}}}": None},
        name="no-target-of-a-dedicated-tenant",
    ),
    Fault(
        "EilpostDnsFailing",
        _MAIL,
        {
            f'eilpost_dns_duration_seconds_count{{{ROUTER},result="found"}}': steady(5000),
            f'eilpost_dns_duration_seconds_count{{{ROUTER},result="error"}}': per_minute(20),
        },
    ),
    Fault("EilpostEventLoopLag", _ROUTER_POD, _loop_lag(5000, 1000)),
    Fault(
        "EilpostDirectoryReloadFailed",
        _MAIL,
        {f"eilpost_directory_last_reload_successful{{{INGRESS}}}": steady(0)},
    ),
    Fault(
        "EilpostCertificateExpiresSoon",
        _ROUTER | {"use": "kafka"},
        {f'eilpost_certificate_expiry_timestamp_seconds{{{ROUTER},use="kafka"}}': steady(10 * 86400)},
    ),
    Fault(
        "EilpostCertificateExpiryNear",
        _ROUTER | {"use": "kafka"},
        {f'eilpost_certificate_expiry_timestamp_seconds{{{ROUTER},use="kafka"}}': steady(2 * 86400)},
        also=frozenset({"EilpostCertificateExpiresSoon"}),
    ),
    Fault(
        "EilpostVolumeAlmostFull",
        _MAIL | {"persistentvolumeclaim": "mail-eilpost-mailboxes"},
        {f"kubelet_volume_stats_available_bytes{{{CLAIM}}}": steady(9e9)},
    ),
    Fault(
        "EilpostAutoscalerSaturated",
        _MAIL | {"horizontalpodautoscaler": "mail-eilpost-ingress"},
        {f"kube_horizontalpodautoscaler_status_current_replicas{{{HPA}}}": steady(10)},
    ),
)

# Cases that must not fire: ratios of few events, and a broker outage of one minute (from 85 to 86).
QUIET: Mapping[str, Mapping[str, str | None]] = {
    "a message each five minutes, tempfailed": {
        f'eilpost_messages_received_total{{{INGRESS},result="accepted"}}': steady(0),
        f'eilpost_messages_received_total{{{INGRESS},result="rejected"}}': steady(0),
        f'eilpost_messages_received_total{{{INGRESS},result="tempfail"}}': per_minute(0.2),
    },
    "a first attempt each ten minutes, late": _first_attempts(0, 0.1),
    "a recipient each five minutes, deferred by policy": {
        **_attempts("google", 0, 0.2),
        **_attempts("other", 0, 0),
        _POLICY_FAILURES: per_minute(0.2),
        f'eilpost_delivery_failures_total{{{DELIVERY},transport="smtp",provider="google",status="5.1"}}': per_minute(0),
    },
    "a broker that was away for a minute": {
        f'eilpost_messages_received_total{{{INGRESS},result="tempfail"}}': "0x85 300x60",
        f'eilpost_smtp_replies_total{{{INGRESS},verb="CONNECT",reply_class="4"}}': "0x85 600x60",
        f"eilpost_produce_errors_total{{{ROUTER}}}": "0x85 40x60",
    },
    "shards that are given to another router": {f"eilpost_shards_routed{{{ROUTER}}}": "12x85 4x1 12x60"},
    "slow destinations hold what was dispatched, and nothing else is read": {
        f'eilpost_consumer_lag_records{{{ROUTER},topic="dispatched"}}': steady(5000),
        f'eilpost_consumed_records_total{{{DELIVERY},topic="dispatched"}}': steady(9000),
    },
    "a query each two minutes, unanswered": {
        f'eilpost_dns_duration_seconds_count{{{ROUTER},result="found"}}': steady(5000),
        f'eilpost_dns_duration_seconds_count{{{ROUTER},result="error"}}': per_minute(0.5),
    },
    "an empty queue": {
        f"eilpost_queue_oldest_runnable_timestamp_seconds{{{ROUTER}}}": steady(0),
        f"eilpost_queue_runnable_recipients{{{ROUTER}}}": steady(0),
    },
}
