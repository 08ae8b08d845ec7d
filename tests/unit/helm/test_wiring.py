"""The names in the chart's manifests match each other and eilpost's code."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from mail.settings_file import load
from tests.support.chart import helm

pytestmark = pytest.mark.helm

ROLES = ("ingress", "router", "delivery", "mailstore")
# Named in the values as existing; the chart does not render them.
EXISTING = {
    "full": {"eilpost-extra"},
    "s3": {"eilpost-objects"},
    "existing-secrets": {"eilpost-kafka", "kafka-cluster-ca", "eilpost-spool", "eilpost-mailboxes", "eilpost-people"},
    "external-tls": {"kafka-cluster-ca"},
    "strimzi": {"cluster-cluster-ca-cert"},
}


def _container(spec: helm.Object) -> helm.Object:
    (container,) = spec["containers"]
    return container  # type: ignore[no-any-return]


def _environment(spec: helm.Object) -> dict[str, str]:
    """Environment variables of a pod; those from a Secret get a placeholder."""
    return {each["name"]: each.get("value", "secret") for each in _container(spec)["env"]}


def _role(labels: helm.Object) -> str:
    return str(labels["app.kubernetes.io/component"])


@pytest.mark.parametrize("name", helm.SETS)
def test_every_variable_is_a_valid_setting(name: str) -> None:
    for _, labels, spec in helm.pod_templates(name):
        settings = load(None, _environment(spec))  # raises SettingsError
        # a mailstore does not use the log
        assert settings.log.url.startswith("kafka://") != (_role(labels) == "mailstore")
        assert settings.directory.url == "file:/etc/eilpost/directory.toml"
        if _role(labels) in ("delivery", "mailstore", "test"):
            assert settings.mailboxes.url == "maildir:/var/lib/eilpost/mail"


@pytest.mark.parametrize("name", helm.SETS)
def test_grace_period_covers_pause_drain_and_ten_seconds(name: str) -> None:
    for _, labels, spec in helm.pod_templates(name):
        if _role(labels) not in ROLES:
            continue
        pause = int(
            _container(spec).get("lifecycle", {}).get("preStop", {"exec": {"command": ["", "0"]}})["exec"]["command"][1]
        )
        drain = load(None, _environment(spec)).node.drain_timeout
        assert timedelta(seconds=spec["terminationGracePeriodSeconds"]) == timedelta(seconds=pause + 10) + drain


@pytest.mark.parametrize("name", helm.SETS)
def test_ports_are_those_of_eilpost(name: str) -> None:
    for _, labels, spec in helm.pod_templates(name):
        role, container = _role(labels), _container(spec)
        ports = {each["name"]: each["containerPort"] for each in container.get("ports", [])}
        settings = load(None, _environment(spec))
        listening = {
            "smtp": settings.ingress.smtp_listen if role == "ingress" else "",
            "pop3": settings.mailstore.pop3_listen if role == "mailstore" else "",
            "http": settings.http.listen if role in ROLES else "",
        }
        assert ports == {key: int(where.rpartition(":")[2]) for key, where in listening.items() if where}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if role in ROLES:
                assert container[probe]["httpGet"]["port"] == "http"  # never SMTP


def test_pods_listen_on_the_cluster_address_family(tmp_path: Path) -> None:
    """The kubelet probes the first address of a pod."""
    over = tmp_path / "over.yaml"
    over.write_text("ipFamily: IPv6\n")
    for each in helm.template(helm.file_of("minimal"), over):
        if each["kind"] == "Deployment":
            settings = load(None, _environment(each["spec"]["template"]["spec"]))
            listening = (settings.ingress.smtp_listen, settings.mailstore.pop3_listen, settings.http.listen)
            assert listening == ("[::]:2525", "[::]:2110", "[::]:8025")


@pytest.mark.parametrize("name", helm.SETS)
def test_selectors_match_their_pods(name: str) -> None:
    """No Service, Deployment or budget selects nothing or the pods of another role."""
    labels_of = {each: labels for each, labels, _ in helm.pod_templates(name)}
    for each in helm.of_kind(name, "Deployment", "PodDisruptionBudget", "Service"):
        found = each["metadata"]["name"]
        selector = each["spec"]["selector"]
        wanted = (selector.get("matchLabels") or selector).items()
        selected = {pod for pod, labels in labels_of.items() if wanted <= labels.items()}
        assert selected == ({found} if not found.endswith("-metrics") else {p for p in labels_of if _serves(name, p)})


def _serves(name: str, pod: str) -> bool:
    (labels,) = [labels for each, labels, _ in helm.pod_templates(name) if each == pod]
    return _role(labels) in ROLES


@pytest.mark.parametrize("name", helm.SETS)
def test_references_of_pods_are_rendered_or_named_as_existing(name: str) -> None:
    made = {each["metadata"]["name"] for each in helm.of_kind(name, "Secret", "ConfigMap", "PersistentVolumeClaim")}
    made |= {each["spec"]["secretName"] for each in helm.of_kind(name, "Certificate")}
    made |= {each["metadata"]["name"] for each in helm.of_kind(name, "KafkaUser")}
    needed: set[str] = set()
    for _, _, spec in helm.pod_templates(name):
        for volume in spec["volumes"]:
            needed |= {volume["secret"]["secretName"]} if "secret" in volume else set()
            needed |= {volume["configMap"]["name"]} if "configMap" in volume else set()
            needed |= {volume["persistentVolumeClaim"]["claimName"]} if "persistentVolumeClaim" in volume else set()
        for variable in (*_container(spec)["env"], *_container(spec).get("envFrom", [])):
            source = variable.get("valueFrom", variable)
            needed |= {source[key]["name"] for key in ("secretKeyRef", "secretRef", "configMapKeyRef") if key in source}
    for each in helm.of_kind(name, "TriggerAuthentication"):
        needed |= {parameter["name"] for parameter in each["spec"].get("secretTargetRef", [])}
    assert needed - made == EXISTING.get(name, set())


@pytest.mark.parametrize("name", helm.SETS)
def test_pods_meet_the_restricted_standard_and_mount_no_token(name: str) -> None:
    for _, _, spec in helm.pod_templates(name):
        container = _container(spec)
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert not spec["automountServiceAccountToken"]
        assert not spec["enableServiceLinks"]
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in spec["volumes"]}
        assert not any("subPath" in each for each in container["volumeMounts"])


def test_only_roles_with_mailboxes_mount_them() -> None:
    """Ingress and router scale without the mailbox volume."""
    mounts = {
        _role(labels): {each["mountPath"] for each in _container(spec)["volumeMounts"]}
        for _, labels, spec in helm.pod_templates("minimal")
    }
    assert {role for role, paths in mounts.items() if "/var/lib/eilpost/mail" in paths} == {
        "delivery",
        "mailstore",
        "test",
    }
    assert {role for role, paths in mounts.items() if "/var/lib/eilpost/spool" in paths} == {
        "ingress",
        "router",
        "delivery",
        "test",
    }


def test_claims_with_mail_survive_an_uninstall() -> None:
    for each in helm.of_kind("minimal", "PersistentVolumeClaim"):
        assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize(("name", "kind"), [("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")])
def test_scaled_workloads_have_no_fixed_replicas(name: str, kind: str) -> None:
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in helm.of_kind(name, kind)}
    fixed = {each["metadata"]["name"] for each in helm.of_kind(name, "Deployment") if "replicas" in each["spec"]}
    everything = {each["metadata"]["name"] for each in helm.of_kind(name, "Deployment")}
    assert scaled
    assert scaled | fixed == everything
    assert not scaled & fixed


def test_load_balancer_keeps_client_addresses() -> None:
    assert helm.one("external-tls", "Service", "-ingress")["spec"]["externalTrafficPolicy"] == "Local"


def test_network_policies_allow_only_the_used_ports() -> None:
    def ports(name: str, way: str) -> set[int]:
        rules = helm.one("netpol", "NetworkPolicy", f"-{name}")["spec"].get(way, [])
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert {role: ports(role, "ingress") for role in (*ROLES, "topics", "test")} == {
        "ingress": {2525, 8025},
        "router": {8025},
        "delivery": {8025},
        "mailstore": {2110, 8025},
        "topics": set(),
        "test": set(),
    }
    assert {role: ports(role, "egress") for role in (*ROLES, "topics", "test")} == {
        "ingress": {53, 9092},
        "router": {53, 9092},
        "delivery": {25, 53, 587, 9092},
        "mailstore": {53},
        "topics": {53, 9092},
        "test": {53, 2525, 9092},
    }


def test_helm_test_passes_with_named_smtp_clients() -> None:
    rules = helm.one("netpol", "NetworkPolicy", "-ingress")["spec"]["ingress"]
    (peers,) = [rule["from"] for rule in rules if rule["ports"][0]["port"] == 2525]
    (labels,) = [each["podSelector"]["matchLabels"] for each in peers if "podSelector" in each]
    pod = helm.one("netpol", "Pod", "-test")["metadata"]["labels"]
    assert len(peers) == 2
    assert labels.items() <= pod.items()


def test_workload_can_use_the_recreate_strategy(tmp_path: Path) -> None:
    other = tmp_path / "values.yaml"
    other.write_text("mailstore: {strategy: {type: Recreate}}\n")
    strategies = {
        each["metadata"]["name"]: each["spec"]["strategy"]
        for each in helm.template(helm.file_of("minimal"), other)
        if each["kind"] == "Deployment"
    }
    assert strategies["mail-eilpost-mailstore"] == {"type": "Recreate"}  # Kubernetes refuses rollingUpdate with it
    assert strategies["mail-eilpost-ingress"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_dedicated_tenant_has_its_own_workers_topics_and_addresses() -> None:
    environments = {each: _environment(spec) for each, _, spec in helm.pod_templates("dedicated-tenant")}
    arguments = {each: _container(spec)["args"] for each, _, spec in helm.pod_templates("dedicated-tenant")}
    assert arguments["mail-eilpost-router-acme"] == ["router", "--tenant", "acme"]
    assert arguments["mail-eilpost-delivery-acme"] == ["delivery", "--tenant", "acme"]
    assert ["topics", "create", "--tenant", "acme"] in arguments.values()
    with_addresses = {
        each for each, variables in environments.items() if "EILPOST_DELIVERY__SOURCE_ADDRESSES" in variables
    }
    assert with_addresses == {"mail-eilpost-delivery-acme"}
    settings = load(None, environments["mail-eilpost-delivery-acme"])
    assert settings.delivery.source_addresses == ["192.0.2.10", "192.0.2.11"]
    assert settings.delivery.ehlo_name == "out.acme.test"


def test_changed_job_gets_another_name() -> None:
    """A Job's pod template is immutable: an upgrade could not change it in place."""
    names = {helm.one(name, "Job")["metadata"]["name"] for name in ("minimal", "external-tls", "s3")}
    assert len(names) == 3
    assert all(re.fullmatch(r"mail-eilpost-topics-[0-9a-f]{8}", name) for name in names)


def test_topics_hook_needs_no_object_of_the_release(tmp_path: Path) -> None:
    """A hook runs before Helm creates the service account, the directory and the claims."""
    hook = tmp_path / "hook.yaml"
    hook.write_text("topics: {job: {hook: true}}", encoding="utf-8")
    (job,) = [each for each in helm.template(helm.file_of("minimal"), hook) if each["kind"] == "Job"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    spec = job["spec"]["template"]["spec"]
    assert "serviceAccountName" not in spec
    assert [each["name"] for each in spec["volumes"]] == ["tmp"]


def _egress_ports(tmp_path: Path, name: str, over: str) -> list[list[tuple[int, str]]]:
    """Ports of each egress rule of a delivery's NetworkPolicy, with additional values."""
    file = tmp_path / "over.yaml"
    file.write_text(over)
    policies = [each for each in helm.template(helm.file_of(name), file) if each["kind"] == "NetworkPolicy"]
    (policy,) = [each for each in policies if each["metadata"]["name"].endswith("-delivery")]
    return [[(port["port"], port["protocol"]) for port in rule["ports"]] for rule in policy["spec"]["egress"]]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("https://objects.example.test:9000", 9000),
        ("https://objects.example.test:9000/", 9000),
        ("https://objects.example.test:9000/storage/v1", 9000),
        ("https://192.0.2.10", 443),
        ("https://objects.example.test/v1", 443),
        ("https://[2001:db8::10]:9000/", 9000),
        ("https://[2001:db8::10]/", 443),
        ("http://objects.example.test", 80),
        ("", 443),
    ],
)
def test_policy_lets_delivery_reach_the_port_of_the_object_store(tmp_path: Path, endpoint: str, port: int) -> None:
    over = f'networkPolicy: {{enabled: true}}\nspool: {{endpoint: "{endpoint}", allowHttp: true}}\n'
    assert [(port, "TCP")] in _egress_ports(tmp_path, "s3", over)


def test_policy_allows_the_ports_of_dns(tmp_path: Path) -> None:
    assert [(53, "UDP"), (53, "TCP")] in _egress_ports(tmp_path, "netpol", "")
    over = "networkPolicy: {dnsPorts: [53, 5353]}\n"
    assert [(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")] in _egress_ports(tmp_path, "netpol", over)
