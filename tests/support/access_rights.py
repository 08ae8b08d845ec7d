"""ACLs of the chart's KafkaUser, and a broker with an authorizer.

Clients of the plain listener are the super user. The users of `guarded_broker` authenticate by PLAIN at the listener
LOGIN and have only the rights that `grant` gives them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from deploy.kafka.cluster import Cluster
from tests.support.chart import helm
from tests.support.servers import kafka

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kafka.md"
_HEAD = "| resource | operation |"
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
PASSWORD = "rights-of-a-test"
_JAAS = "org.apache.kafka.common.security.plain.PlainLoginModule required"
# Codes of Kafka's protocol: ResourceType, PatternType, AclOperation, AclPermissionType.
_RESOURCES = {"topic": 2, "group": 3, "cluster": 4, "transactionalId": 5}
_PATTERNS = {"literal": 3, "prefix": 4}
_OPERATIONS = {
    "Read": 3,
    "Write": 4,
    "Create": 5,
    "Delete": 6,
    "Alter": 7,
    "Describe": 8,
    "DescribeConfigs": 10,
    "IdempotentWrite": 12,
}
_ALLOW = 3


class Right(NamedTuple):
    """One operation on one resource pattern."""

    resource: str
    name: str
    pattern: str
    operation: str


def rights_of_chart() -> list[Right]:
    """ACLs of the KafkaUser rendered from helm/ci/strimzi.yaml."""
    rules: list[dict[str, Any]] = helm.one("strimzi", "KafkaUser")["spec"]["authorization"]["acls"]
    return [
        Right(
            rule["resource"]["type"],
            rule["resource"].get("name", "kafka-cluster"),
            rule["resource"].get("patternType", "literal"),
            operation,
        )
        for rule in rules
        for operation in rule["operations"]
    ]


@contextlib.contextmanager
def guarded_broker(users: Sequence[str]) -> Iterator[Cluster]:
    """One broker with Kafka's KRaft authorizer; its users have no ACLs yet."""
    passwords = " ".join(f'user_{user}="{PASSWORD}"' for user in users)
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        "super.users": "User:ANONYMOUS",
        "listener.name.login.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.login.plain.sasl.jaas.config": f"{_JAAS} {passwords};",
    }
    with kafka.cluster(1, secure=True, settings=settings) as broker:
        yield broker


def log_in(broker: Cluster, user: str) -> dict[str, str]:
    """Keys of `[log]` for a user of the broker."""
    return {
        "url": f"kafka://{broker.addresses('login')}",
        "sasl_mechanism": "PLAIN",
        "sasl_username": user,
        "sasl_password": PASSWORD,
    }


async def grant(broker: Cluster, user: str, rights: Iterable[Right]) -> None:
    """Grant these rights to a user, as the super user."""
    for answer in await _send(broker, (CreateAclsRequest(*_acl(user, right)) for right in rights)):
        assert [code for code, _ in answer.creation_responses] == [0], answer


async def revoke(broker: Cluster, user: str, rights: Iterable[Right]) -> None:
    """Revoke these rights of a user."""
    for answer in await _send(broker, (DeleteAclsRequest(*_acl(user, right)) for right in rights)):
        assert [(code, len(deleted)) for code, _, deleted in answer.filter_responses] == [(0, 1)], answer


def _acl(user: str, right: Right) -> tuple[int, str, int, str, str, int, int]:
    resource, pattern, operation = _RESOURCES[right.resource], _PATTERNS[right.pattern], _OPERATIONS[right.operation]
    return resource, right.name, pattern, f"User:{user}", "*", operation, _ALLOW


async def _send(broker: Cluster, requests: Iterable[CreateAclsRequest | DeleteAclsRequest]) -> list[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        return [await admin._send_request(request) for request in requests]
    finally:
        await admin.close()


def rights_of_page() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """The tables of docs/kafka.md as sets of (resource, operation): for all roles, and additional ones for creating
    topics.
    """
    section = PAGE.read_text(encoding="utf-8").partition("## Access rights\n")[2].partition("\n#")[0]
    first, second = (set(_ROW.findall(table)) for table in section.split(_HEAD)[1:])
    return first, second
