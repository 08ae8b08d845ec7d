"""Doctor checks of a Kafka cluster: addresses, versions, size, topics, groups, an append, clocks, certificates.

The time limit of each request is in `mail/log/kafka`. When no broker is reachable, the other checks are skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eilpost.doctor import topics, unreadable
from eilpost.doctor.finding import RIGHTS, Finding, fail, ok, warn
from eilpost.format import format_age
from mail.log import LogNotAuthorized, LogUnavailable, LogUnusable
from mail.log.kafka import rights
from mail.log.kafka.access import Access, make_access
from mail.log.kafka.certificates import RENEW_BEFORE, expiry
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.diagnose import Reachable, Unreachable, check_broker, unreachable_brokers
from mail.log.kafka.history import CLOCK_SKEW_MAX, KafkaHistoryReader
from mail.log.kafka.probe import Probe, probe_brokers
from mail.log.kafka.topics import IN_SYNC_SAFE, REPLICATION_SAFE, TopicState, shard_counts_of
from mail.log.topics import DELIVERY, ROUTER, Topic
from mail.settings import LogSettings
from mail.tasks import cancel_tasks

_CLOCK_WARN_SECONDS = 2.0
_SLOW_SECONDS = 0.5
_RETRY_ADVICE = (
    "run doctor again in 10 s (the cluster detects a dead broker by then); if it still fails, see the brokers' logs"
)
_TOPICS_SECONDS = 5.0  # how long the size of the cluster waits for the topics
_LIMIT_SECONDS = 26.0  # shorter than doctor.LIMIT_SECONDS


async def examine(
    settings: LogSettings, tenant: str, other_tenants: Mapping[str, LogSettings], limit_seconds: float = _LIMIT_SECONDS
) -> list[Finding]:
    """Check the log on Kafka; `settings` have absolute paths. `tenant` is their dedicated tenant, if any. At the time
    limit the findings so far are returned.
    """
    try:
        access = make_access(settings, tenant)
    except LogUnusable as error:
        text, _, advice = str(error).rpartition("; ")
        return [fail("log", text, advice)]
    findings: list[Finding] = []
    try:
        async with asyncio.timeout(limit_seconds):
            async for part in _findings(access, settings, other_tenants):
                findings += part
    except TimeoutError:
        text = f"some checks did not finish within {limit_seconds:.0f} s"
        findings.append(fail("log", text, "fix the findings above, then run doctor again"))
    return findings


async def _findings(
    access: Access, settings: LogSettings, other_tenants: Mapping[str, LogSettings]
) -> AsyncIterator[list[Finding]]:
    brokers = await asyncio.gather(*(check_broker(access, address) for address in access.bootstrap_servers))
    reached = [broker for broker in brokers if isinstance(broker, Reachable)]
    yield [_address_finding(broker, any_reachable=bool(reached)) for broker in brokers]
    if not reached:
        yield [fail("log", "no broker is reachable: further checks are skipped", "fix the findings above")]
        return
    unreached = await unreachable_brokers(access, brokers)
    yield [fail(f"broker {broker.address}", broker.reason, broker.advice) for broker in unreached]
    unreachable = {broker.address for broker in [*brokers, *unreached] if isinstance(broker, Unreachable)}
    tasks = [
        asyncio.create_task(topics_and_groups(make_access(log, name), log), name=f"topics of {log.prefix}")
        for name, log in {access.tenant: settings, **other_tenants}.items()
    ]
    try:
        done, _ = await asyncio.wait({tasks[0]}, timeout=_TOPICS_SECONDS)
        is_trial = bool(done) and all(state.replication < REPLICATION_SAFE for state in tasks[0].result()[1].values())
        yield version_findings(reached) + size_findings(reached, unreachable, settings, is_trial=is_trial)
        yield certificate_findings(reached, settings) + cleartext_findings(settings)
        for task in tasks:
            yield (await task)[0]
        yield await append_findings(access, (await tasks[0])[1])
    finally:
        await cancel_tasks(*tasks)


async def topics_and_groups(access: Access, settings: LogSettings) -> tuple[list[Finding], Mapping[Topic, TopicState]]:
    async with ClusterInfo(access) as cluster_info:
        try:
            topic_states = await cluster_info.topics()
        except LogUnavailable as error:
            return [_error_finding(f"topics{topics.of_tenant(access)}", error)], {}
        findings = topics.findings(topic_states, access, settings)
        if len(topic_states) == len(access.topics.all):
            refused = await rights.missing_rights(access, cluster_info)
            findings += [fail(f"access rights{topics.of_tenant(access)}", line, RIGHTS) for line in refused]
        return findings + await group_findings(cluster_info, access, settings, topic_states), topic_states


def _error_finding(subject: str, error: LogUnavailable) -> Finding:
    if isinstance(error, LogNotAuthorized):
        return fail(subject, str(error), RIGHTS)
    return fail(subject, f"cannot be checked: {error}", _RETRY_ADVICE)


def _address_finding(broker: Reachable | Unreachable, *, any_reachable: bool) -> Finding:
    if isinstance(broker, Unreachable):
        level = warn if any_reachable else fail  # one reachable broker is enough to discover the others
        return level(f"broker {broker.address}", broker.reason, broker.advice)
    text = f"responds in {format_age(timedelta(seconds=broker.seconds))}, Kafka {broker.api_versions.release}"
    if broker.seconds > _SLOW_SECONDS:
        advice = "every accepted message waits for it: check its load and the network"
        return warn(f"broker {broker.address}", text, advice)
    return ok(f"broker {broker.address}", text)


def version_findings(reached: Sequence[Reachable]) -> list[Finding]:
    releases = sorted({broker.api_versions.release for broker in reached})
    levels = sorted({broker.api_versions.finalized_release for broker in reached})
    text = f"feature level {', '.join(levels)}"
    if len(releases) > 1:
        return [warn("cluster", f"brokers run Kafka {' and '.join(releases)}: {text}", "finish the broker upgrade")]
    if releases[0].startswith(("before", "3.")):
        return [warn("cluster", f"Kafka {releases[0]}: eilpost is tested on 4.x", "upgrade the brokers")]
    if any(broker.api_versions.is_upgrade_unfinished for broker in reached):
        upgrade = f"unless you plan a downgrade: `kafka-features.sh upgrade --release-version {releases[0]}`"
        return [warn("cluster", f"{text}, brokers run {releases[0]}", upgrade)]
    return [ok("cluster", text)]


def size_findings(
    reached: Sequence[Reachable], unreachable: Set[str], settings: LogSettings, *, is_trial: bool
) -> list[Finding]:
    """`unreachable`: addresses to subtract, because brokers list a dead broker for a while. `is_trial`: no topic has
    the replicas that survive the loss of a broker, so that `log.durability = "dev"` gives nothing up.
    """
    alive_count = max(sum(address not in unreachable for _, address in broker.brokers) for broker in reached)
    is_dev = settings.durability == "dev"
    needed = settings.replication if is_dev else max(settings.replication, REPLICATION_SAFE)
    count_text = "1 broker" if alive_count == 1 else f"{alive_count} brokers"
    if alive_count >= needed:
        return [ok("cluster size", f"{count_text} alive, log.replication = {settings.replication}")]
    text = f"{count_text} alive, {needed} required for {needed} replicas"
    start = "start the missing brokers"
    if alive_count >= IN_SYNC_SAFE and not is_dev:
        risk = ": mail stops if one more fails" if alive_count == IN_SYNC_SAFE else ""
        return [warn("cluster size", text + risk, start)]
    trial = 'or, for a trial: log.durability = "dev" and log.replication = 1'
    return [fail("cluster size", text, start, *([trial] if is_trial else []))]


def certificate_findings(reached: Sequence[Reachable], settings: LogSettings) -> list[Finding]:
    now = datetime.now(UTC)
    findings = [
        _certificate_finding(f"certificate {broker.address}", broker.certificate_expires, now, "renew it on the broker")
        for broker in reached
        if broker.certificate_expires is not None
    ]
    if settings.tls and settings.tls_cert:
        findings.append(_certificate_finding("log.tls_cert", expiry(Path(settings.tls_cert)), now, "renew it"))
    return findings


def _certificate_finding(subject: str, expires_at: datetime, now: datetime, advice: str) -> Finding:
    text = f"valid until {expires_at:%Y-%m-%d}"
    if expires_at <= now:
        return fail(subject, f"expired on {expires_at:%Y-%m-%d}", advice)
    if expires_at - now < RENEW_BEFORE:
        return warn(subject, f"{text}, {format_age(expires_at - now)} left", advice)
    return ok(subject, text)


def cleartext_findings(settings: LogSettings) -> list[Finding]:
    if settings.tls:
        return []
    if settings.sasl_mechanism == "PLAIN":
        text = "the password is sent unencrypted (log.sasl_mechanism = PLAIN without log.tls)"
        return [warn("log.tls", text, "use TLS listeners or a SCRAM mechanism")]
    return []


async def group_findings(
    cluster_info: ClusterInfo,
    access: Access,
    settings: LogSettings,
    topic_states: Mapping[Topic, TopicState],
) -> list[Finding]:
    try:
        counts = shard_counts_of(topic_states, access, settings)
    except LogUnusable:
        return []  # reported by the topic checks
    history_reader = KafkaHistoryReader(access, cluster_info, counts)
    try:
        backlog = await history_reader.backlog()
        states = await cluster_info.describe_groups([access.group(role) for role in (ROUTER, DELIVERY)])
    except LogUnusable as error:
        advice = "the shards of this group are stopped until it is fixed"
        return [fail(f"groups{topics.of_tenant(access)}", str(error), advice)]
    except LogUnavailable as error:
        return [_error_finding(f"groups{topics.of_tenant(access)}", error)]
    return [
        group_finding(ROUTER, access, states, backlog.accepted + backlog.attempted, counts.by_queue_id),
        group_finding(DELIVERY, access, states, backlog.dispatched, counts.of_dispatched),
        *await unreadable.findings(history_reader, access, counts.by_queue_id),
    ]


def group_finding(
    role: str, access: Access, states: Mapping[str, tuple[str, int]], waiting: int, shards: int
) -> Finding:
    name = access.group(role)
    state, members = states.get(name, ("Dead", 0))
    subject, records = f"group {name}", "lag 1 record" if waiting == 1 else f"lag {waiting} records"
    start = f"start `eilpost {role}{topics.tenant_option(access)}` with this log.url"
    if not members:
        text = f"no process of this role is running, {records}"
        return fail(subject, text, start) if waiting else warn(subject, text, start)
    processes = "1 process" if members == 1 else f"{members} processes"
    text = f"{processes}, {shards} shards, {records}"
    if state != "Stable":
        return warn(subject, f"{text}, rebalance in progress ({state})", "run doctor again in a minute")
    if members > shards:
        return warn(subject, f"{text}: {members - shards} without a shard", f"run at most {shards} processes")
    return ok(subject, text)


async def append_findings(access: Access, topic_states: Mapping[Topic, TopicState]) -> list[Finding]:
    if len(topic_states) < len(access.topics.all):
        return []
    try:
        probes = await probe_brokers(access)
    except LogUnavailable as error:
        if isinstance(error, LogNotAuthorized):
            return [_error_finding("append", error)]
        advice = "new mail gets 4xx until it is; fix the findings above"
        return [fail("append", f"not confirmed: {error}", advice, _RETRY_ADVICE)]
    slowest = max(probe.seconds for probe in probes)
    text = f"confirmed in {format_age(timedelta(seconds=slowest))}" + (" at most" if len(probes) > 1 else "")
    finding = ok("append", text)
    if slowest > _SLOW_SECONDS:
        finding = warn("append", text, "every accepted message waits for it: check the brokers' disks and load")
    return [finding, *(clock_finding(probe) for probe in probes)]


def clock_finding(probe: Probe) -> Finding:
    subject = f"clock of broker {probe.broker}"
    sync = "synchronise all clocks by NTP (chrony, systemd-timesyncd)"
    if probe.clock_offset_seconds is None:
        advice = "set message.timestamp.type = LogAppendTime on the topics of eilpost"
        return warn(subject, "unknown: records have no broker time", advice)
    difference = abs(probe.clock_offset_seconds)
    if difference <= _CLOCK_WARN_SECONDS:
        return ok(subject, f"differs by at most {format_age(timedelta(seconds=max(difference, probe.seconds)))}")
    side = "ahead of" if probe.clock_offset_seconds > 0 else "behind"
    text = f"{format_age(timedelta(seconds=difference))} {side} this machine"
    if difference > CLOCK_SKEW_MAX.total_seconds():
        return fail(subject, f"{text}: `eilpost trace` misses events and retries run at wrong times", sync)
    return warn(subject, text, sync)
