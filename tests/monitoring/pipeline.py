"""A live pipeline scraped by a real Prometheus: processes of each role on Kafka, a dedicated tenant, and `eilpost up`.

`record` runs it under load and returns the data of Prometheus. Target labels follow docs/monitoring.md. One process
uses TLS with a client certificate, so that there is an expiry time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.kafka.cluster import Cluster
from tests.monitoring.rules import FILES
from tests.monitoring.world import Senders, fetch_mail, outside
from tests.support.servers import kafka
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, directory_toml
from tests.support.servers.kafka_log import make_topics, settings_on
from tests.support.servers.prometheus import Prometheus

USERS = ("alice", "bob", "carol")
LOCAL = ("alice@example.test", "bob@example.test", "carol@example.test", "team@example.test", "wile@acme.test")
DIRECTORY = '[tenants.acme]\nhosting = "dedicated"\n\n[domains."acme.test"]\ntenant = "acme"\n\n' + directory_toml(
    USERS, {"team@example.test": ["alice@example.test", "bob@example.test"]}
).replace("[aliases]", '[users."wile@acme.test"]\n\n[aliases]')


@dataclass(frozen=True)
class Recording:
    """Prometheus data of a finished pipeline: from `begin` to `end`, in seconds since 1970."""

    prometheus: Prometheus
    begin: float
    end: float
    replies: Mapping[str, int]  # SMTP replies to the senders, by first digit


class Fleet:
    """The processes, by pod; `late` ones start under load."""

    def __init__(self, folder: Path, brokers: Cluster, dns: str, remote_port: int) -> None:
        self._folder = folder
        self.log = settings_on(brokers.bootstrap, shards=4, delivery_shards=4)
        secured = brokers.credentials
        assert secured is not None
        tls = {
            "url": f"kafka://{brokers.addresses('tls')}",
            "tls": True,
            "tls_ca": str(secured.ca),
            "tls_cert": str(secured.client_certificate),
            "tls_key": str(secured.client_key),
        }
        self._common: dict[str, dict[str, Any]] = {
            "spool": {"url": f"file:{folder}/spool", "max_inline_size": "8KiB"},
            "directory": {"url": f"file:{folder}/directory.toml"},
            "mailboxes": {"url": f"maildir:{folder}/mail"},
            "resolver": {"servers": [dns]},
            "ingress": {"sender_domain_must_resolve": True},
            "router": {"retry_delays": ["8s", "20s", "40s"]},
            "delivery": {
                "mx_port": remote_port,
                "max_connections_per_site": 3,
                "reconnect_backoff": "5s",
                "connect_timeout": "2s",
            },
        }
        shared = {"url": self.log.url, "prefix": self.log.prefix, "durability": "dev", "replication": 1}
        self.boxes: dict[str, EilpostProcess] = {}
        for pod, more in (
            ("ingress-0", {}),
            ("ingress-1", tls),
            ("router-0", {}),
            ("router-1", {}),
            ("delivery-0", {}),
            ("delivery-1", {}),
            ("mailstore-0", {}),
            ("acme-router-0", {}),
            ("acme-delivery-0", {}),
        ):
            self._add(pod, {**shared, "session_timeout": "6s", **more})
        self.single = EilpostProcess(
            folder / "single",
            {**self._common, **{name: {"url": f"{kind}:{folder}/single/{name}"} for name, kind in
                                (("spool", "file"), ("mailboxes", "maildir"))}},
            directory=DIRECTORY.replace('hosting = "dedicated"', ""),
        )  # fmt: skip
        (folder / "directory.toml").write_text(DIRECTORY)
        self.late = ("router-1", "delivery-1")

    def _add(self, pod: str, log: Mapping[str, Any]) -> None:
        tenant, role = self._place(pod)
        command = (str(EILPOST), role, *(("--tenant", tenant) if tenant != "shared" else ()))
        self.boxes[pod] = EilpostProcess(
            self._folder / pod, {**self._common, "log": dict(log)}, directory=DIRECTORY, command=command
        )

    @staticmethod
    def _place(pod: str) -> tuple[str, str]:
        role = pod.rpartition("-")[0]
        return ("acme", role.removeprefix("acme-")) if role.startswith("acme-") else ("shared", role)

    def targets(self) -> dict[str, dict[str, dict[str, str]]]:
        found: dict[str, dict[str, dict[str, str]]] = {}
        for pod, box in self.boxes.items():
            tenant, role = self._place(pod)
            labels = {"namespace": "mail", "pod": pod, "role": role, "tenant": tenant}
            found.setdefault(role, {})[f"127.0.0.1:{box.http}"] = labels
        labels = {"namespace": "single", "role": "all", "tenant": "shared"}
        return {**found, "single": {f"127.0.0.1:{self.single.http}": labels}}

    async def make_topics(self) -> None:
        await make_topics(self.log)
        await make_topics(self.log.model_copy(update={"prefix": f"{self.log.prefix}acme."}))

    def start(self) -> None:
        boxes = [self.single, *(box for pod, box in self.boxes.items() if pod not in self.late)]
        for box in boxes:
            box.start(wait=False)
        with ThreadPoolExecutor(len(boxes)) as threads:
            list(threads.map(lambda box: box.wait_ready(120), boxes))

    def start_late(self) -> None:
        for pod in self.late:
            self.boxes[pod].start(wait=False)  # Prometheus detects when they are ready

    def restart(self, pod: str) -> None:
        """Restart by SIGTERM."""
        self.boxes[pod].stop(60)
        self.boxes[pod].start(wait=False)

    def kill(self) -> None:
        for box in (self.single, *self.boxes.values()):
            box.kill()

    def write_directory(self, text: str) -> None:
        (self._folder / "directory.toml").write_text(text)


@contextlib.contextmanager
def record(
    folder: Path, *, seconds: float, per_second: float, rules: Sequence[Path] = FILES, outage: bool = False
) -> Iterator[Recording]:
    """Run the pipeline for this long; Prometheus runs until the end of the block. `outage`: stop the broker for some
    seconds in the middle.
    """
    with contextlib.ExitStack() as ending:
        brokers = ending.enter_context(kafka.cluster(1, secure=True))
        running = asyncio.Runner()
        ending.callback(running.close)
        yield running.run(_run(folder, brokers, ending, seconds, per_second, rules, outage))


async def _run(
    folder: Path,
    brokers: Cluster,
    ending: contextlib.ExitStack,
    seconds: float,
    per_second: float,
    rules: Sequence[Path],
    outage: bool,
) -> Recording:
    async with outside() as (dns_server, remote):
        fleet = Fleet(folder, brokers, dns_server.address, remote.port)
        ending.callback(fleet.kill)
        every = "1s" if seconds < 120 else "2s"
        prometheus = Prometheus(folder / "prometheus", fleet.targets(), rules=rules, interval=every)
        await fleet.make_topics()
        await asyncio.to_thread(fleet.start)
        ending.enter_context(prometheus)
        await asyncio.sleep(2)  # first scrape, so that rates include the first event
        begin = time.time()
        stop = asyncio.Event()
        ingresses = [fleet.boxes[pod].mx for pod in ("ingress-0", "ingress-1")]
        many = Senders(ingresses, per_second=per_second, local=LOCAL)
        few = Senders([fleet.single.mx], per_second=per_second / 4, local=LOCAL[:4], seed=3)
        owners = [f"{user}@example.test" for user in USERS]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(many.run(stop))
            tasks.create_task(few.run(stop))
            tasks.create_task(fetch_mail([fleet.boxes["mailstore-0"].pop3, fleet.single.pop3], owners, stop))
            tasks.create_task(_changes(fleet, brokers, seconds, outage))
            await asyncio.sleep(seconds)
            end = time.time()
            stop.set()
        return Recording(prometheus, begin, end, many.answers)


async def _changes(fleet: Fleet, brokers: Cluster, seconds: float, outage: bool) -> None:
    async with asyncio.TaskGroup() as changes:
        changes.create_task(_start_late(fleet, seconds * 0.15))
        changes.create_task(_change_directory(fleet, seconds))
        if outage:
            changes.create_task(_outage(fleet, brokers, seconds))


async def _start_late(fleet: Fleet, after_seconds: float) -> None:
    await asyncio.sleep(after_seconds)
    await asyncio.to_thread(fleet.start_late)


async def _change_directory(fleet: Fleet, seconds: float) -> None:
    """A valid change, then an invalid one that stays until the end."""
    await asyncio.sleep(seconds * 0.3)
    fleet.write_directory(DIRECTORY + "# changed\n")
    # after the last start of a process, because none would start with an invalid file
    await asyncio.sleep(seconds * 0.5)
    fleet.write_directory(DIRECTORY + "[nonsense\n")


async def _outage(fleet: Fleet, brokers: Cluster, seconds: float) -> None:
    """Stop the broker; later restart a delivery process, as a rolling update does."""
    await asyncio.sleep(seconds * 0.45)
    await asyncio.to_thread(brokers.node(1).kill)
    await asyncio.sleep(12)
    await asyncio.to_thread(brokers.restart, 1)
    await asyncio.sleep(seconds * 0.2)
    await asyncio.to_thread(fleet.restart, "delivery-0")
