"""The chart's KafkaTopic and KafkaUser have only fields and constants of Strimzi's classes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.chart import helm, strimzi

pytestmark = [pytest.mark.helm, pytest.mark.strimzi]

_RESOURCES = {
    "topic": "user/acl/AclRuleTopicResource",
    "group": "user/acl/AclRuleGroupResource",
    "transactionalId": "user/acl/AclRuleTransactionalIdResource",
    "cluster": "user/acl/AclRuleClusterResource",
}


def _unknown(part: helm.Object, name: str) -> set[str]:
    """Keys that are not fields of the class."""
    return set(part) - strimzi.fields_of(name) - {"type"}  # the type selects the class


def test_api_version_is_served() -> None:
    for each in helm.of_kind("strimzi", "KafkaTopic", "KafkaUser"):
        group, _, version = each["apiVersion"].partition("/")
        name = {"KafkaTopic": "topic/KafkaTopic", "KafkaUser": "user/KafkaUser"}[each["kind"]]
        assert {group, version, each["kind"]} <= strimzi.java_class(name).constants


def test_topics_have_known_fields() -> None:
    for each in helm.of_kind("strimzi", "KafkaTopic"):
        assert _unknown(each["spec"], "topic/KafkaTopicSpec") == set()
    assert _unknown({"partition": 12}, "topic/KafkaTopicSpec") == {"partition"}


def test_user_has_known_fields_and_constants() -> None:
    spec: Any = helm.one("strimzi", "KafkaUser")["spec"]
    assert _unknown(spec, "user/KafkaUserSpec") == set()
    assert spec["authorization"]["type"] in strimzi.java_class("user/KafkaUserAuthorizationSimple").constants
    assert _unknown(spec["authorization"], "user/KafkaUserAuthorizationSimple") == set()
    operations = strimzi.java_class("user/acl/AclOperation").constants
    patterns = strimzi.java_class("user/acl/AclResourcePatternType").constants
    for rule in spec["authorization"]["acls"]:
        assert _unknown(rule, "user/acl/AclRule") == set()
        resource = rule["resource"]
        assert _unknown(resource, _RESOURCES[resource["type"]]) == set()
        assert resource["type"] in strimzi.java_class(_RESOURCES[resource["type"]]).constants
        assert {each.upper() for each in rule["operations"]} <= {each.upper() for each in operations}
        assert resource.get("patternType", "prefix") in patterns
