"""`helm upgrade` under load: every pod is replaced without loss; a failed upgrade is rolled back."""

from __future__ import annotations

import pytest

from tests.support.chart.helm import HELM_4
from tests.support.golang import GoProgram
from tests.support.kubernetes.cluster import CommandError
from tests.support.kubernetes.programs import HELM
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
@pytest.mark.helm_4
@pytest.mark.parametrize(
    ("program", "option"), [(HELM, "--atomic"), (HELM_4, "--rollback-on-failure")], ids=["helm 3", "helm 4"]
)
def test_failed_upgrade_under_load_is_rolled_back_without_loss(mail: Release, program: GoProgram, option: str) -> None:
    before = {name_of(pod) for role in ROLES for pod in mail.pods(role)}
    wrong = {"image": {"tag": "does-not-exist"}}
    with sending(mail) as traffic:
        with pytest.raises(CommandError, match=f"rolled back due to {option[2:]} being set"):
            mail.upgrade("minimal", wrong, option, seconds=10, program=program)
        result = traffic.result()
    assert "Rollback to" in mail.helm("history")
    assert before == {name_of(pod) for role in ROLES for pod in mail.pods(role) if is_ready(pod)}
    assert_nothing_lost(result)


def test_changed_number_of_shards_ends_new_pods_and_no_old_ones(mail: Release) -> None:
    roles = ("ingress", "router", "delivery")  # a mailstore does not read the log
    before = {name_of(pod) for role in roles for pod in mail.pods(role)}
    mail.upgrade("minimal", {"log": {"shards": 24}})
    line = f"log.shards = 24, but topic {mail.namespace}.accepted has 12 partitions, and the number cannot change: "
    for component in ("topics", "ingress", "router", "delivery"):
        (message,) = mail.cluster.until(
            f"{component} ended by this line",
            lambda component=component: {each for each in mail.termination_messages(component) if line in each},
        )
        assert len(message.splitlines()) == 1
    assert before == {name_of(pod) for role in roles for pod in mail.pods(role) if is_ready(pod)}
    mail.helm("rollback", "--wait", "--timeout=60s")
    mail.cluster.until(
        "only the old pods are left", lambda: before == {name_of(pod) for role in roles for pod in mail.pods(role)}
    )
