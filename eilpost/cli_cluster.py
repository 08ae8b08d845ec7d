"""`eilpost topics create`, `eilpost topics check` and `eilpost doctor`.

Exit status of the checks: 0 all passed, or only warnings; 1 a check failed; 2 no check was possible (no broker answers
`topics`, the settings cannot be read). For `doctor` a broker that does not answer is a failed check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from eilpost.cli_help import examples
from eilpost.terminal import ConfigOption, JsonOption, TenantOption, command_group, print_json, result_output, run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mail.log.kafka.access import Access
    from mail.log.kafka.topics import TopicState
    from mail.log.topics import Topic
    from mail.settings import LogSettings

topics_app = command_group("Create and check the topics on Kafka.")


@topics_app.command("create", epilog=examples("eilpost topics create --config cluster.toml"))
def topics_create(config: ConfigOption = None, tenant: TenantOption = "") -> None:
    """Create missing topics, and missing partitions of `dispatched`.

    Existing topics are not changed.
    """
    from eilpost.wiring import create_topics

    if access := _access(config, tenant):
        for line in run(create_topics(*access)) or ["nothing to do"]:
            print(line)  # noqa: T201


@topics_app.command("check", epilog=examples("eilpost topics check --config cluster.toml"))
def topics_check(config: ConfigOption = None, json: JsonOption = False, tenant: TenantOption = "") -> None:
    """Show each topic and its unsafe settings."""
    from eilpost.doctor import topics
    from eilpost.doctor.finding import status
    from eilpost.output import Output

    access = _access(config, tenant, json=json)
    if access is None:
        return
    topic_states = run(_load_topics(access[0]))
    topic_views = topics.topic_views(topic_states, *access)
    count_findings = topics.count_findings(topic_states, *access)
    with result_output():
        if json:
            print_json(topics.as_json(topic_views, count_findings))
        else:
            topics.write(topic_views, count_findings, Output())
    raise typer.Exit(status(topics.levels(topic_views, count_findings)))


def doctor(config: ConfigOption = None, json: JsonOption = False, tenant: TenantOption = "") -> None:
    """Check log, spool, directory, DNS and ports."""
    from eilpost import configuration
    from eilpost.doctor import examine
    from eilpost.doctor.finding import as_json, status, write
    from eilpost.output import Output

    findings = run(examine(configuration.load_process_config(config).for_tenant(tenant)))
    with result_output():
        if json:
            print_json(as_json(findings))
        else:
            write(findings, Output())
    raise typer.Exit(status([finding.level for finding in findings]))


def _access(config: Path | None, tenant: str, *, json: bool = False) -> tuple[Access, LogSettings] | None:
    """How to reach the brokers; None on a log without topics, after printing that."""
    from eilpost import configuration, wiring

    process_config = configuration.load_process_config(config).for_tenant(tenant)
    url = process_config.settings.log.url
    if not url.startswith("kafka:"):
        if json:
            print_json({"level": "OK", "topics": [], "findings": []})
        else:
            print(f"{url}: this log has no topics")  # noqa: T201
        return None
    wiring.require_package("aiokafka", "log.url", url, "kafka")
    from mail.log.kafka.access import make_access

    settings = wiring.log_settings(process_config)
    return make_access(settings, tenant), settings


async def _load_topics(access: Access) -> Mapping[Topic, TopicState]:
    from mail.log import LogUnavailable, LogUnusable
    from mail.log.kafka.cluster_info import ClusterInfo
    from mail.log.kafka.diagnose import explain_failure, require_broker

    await require_broker(access)
    async with ClusterInfo(access) as cluster_info:
        try:
            return await cluster_info.topics()
        except LogUnavailable as error:
            raise LogUnusable(await explain_failure(access, error)) from None
