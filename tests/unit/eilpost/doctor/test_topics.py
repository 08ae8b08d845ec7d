"""Doctor findings about topics and brokers: a configuration that could lose mail is FAIL (dev: WARN)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from eilpost.doctor import brokers, topics
from eilpost.doctor.finding import Level
from eilpost.output import Output
from mail.log import LogUnavailable
from mail.log.kafka.access import make_access
from mail.log.kafka.api_versions import ApiVersions
from mail.log.kafka.diagnose import Reachable
from mail.log.kafka.probe import Probe
from mail.log.kafka.topics import TopicState, topic_config
from mail.log.topics import ACCEPTED, ALL_TOPICS, DISPATCHED, EVENTS, QUEUE, Topic
from mail.settings import LogSettings

SETTINGS = LogSettings(url="kafka://127.0.0.1:9092")
ACCESS = make_access(SETTINGS)


def sound() -> dict[Topic, TopicState]:
    return {topic: TopicState(f"mail.{topic.name}", 12, 3, 3, topic_config(topic, SETTINGS)) for topic in ALL_TOPICS}


def changed(topic: Topic, *, config: dict[str, str] | None = None, **fields: Any) -> dict[Topic, TopicState]:
    states = sound()
    states[topic] = replace(states[topic], **fields, config={**states[topic].config, **(config or {})})
    return states


def view_of(states: dict[Topic, TopicState], topic: Topic, settings: LogSettings = SETTINGS) -> topics.TopicView:
    return next(view for view in topics.topic_views(states, ACCESS, settings) if view.topic is topic)


def test_created_topics_pass_the_check() -> None:
    assert [view.level for view in topics.topic_views(sound(), ACCESS, SETTINGS)] == [Level.OK] * 5
    assert topics.count_findings(sound(), ACCESS, SETTINGS) == []
    assert {finding.level for finding in topics.findings(sound(), ACCESS, SETTINGS)} == {Level.OK}


@pytest.mark.parametrize(
    ("topic", "config", "fields", "level", "advice"),
    [
        (QUEUE, {"cleanup.policy": "delete"}, {}, Level.FAIL, "set it to compact"),
        (QUEUE, {"cleanup.policy": "compact,delete"}, {}, Level.FAIL, "set it to compact"),
        (ACCEPTED, {"cleanup.policy": "compact"}, {}, Level.FAIL, "set it to delete"),
        (ACCEPTED, {"retention.ms": "604800000"}, {}, Level.FAIL, "set it to -1"),
        (DISPATCHED, {"retention.bytes": "1000000"}, {}, Level.FAIL, "set it to -1"),
        (EVENTS, {"retention.ms": "86400000"}, {}, Level.WARN, "less than log.events_retention"),
        (EVENTS, {"unclean.leader.election.enable": "true"}, {}, Level.FAIL, "set it to false"),
        (ACCEPTED, {"max.message.bytes": "1048588"}, {}, Level.FAIL, "set it to 16777216"),
        (ACCEPTED, {"min.insync.replicas": "1"}, {}, Level.FAIL, "set it to 2"),
        (ACCEPTED, {"min.insync.replicas": "4"}, {}, Level.FAIL, "lower it"),
        (ACCEPTED, {"min.insync.replicas": "1"}, {"replication": 1, "in_sync": 1}, Level.FAIL, "add replicas"),
        (ACCEPTED, {}, {"in_sync": 2}, Level.WARN, "start the missing broker"),
    ],
)
def test_unsafe_topic_configuration_is_reported(
    topic: Topic, config: dict[str, str], fields: dict[str, int], level: Level, advice: str
) -> None:
    states = changed(topic, config=config, **fields)
    view = view_of(states, topic)
    assert (view.level, advice in "".join(view.advice)) == (level, True), view
    dev = view_of(states, topic, SETTINGS.model_copy(update={"durability": "dev"}))
    assert (dev.level, dev.advice) == (Level.WARN, view.advice)
    assert [view.level for view in topics.topic_views(states, ACCESS, SETTINGS)].count(Level.OK) == 4


def test_min_isr_advice_does_not_exceed_the_replicas() -> None:
    """min.insync.replicas = 2 of one replica would stop all mail."""
    view = view_of(changed(ACCEPTED, config={"min.insync.replicas": "1"}, replication=1, in_sync=1), ACCEPTED)
    assert not any("min.insync" in line for line in view.advice)


def test_missing_topic_and_wrong_partition_count_are_reported() -> None:
    states = sound()
    del states[EVENTS]
    view = view_of(states, EVENTS)
    assert (view.level, "topics create" in view.advice[0]) == (Level.FAIL, True)
    assert topics.count_findings(states, ACCESS, SETTINGS) == []

    (finding,) = topics.count_findings(changed(EVENTS, partitions=11), ACCESS, SETTINGS)
    assert "11" in finding.text + "".join(finding.advice)
    (finding,) = topics.count_findings(sound(), ACCESS, SETTINGS.model_copy(update={"shards": 5}))
    assert "log.shards = 5" in finding.text
    assert finding.advice == ("set log.shards = 12, or 0 to use the topic's number",)


def test_advice_for_a_tenant_names_the_tenant_option() -> None:
    (finding,) = topics.findings({}, replace(ACCESS, tenant="acme"), SETTINGS)
    assert (finding.level, finding.text) == (Level.FAIL, "no topic mail.* of tenant acme exists")
    assert finding.advice[0] == "run `eilpost topics create --tenant acme`"
    finding = brokers.group_finding("router", replace(ACCESS, tenant="acme"), {}, 1, 12)
    assert finding.advice == ("start `eilpost router --tenant acme` with this log.url",)


class _UnavailableCluster:
    """A cluster that does not answer."""

    async def committed_offsets(self, *_: object) -> object:
        raise LogUnavailable("kafka://127.0.0.1:9092: the brokers did not answer in time")

    async def topics(self, *_: object) -> object:
        raise LogUnavailable("kafka://127.0.0.1:9092: the brokers did not answer in time")

    async def __aenter__(self) -> _UnavailableCluster:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_unavailable_cluster_is_reported_for_each_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "ClusterInfo", lambda _: _UnavailableCluster())
    for part in ("groups", "topics"):
        findings = []
        for access in (replace(ACCESS, tenant=tenant) for tenant in ("", "acme", "initech")):
            if part == "groups":
                groups = await brokers.group_findings(_UnavailableCluster(), access, SETTINGS, sound())  # type: ignore[arg-type]
                findings += groups
            else:
                findings += (await brokers.topics_and_groups(access, SETTINGS))[0]
        subjects = [part, f"{part} of tenant acme", f"{part} of tenant initech"]
        assert [finding.subject for finding in findings] == subjects
        assert all(finding.text.startswith("cannot be checked: ") for finding in findings)


def test_topics_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    states = changed(QUEUE, config={"cleanup.policy": "delete", "retention.ms": "604800000"})
    views = topics.topic_views(states, ACCESS, SETTINGS)
    topics.write(views, [], Output())
    lines = capsys.readouterr().out.splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert words[0] == "topic partitions replicas in sync min ISR retention cleanup unclean election record max"
    assert words[1] == "OK mail.accepted 12 3 3 2 until consumed delete no 16MiB"
    assert words[2] == "FAIL mail.queue 12 3 3 2 7d delete no 16MiB"
    assert lines[3] == "      -> cleanup.policy = delete removes queue entries: set it to compact"
    assert lines[-1] == "5 checks: 4 OK, 1 FAIL"
    document = json.loads(json.dumps(topics.as_json(views, [])))
    assert (document["level"], document["topics"][1]["cleanup_policy"]) == ("FAIL", "delete")
    assert document["topics"][0] == {
        "level": "OK",
        "topic": "mail.accepted",
        "partitions": 12,
        "replicas": 3,
        "in_sync": 3,
        "min_insync_replicas": 2,
        "retention_ms": -1,
        "retention_bytes": -1,
        "cleanup_policy": "delete",
        "unclean_leader_election": False,
        "max_message_bytes": 16 << 20,
        "advice": [],
    }


@pytest.mark.parametrize(("milliseconds", "text"), [(2**63 - 1, "36500d"), (-1, "unlimited")])
def test_retention_is_at_most_36500_days_or_unlimited(
    capsys: pytest.CaptureFixture[str], milliseconds: int, text: str
) -> None:
    states = changed(EVENTS, config={"retention.ms": str(milliseconds)})
    topics.write(topics.topic_views(states, ACCESS, SETTINGS), [], Output())
    assert text in capsys.readouterr().out


# --- groups, size, versions, clocks


@pytest.mark.parametrize(
    ("state", "members", "waiting", "level", "expected"),
    [
        ("Stable", 2, 7, Level.OK, "2 processes, 12 shards, lag 7 records"),
        ("Empty", 0, 1, Level.FAIL, "no process of this role is running, lag 1 record"),
        ("Dead", 0, 0, Level.WARN, "no process of this role is running"),
        ("PreparingRebalance", 1, 0, Level.WARN, "rebalance in progress"),
        ("Stable", 13, 0, Level.WARN, "1 without a shard"),
    ],
)
def test_group_states_are_reported(state: str, members: int, waiting: int, level: Level, expected: str) -> None:
    finding = brokers.group_finding("router", ACCESS, {"mail.router": (state, members)}, waiting, 12)
    assert (finding.level, expected in finding.text, finding.subject) == (level, True, "group mail.router")


def _reached(brokers_alive: int = 3, known: int = 30, in_force: int = 30) -> Reachable:
    greeting = ApiVersions({"metadata.version": known}, {"metadata.version": in_force})
    return Reachable("h:9092", 0.001, greeting, tuple((n, f"h{n}:9092") for n in range(brokers_alive)), None)


@pytest.mark.parametrize(
    ("alive", "durability", "replication", "level"),
    [
        (3, "safe", 3, Level.OK),
        (2, "safe", 3, Level.WARN),
        (1, "safe", 3, Level.FAIL),
        (1, "safe", 1, Level.FAIL),
        (1, "dev", 1, Level.OK),
        (1, "dev", 3, Level.FAIL),
        (3, "safe", 5, Level.WARN),
    ],
)
def test_too_few_brokers_are_reported(alive: int, durability: str, replication: int, level: Level) -> None:
    settings = SETTINGS.model_copy(update={"durability": durability, "replication": replication})
    (finding,) = brokers.size_findings([_reached(alive)], set(), settings, is_trial=False)
    assert not any("durability" in line for line in finding.advice)  # topics have replicas: it would give them up
    (finding,) = brokers.size_findings([_reached(alive)], set(), settings, is_trial=True)
    assert any("durability" in line for line in finding.advice) is (level is Level.FAIL)
    assert (finding.level, bool(finding.advice)) == (level, level is not Level.OK)
    missing = {f"h{alive}:9092", "h99:9092"}  # one unreachable broker of the list and one that is not in it
    (finding,) = brokers.size_findings([_reached(alive + 1)], missing, settings, is_trial=False)
    assert finding.level is level


def test_mixed_or_old_broker_versions_are_warnings() -> None:
    def level_of(*reached: Reachable) -> Level:
        return brokers.version_findings(reached)[0].level

    assert level_of(_reached()) is Level.OK
    assert level_of(_reached(), _reached(known=29, in_force=29)) is Level.WARN
    assert level_of(_reached(in_force=21)) is Level.WARN
    assert level_of(_reached(known=20, in_force=20)) is Level.WARN


@pytest.mark.parametrize(
    ("ahead", "level"),
    [
        (0.0, Level.OK),
        (-1.9, Level.OK),
        (2.5, Level.WARN),
        (-60.0, Level.WARN),
        (301.0, Level.FAIL),
        (None, Level.WARN),
    ],
)
def test_clock_offset_of_a_broker_is_reported(ahead: float | None, level: Level) -> None:
    finding = brokers.clock_finding(Probe(2, 0.004, ahead))
    assert (finding.level, finding.subject) == (level, "clock of broker 2")


def test_plain_password_without_tls_is_a_warning() -> None:
    assert brokers.cleartext_findings(SETTINGS) == []
    (finding,) = brokers.cleartext_findings(SETTINGS.model_copy(update={"sasl_mechanism": "PLAIN"}))
    assert finding.level is Level.WARN
    assert brokers.cleartext_findings(SETTINGS.model_copy(update={"sasl_mechanism": "PLAIN", "tls": True})) == []
