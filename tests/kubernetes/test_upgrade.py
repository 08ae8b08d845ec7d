"""`helm upgrade` under load: every pod is replaced without loss; a failed upgrade is rolled back."""

from __future__ import annotations

import pytest

from tests.support.kubernetes.cluster import CommandError
from tests.support.kubernetes.release import ROLES, Release, is_ready, name_of
from tests.support.kubernetes.traffic import assert_nothing_lost, sending

pytestmark = [pytest.mark.kubernetes, pytest.mark.helm, pytest.mark.docker]


@pytest.mark.timeout(240)
def test_upgrade_under_load_replaces_every_pod_without_loss(mail: Release) -> None:
    before = {role: {name_of(pod) for pod in mail.pods(role)} for role in ROLES}
    with sending(mail) as traffic:
        mail.upgrade("minimal", {"defaults": {"podAnnotations": {"changed": "yes"}}}, "--wait")
        result = traffic.result()
    for role in ROLES:
        after = mail.pods(role)
        assert not before[role] & {name_of(pod) for pod in after}
        assert all(is_ready(pod) for pod in after)
    assert_nothing_lost(result)


@pytest.mark.timeout(240)
def test_failed_upgrade_under_load_is_rolled_back_without_loss(mail: Release) -> None:
    before = {name_of(pod) for role in ROLES for pod in mail.pods(role)}
    with sending(mail) as traffic:
        with pytest.raises(CommandError, match="atomic"):
            mail.upgrade("minimal", {"image": {"tag": "does-not-exist"}}, "--atomic", seconds=10)
        result = traffic.result()
    assert "Rollback to" in mail.helm("history")
    assert before == {name_of(pod) for role in ROLES for pod in mail.pods(role) if is_ready(pod)}
    assert_nothing_lost(result)
