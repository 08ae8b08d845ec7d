"""A cluster of real eilpost processes on a real Kafka, any number of each role, as a user starts them.

Each process has its folder (configuration, output, faults), its ports, and nothing else of its own: topics, spool,
directory and mailboxes are the cluster's. The spool is a volume of files or an object store. `arm` makes a process
stand still at an instant (`faultpoints.py`). Blocking calls; each returns when what it says is so.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from deploy.kafka.cluster import Cluster
from mail.log import LogUnavailable, LogUnusable
from mail.log.kafka.access import CLIENT_ERRORS, make_access
from mail.log.kafka.history import KafkaHistory
from mail.log.topics import partition_key, shard_of
from mail.record import Pending
from mail.route import ToMailbox
from mail.settings import LogSettings
from mailstore.names import parse_name
from tests.support.builders.records import delivery
from tests.support.faults.attempt_ledger import AttemptLedgerReader
from tests.support.faults.points import ATTEMPT_LEDGER, POINTS
from tests.support.faults.volume import Volume
from tests.support.servers.eilpost_process import EilpostProcess, Sections, directory_toml
from tests.support.servers.kafka_log import make_topics, settings_on
from tests.support.servers.object_store import ObjectServer
from tests.support.servers.ports import free_port

ROLES = ("ingress", "router", "delivery", "mailstore")
SESSION_SECONDS = 6  # who is silent for so long loses its shards
IN_FLIGHT = 50  # deliveries a process works on at the same time: the most that one lost process may repeat
INLINE_MAX = 8192  # larger messages go through the spool
HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 9))  # of the sink: so many sites


class Member(EilpostProcess):
    """One process of one role."""

    def __init__(self, name: str, home: Path, settings: Sections, *, directory: str, faulty: bool = True) -> None:
        self.name = name
        self.role = name.partition("-")[0]
        module = ("-m", "tests.support.faults.process") if faulty else ("-m", "eilpost")
        super().__init__(home, settings, directory=directory, command=(sys.executable, *module, self.role))
        self.attempts = AttemptLedgerReader(home / ATTEMPT_LEDGER)  # of a delivery process that can be armed

    def arm(self, point: str, *, least_bytes: int = 0) -> None:
        """The next message to pass `point`, of at least so many bytes, stops the process there."""
        assert point in POINTS[self.role]
        part = self.home / "arming"
        part.write_text(f"{point} {least_bytes}")
        part.rename(self.home / "armed")

    def disarm(self) -> None:
        (self.home / "armed").unlink(missing_ok=True)

    def cut_network(self, seconds: float, *, reset: bool) -> None:
        """As it wakes from the point at which it stands, it has no network to the brokers."""
        (self.home / "cut").write_text(f"{seconds} {'reset' if reset else 'whole'}")

    def hits(self) -> list[dict[str, Any]]:
        """Every time it stood still at a point, of all its lives."""
        path = self.home / "hits"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ready(self) -> bool:
        with suppress(OSError):
            return self.is_running and self.get("/readyz")[0] == 200
        return False


class MailCluster:
    """`counts` of each role; `settings` are sections of eilpost.toml on top of the usual ones. `store` holds the spool,
    which is a volume of files where there is none. `defaults`: time-outs as a user has them, else short ones.
    `faulty`: processes that can be armed.
    """

    def __init__(
        self,
        brokers: Cluster,
        folder: Path,
        *,
        counts: Mapping[str, int] | None = None,
        settings: Sections | None = None,
        users: tuple[str, ...] = ("alice", "bob"),
        store: ObjectServer | None = None,
        faulty: bool = True,
        defaults: bool = False,
    ) -> None:
        self.brokers = brokers
        self.folder = folder
        self.sink_port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.spool: Volume | ObjectServer = store or Volume(folder)
        self._faulty = faulty
        self.session_seconds: float = SESSION_SECONDS
        self._directory = directory_toml(users)
        made = {"shards": 4, "delivery_shards": 8, "durability": "safe", "replication": 3}
        changes = {key: value for key, value in (settings or {}).get("log", {}).items() if key in made}
        self.log = settings_on(brokers.bootstrap, **(made | changes))
        self._sections: dict[str, dict[str, Any]] = {
            "log": {
                "url": self.log.url,
                "prefix": self.log.prefix,
                "session_timeout": f"{SESSION_SECONDS}s",
            },
            "spool": {**self.spool.settings(), "inline_max": f"{INLINE_MAX}B"},
            "directory": {"url": f"file:{folder}/directory.toml"},
            "mailboxes": {"url": f"maildir:{folder}/mail"},
            "router": {"retry": ["1s"]},
            "delivery": {"in_flight": IN_FLIGHT, "port": self.sink_port, "dead_site": "200ms"},
        }
        for name, section in (settings or {}).items():
            self._sections.setdefault(name, {}).update(section)
        if defaults:
            del self._sections["log"]["session_timeout"]
            self._sections["node"] = {"drain": "30s"}
        if "session_timeout" not in self._sections["log"]:
            self.session_seconds = LogSettings().session_timeout.total_seconds()
        (folder / "directory.toml").write_text(self._directory)
        self.members: dict[str, Member] = {}
        for role, count in (counts or dict.fromkeys(ROLES, 2)).items():
            for _ in range(count):
                self.add(role)

    def add(self, role: str) -> Member:
        """One more process of a role, not yet started."""
        name = f"{role}-{sum(name.startswith(role) for name in self.members) + 1}"
        self.members[name] = member = Member(
            name, self.folder / name, self._sections, directory=self._directory, faulty=self._faulty
        )
        return member

    def members_of(self, role: str) -> list[Member]:
        return [member for member in self.members.values() if member.role == role]

    def make_topics(self) -> None:
        asyncio.run(make_topics(self.log))

    def start(self, names: Iterable[str] | None = None) -> None:
        """Start all that do not run, at the same time, and wait until each is ready."""
        members = [self.members[name] for name in names or self.members]
        for member in members:
            member.thaw()
            member.disarm()
            if not member.is_running:
                member.start(wait=False)
        with ThreadPoolExecutor(len(members)) as threads:
            list(threads.map(lambda member: member.wait_ready(60), members))

    def wait_for_owners(self, deadline_seconds: float = 60.0) -> None:
        """Wait until every shard has its one owner: a broker's first minutes are slow."""
        end = time.monotonic() + deadline_seconds
        while not self._is_settled():
            if time.monotonic() > end:
                raise AssertionError(f"shards without owners: {self.owners('router')} {self.owners('delivery')}")
            time.sleep(0.2)

    def _is_settled(self) -> bool:
        return self.has_owners("router", self.log.shards) and self.has_owners("delivery", self.log.delivery_shards)

    def has_owners(self, role: str, shards: int) -> bool:
        """Whether each shard has one, and each process has a shard."""
        owned = self.owners(role)
        numbers = sorted(number for numbers in owned.values() for number in numbers)
        return numbers == list(range(shards)) and all(owned.values())

    def stop(self) -> None:
        """SIGKILL to all: nobody looks at them again."""
        for member in self.members.values():
            member.kill()

    def deliveries_in_mailbox(self, user: str) -> Counter[str]:
        """How many messages of a mailbox each delivery made, from the files' names."""
        return Counter(parse_name(path.name).delivery_id or path.name for path in self.mailbox_files(user))

    def mailbox_files(self, user: str) -> Iterator[Path]:
        """The files of a mailbox."""
        for path in (self.folder / "mail").glob(f"*/{user}/*/*"):
            if path.parent.name in ("new", "cur"):
                yield path

    def owners(self, role: str) -> dict[str, list[int]]:
        """The shards each running process of a role was last given, by its own log."""
        owned: dict[str, list[int]] = {}
        for member in self.members_of(role):
            if member.is_running:
                told = [line for line in member.output_since_start().splitlines() if '"shards assigned"' in line]
                owned[member.name] = json.loads(told[-1])["shards"] if told else []
        return owned

    def mailbox_owner(self, user: str) -> Member:
        """The delivery process that keeps a user's mail."""
        mail = delivery(route=ToMailbox(f"{user}@example.test"))
        shard = shard_of(partition_key(mail), self.log.delivery_shards)
        return next(self.members[name] for name, shards in self.owners("delivery").items() if shard in shards)

    def metric(self, role: str, name: str, **labels: str) -> float:
        """Summed over the processes of a role that answer."""
        total = 0.0
        for member in self.members_of(role):
            with suppress(OSError):
                if member.is_running and not member.is_frozen:
                    total += member.metric(name, **labels)
        return total

    def outputs(self) -> Mapping[str, str]:
        return {name: member.output() for name, member in self.members.items()}

    async def pending_deliveries(self) -> list[Pending]:
        """What is queued, as `eilpost queue` reads it."""
        for _ in range(10):
            with suppress(LogUnavailable, LogUnusable):
                return [line async for line in KafkaHistory(self.log).pending_deliveries()]
            await asyncio.sleep(1)
        raise AssertionError("the queue cannot be read")

    async def coordinator(self, role: str) -> int:
        """The number of the broker that coordinates the group of a role."""
        access = make_access(self.log)
        admin = AIOKafkaAdminClient(**access.client_options(5.0))
        await admin.start()
        try:
            return int(await admin.find_coordinator(access.group(role)))
        finally:
            await admin.close()

    async def in_sync(self, deadline_seconds: float = 60.0) -> float:
        """Wait until every replica of every partition is in sync again; the seconds it took."""
        began = time.monotonic()
        while time.monotonic() < began + deadline_seconds:
            with suppress(*CLIENT_ERRORS, AttributeError):
                admin = AIOKafkaAdminClient(**make_access(self.log).client_options(5.0))
                try:
                    await admin.start()
                    topics = await admin.describe_topics()
                finally:
                    await admin.close()
                behind = Counter(
                    topic["topic"]
                    for topic in topics
                    for each in topic["partitions"]
                    if len(each["isr"]) < len(each["replicas"]) or each["leader"] < 0
                )
                if topics and not behind:
                    return time.monotonic() - began
            await asyncio.sleep(0.3)
        raise AssertionError(f"replicas did not come back in sync within {deadline_seconds:.0f} s")
