"""The shipped compose files: settings, commands, hosts and ports of the services match each other.

No image is started here; tests/journeys/test_31_compose.py does that. Every setting must be accepted by eilpost, every
named host must be a listening service, nothing may listen beyond 127.0.0.1, a real Kafka must accept the brokers'
settings, and the Compose Specification's loader must accept the files.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from argon2 import PasswordHasher
from typer.main import get_command

from deploy.kafka import jars
from deploy.kafka.node import Node
from eilpost.cli import app
from eilpost.load.workload import Workload
from mail.directory.file import find_user
from mail.directory.passwords import is_hash
from mail.directory.toml import parse_directory
from mail.endpoint import parse, parse_relay
from mail.settings import Settings
from mail.settings_file import load
from mail.units import parse_duration
from tests.support.containers import compose_spec

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
ONE, THREE = ("compose.yaml",), ("compose.yaml", "compose.three-brokers.yaml")
ROLES = ("ingress", "router", "delivery", "mailstore")
SMTP_LISTEN = "EILPOST_INGRESS__SMTP_LISTEN"

both = pytest.mark.parametrize("files", [ONE, THREE], ids=["one broker", "three brokers"])


def _read(files: tuple[str, ...]) -> dict[str, Any]:
    """The services, merged as far as our files need: mappings by key, volumes by target."""
    services: dict[str, Any] = {}
    for name in files:
        for service, said in yaml.safe_load((DEPLOY / name).read_text())["services"].items():
            there = services.setdefault(service, {})
            for key, value in said.items():
                merged = {**there.get(key, {}), **value} if isinstance(value, dict) else value
                there[key] = merged
    return services


def _default(value: str) -> str:
    """A value with compose's own variables at their defaults."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def _settings(service: dict[str, Any]) -> dict[str, str]:
    """EILPOST_ variables of a service, with compose's own variables at their defaults."""
    return {name: _default(value) for name, value in service["environment"].items() if name.startswith("EILPOST_")}


def _key(variable: str) -> tuple[str, str]:
    section, _, key = variable.removeprefix("EILPOST_").lower().partition("__")
    return section, key


@both
def test_every_variable_is_a_valid_setting(files: tuple[str, ...]) -> None:
    services = _read(files)
    for role in (*ROLES, "topics"):
        variables = _settings(services[role])
        for variable in variables:
            section, key = _key(variable)
            assert key in type(getattr(Settings(), section)).model_fields, variable
        settings = load(None, variables)
        assert settings.log.url.startswith("kafka://")
        assert settings.spool.url.startswith("s3://")


def test_every_command_is_one_of_eilpost() -> None:
    services = _read(ONE)
    for role in (*ROLES, "topics"):
        command: Any = get_command(app)
        for word in services[role]["command"]:
            command = command.commands[word]


def test_all_roles_have_the_same_settings() -> None:
    for files in (ONE, THREE):
        services = _read(files)
        assert len({tuple(sorted(_settings(services[role]).items())) for role in (*ROLES, "topics")}) == 1


@both
def test_services_connect_to_existing_ports(files: tuple[str, ...]) -> None:
    services = _read(files)
    variables = _settings(services["router"])
    brokers = [address.rpartition(":") for address in variables["EILPOST_LOG__URL"].removeprefix("kafka://").split(",")]
    assert {host for host, _, _ in brokers} == {name for name in services if name.startswith("kafka-")}
    for host, _, port in brokers:
        kafka = services[host]["environment"]
        assert f"CLIENT://:{port}" in kafka["KAFKA_LISTENERS"].split(",")
        assert f"CLIENT://{host}:{port}" in kafka["KAFKA_ADVERTISED_LISTENERS"].split(",")
        assert f"/{port}" in services[host]["healthcheck"]["test"][-1]

    store = urlsplit(variables["EILPOST_SPOOL__ENDPOINT"])
    assert f"--port :{store.port} " in services[store.hostname]["command"][0]  # type: ignore[index]
    bucket = urlsplit(variables["EILPOST_SPOOL__URL"]).hostname
    assert f"mkdir -p /data/{bucket} " in services["objects"]["command"][0]
    assert services["objects"]["environment"] == {
        "ROOT_ACCESS_KEY": services["router"]["environment"]["EILPOST_SPOOL__ACCESS_KEY"],
        "ROOT_SECRET_KEY": services["router"]["environment"]["EILPOST_SPOOL__SECRET_KEY"],
    }

    sink = urlsplit(variables["EILPOST_DELIVERY__RELAY"])
    assert sink.hostname in services
    assert services["ingress"]["ports"] == [
        f"127.0.0.1:2525-2526:{parse(variables['EILPOST_INGRESS__SMTP_LISTEN'])[1]}"
    ]
    assert services["mailstore"]["ports"] == [f"127.0.0.1:2110:{parse(variables['EILPOST_MAILSTORE__POP3_LISTEN'])[1]}"]
    for role in ROLES:
        assert f":{parse(variables['EILPOST_HTTP__LISTEN'])[1]}/healthz" in services[role]["healthcheck"]["test"][-1]
        assert services[role]["command"] == [role]
        assert services[role]["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
        grace = parse_duration(services[role]["stop_grace_period"])
        assert grace > load(None, {}).node.drain_timeout
    waited_for = set(services["topics"]["depends_on"])
    assert waited_for == {host for host, _, _ in brokers}


def test_load_is_relayed_to_its_sink() -> None:
    load_service = _read(ONE)["load"]
    program, command, *options = load_service["entrypoint"]
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert (program, command, load_service["profiles"]) == ("eilpost", "load", ["load"])
    assert given["--target"] == "ingress:{1}".format(*parse(_settings(_read(ONE)["ingress"])[SMTP_LISTEN]))
    shares = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.3, 0.3))
    workloads = [
        Workload("run", domains=int(given["--domains"]), failing=fail, deferring=defer) for fail, defer in shares
    ]
    addresses = {address for workload in workloads for address in (workload.sender, *map(workload.address, range(50)))}
    domains = {address.rpartition("@")[2] for address in addresses}
    assert len(domains) == 10
    snapshot = parse_directory((DEPLOY / "directory.toml").read_text(), "directory.toml", is_hash)
    sink = parse_relay(f"smtp://load:{parse(given['--sink'])[1]}")
    assert {snapshot.domains[domain].relay_to for domain in domains} == {sink}


def test_router_and_delivery_have_two_processes() -> None:
    services = _read(ONE)
    assert {role: services[role].get("deploy", {}).get("replicas", 1) for role in ROLES} == {
        "ingress": 2,
        "router": 2,
        "delivery": 2,
        "mailstore": 1,
    }


@both
def test_nothing_listens_beyond_loopback(files: tuple[str, ...]) -> None:
    ports = [port for service in _read(files).values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    published = [port.split(":")[1] for port in ports]
    assert len(published) == len(set(published))


def test_three_brokers_keep_three_replicas() -> None:
    services = _read(THREE)
    variables = _settings(services["topics"])
    assert (variables["EILPOST_LOG__REPLICATION"], variables["EILPOST_LOG__DURABILITY"]) == ("3", "safe")
    brokers = {name: service["environment"] for name, service in services.items() if name.startswith("kafka-")}
    assert len(brokers) == 3
    voters = ",".join(f"{kafka['KAFKA_NODE_ID']}@{name}:9093" for name, kafka in brokers.items())
    per_broker = ("KAFKA_NODE_ID", "KAFKA_LISTENERS", "KAFKA_ADVERTISED_LISTENERS")
    for kafka in brokers.values():
        assert kafka["KAFKA_CONTROLLER_QUORUM_VOTERS"] == voters
        assert kafka["KAFKA_DEFAULT_REPLICATION_FACTOR"] == kafka["KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR"] == "3"
        assert kafka["KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR"] == "3"
        assert kafka["KAFKA_MIN_INSYNC_REPLICAS"] == kafka["KAFKA_TRANSACTION_STATE_LOG_MIN_ISR"] == "2"
    assert (
        len({tuple((k, v) for k, v in sorted(kafka.items()) if k not in per_broker) for kafka in brokers.values()}) == 1
    )
    for key in per_broker:
        assert len({kafka[key] for kafka in brokers.values()}) == 3
    # The data of one broker cannot become that of three.
    assert not set(services["kafka-1"]["volumes"]) & set(_read(ONE)["kafka-1"]["volumes"])


@both
@pytest.mark.kafka_cluster
def test_real_kafka_accepts_the_broker_settings(files: tuple[str, ...], tmp_path: Path) -> None:
    for name, service in _read(files).items():
        if not name.startswith("kafka-"):
            continue
        node = Node(1, tmp_path / name, heap="128m")
        environment = {**service["environment"], "KAFKA_LOG_DIRS": str(node.data)}
        identity = environment.pop("CLUSTER_ID")
        del environment["KAFKA_HEAP_OPTS"]
        node.folder.mkdir()
        properties = node.folder / "server.properties"
        # Like the entry point of the image.
        lines = [
            f"{key.removeprefix('KAFKA_').lower().replace('_', '.')}={value}" for key, value in environment.items()
        ]
        properties.write_text("\n".join(lines))
        tool = node.java("kafka.tools.StorageTool", "format", "--cluster-id", identity, "--config", str(properties))
        result = subprocess.run(tool, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout + result.stderr


@both
@pytest.mark.compose
def test_compose_specification_loader_accepts_the_files(files: tuple[str, ...]) -> None:
    model = compose_spec.load(DEPLOY, *files)
    assert set(model["services"]) == set(_read(files))
    for name, service in model["services"].items():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists(), (name, volume)
    variables = model["services"]["router"]["environment"]  # a list after merging two files
    variables = variables if isinstance(variables, dict) else dict(item.split("=", 1) for item in variables)
    assert variables == _settings(_read(files)["router"])


@pytest.mark.compose
def test_loader_refuses_invalid_files(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {a: {image: b, prots: ['1:1']}}")
    with pytest.raises(AssertionError, match="prots"):
        compose_spec.load(tmp_path, "compose.yaml")


def test_versions_equal_those_of_the_tests() -> None:
    services = _read(THREE)
    images = {name: _default(service["image"]) for name, service in services.items()}
    assert all(service["image"].startswith("${") for service in services.values())
    assert {images[name] for name in images if name.startswith("kafka-")} == {f"apache/kafka:{jars.VERSION}"}
    pinned = re.compile(r"[a-z/]+:v?[0-9]+\.[0-9]+(\.[0-9]+)?")
    assert all(pinned.fullmatch(image) for image in images.values() if image != "eilpost:dev")


def test_alice_can_log_in() -> None:
    snapshot = parse_directory((DEPLOY / "directory.toml").read_text(), "directory.toml", is_hash)
    for login in ("alice@example.test", "bob@example.test"):
        user = find_user(snapshot, login)
        assert user is not None
        assert PasswordHasher().verify(user.password, "eilpost-demo")


def test_prometheus_scrapes_every_process_of_every_role() -> None:
    services = _read(ONE)
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    found = {job["job_name"]: job["dns_sd_configs"][0] for job in jobs if "dns_sd_configs" in job}
    assert set(found) == set(ROLES)
    for role, look_up in found.items():
        variables = _settings(services[role])
        assert (look_up["names"], look_up["type"], look_up["port"]) == (
            [role],
            "A",
            parse(variables["EILPOST_HTTP__LISTEN"])[1],
        )
    for job in jobs:
        if job["job_name"] in ROLES:  # target labels of the rules and the dashboards
            labels = {rule["target_label"]: rule.get("replacement") for rule in job["relabel_configs"]}
            assert labels == {"role": None, "namespace": "compose", "tenant": "shared"}
            assert job["honor_labels"] is True
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    address = urlsplit(source["datasources"][0]["url"])
    assert address.hostname in services
    assert services["prometheus"]["ports"] == [f"127.0.0.1:9090:{address.port}"]


def test_grafana_has_the_dashboards_of_the_chart() -> None:
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in _read(ONE)["grafana"]["volumes"]}
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/eilpost.yaml").read_text())["providers"][0]
    assert mounted[provider["options"]["path"]] == "../helm/files/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "./grafana/provisioning"
