"""Journey 31: `docker compose up` with the files in deploy/, with the commands of docs/install.md.

The public images are replaced by substitutes (`tests/support/containers/standins.py`), Grafana is not started, and the
ports are free ones; everything else is as in the files.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.support.containers import standins
from tests.support.containers.compose import Project
from tests.support.containers.engine import Engine
from tests.support.faults.accounting import AccountedMessage, Source
from tests.support.servers.ports import block_until, free_port, wait_until

pytestmark = [
    pytest.mark.docker,
    pytest.mark.docker_compose,
    pytest.mark.objects,
    pytest.mark.kafka_cluster,
    pytest.mark.prometheus,
    pytest.mark.timeout(400),
]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COUNT = """
import poplib
box = poplib.POP3('127.0.0.1', 2110)
box.user('alice@example.test'); box.pass_('eilpost-demo')
print(box.stat()[0])"""  # as in docs/install.md
ROLES = {"ingress": 2, "router": 2, "delivery": 2, "mailstore": 1}


class Reset(list[str]):
    """A list that replaces the one of an earlier file (`!override`)."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(Reset, lambda dumper, data: dumper.represent_sequence("!override", list(data)))


@dataclass(frozen=True, slots=True)
class Running:
    project: Project
    smtp: tuple[int, int]
    sink: int
    prometheus: int

    def arrived(self) -> dict[str, int]:
        """Messages at the sink: copies by id."""
        return {id_: copies for id_, _, copies in _get(self.sink, "/")}

    def in_mailbox(self) -> int:
        return int(self.project.run("exec", "-T", "mailstore", "python", "-c", COUNT))

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Result of a Prometheus query: labels and value of each series."""
        answer = _get(self.prometheus, f"/api/v1/query?query={quote(expression)}")
        return list(answer["data"]["result"])

    def number(self, expression: str) -> float:
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else 0.0


def _get(port: int, path: str) -> Any:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())


def _two_ports() -> int:
    """The first of two consecutive free ports."""
    while True:
        first = free_port()
        with socket.socket() as second:
            try:
                second.bind(("127.0.0.1", first + 1))
            except OSError:
                continue
            return first


def _until(holds: Callable[[], bool], project: Project, *, seconds: float = 120) -> None:
    def state() -> str:
        states = {one["Name"]: one["Status"] for one in project.containers()}
        return f"{states}\n{project.run('logs', '--tail=8')[-6000:]}"

    block_until(holds, deadline_seconds=seconds, poll_seconds=0.5, what=state)


@contextmanager
def up(engine: Engine, images: Mapping[str, str], folder: Path, *files: str) -> Iterator[Running]:
    smtp, sink, prometheus = _two_ports(), free_port(), free_port()
    ports = {
        "ingress": [f"127.0.0.1:{smtp}-{smtp + 1}:2525"],
        "mailstore": [],
        "sink": [f"127.0.0.1:{sink}:8025"],
        "prometheus": [f"127.0.0.1:{prometheus}:9090"],
        **{f"kafka-{number}": [] for number in range(1, 4 if len(files) > 1 else 2)},
    }
    services: dict[str, Any] = {name: {"ports": Reset(there)} for name, there in ports.items()}
    services["grafana"] = {"profiles": ["not here"]}
    over = folder / "ports.yaml"
    over.write_text(yaml.dump({"services": services}, Dumper=_Dumper))
    name = f"eilpost-{len(files)}"
    with Project(engine, name, [*(DEPLOY / file for file in files), over], images) as project:
        project.run("up", "--detach", "--no-build", "--pull=never", timeout=240)
        running = Running(project, (smtp, smtp + 1), sink, prometheus)
        _until(lambda: _all_healthy(project), project)
        yield running


def _all_healthy(project: Project) -> bool:
    serving = [one for one in project.containers() if one["Service"] in ROLES]
    rest = [one for one in project.containers() if one["Service"] in ("sink", "prometheus")]
    assert all(one["State"] == "running" for one in rest), project.run("logs", "sink", "prometheus")
    return len(serving) == 7 and all(one["Health"] == "healthy" for one in serving)


def _postings(name: str, count: int, recipient: str) -> list[AccountedMessage]:
    return [AccountedMessage(f"{name}-{number}", "somebody@source.test", (recipient,)) for number in range(count)]


@pytest.fixture(scope="module")
def images(docker_engine: Engine) -> dict[str, str]:
    return standins.all_images(docker_engine)


async def test_mail_flows_and_a_router_is_added(docker_engine: Engine, images: dict[str, str], tmp_path: Path) -> None:
    with up(docker_engine, images, tmp_path, "compose.yaml") as running:
        project = running.project
        topics = next(one for one in project.containers() if one["Service"] == "topics")
        assert (topics["State"], topics["ExitCode"]) == ("exited", 0)

        sources = [Source(port, sessions=4) for port in running.smtp]
        large = [AccountedMessage("large", "somebody@source.test", ("outside@example.test",), size_bytes=3_000_000)]
        await asyncio.gather(
            sources[0].send(_postings("out", 40, "outside@example.test") + large),
            sources[1].send(_postings("in", 40, "alice@example.test")),
        )
        assert (len(sources[0].promised), len(sources[1].promised)) == (41, 40)
        _until(lambda: running.arrived().keys() == sources[0].promised.keys(), project)
        _until(lambda: running.in_mailbox() == 40, project)

        project.run("up", "--detach", "--no-build", "--pull=never", "--no-recreate", "--scale=router=3")
        owned = 'eilpost_shards_owned{role="router"}'
        _until(lambda: running.number(f"sum({owned}) and count({owned} > 0) == 3") == 12, project)
        await sources[0].send(_postings("more", 40, "outside@example.test"))
        _until(lambda: running.arrived().keys() == sources[0].promised.keys(), project)

        load = ("run", "--rm", "--use-aliases", "--no-TTY", "load")
        result = json.loads(project.run(*load, "--messages", "100", "--failing", "10%", "--json"))
        assert (result["accepted"], result["lost"]) == (100, 0)
        assert result["delivered"] > 50

        targets = running.query('up{job!="prometheus"} == 1')
        found = {(one["metric"]["role"], one["metric"]["tenant"], one["metric"]["namespace"]) for one in targets}
        assert found == {(role, "shared", "compose") for role in ROLES}
        assert len(targets) == sum(ROLES.values()) + 1
        groups = _get(running.prometheus, "/api/v1/rules")["data"]["groups"]
        assert all(rule["health"] != "err" for group in groups for rule in group["rules"]), groups
        assert len(groups) >= len(list((DEPLOY.parent / "helm/files/rules").glob("*.yaml")))


async def test_loss_of_one_of_three_brokers_loses_nothing(
    docker_engine: Engine, images: dict[str, str], tmp_path: Path
) -> None:
    with up(docker_engine, images, tmp_path, "compose.yaml", "compose.three-brokers.yaml") as running:
        source = Source(running.smtp[0], sessions=8)
        sending = asyncio.create_task(
            # 20 s plus the time of the outage
            source.send(_postings("kept", 600, "outside@example.test"), per_second=30)
        )
        async with asyncio.timeout(240):
            await wait_until(lambda: len(source.promised) >= 150, deadline_seconds=120, what="the first 150 messages")
            await asyncio.to_thread(running.project.run, "kill", "kafka-2")
            before = len(source.promised)
            await sending
        assert before < len(source.promised)
        states = {one["Service"]: one["State"] for one in running.project.containers()}
        assert states["kafka-2"] == "exited"
        _until(lambda: source.promised.keys() <= running.arrived().keys(), running.project)
        arrived = running.arrived()
        assert arrived.keys() <= source.promised.keys() | source.unknown.keys()
        print(f"accepted {len(source.promised)}, lost 0, copies {sum(arrived.values()) - len(arrived)}")
