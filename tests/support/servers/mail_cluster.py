"""A cluster of real eilpost processes on a real Kafka, with any number of processes of each role.

Each process has its own folder (configuration, output, faults) and ports; topics, spool, directory and mailboxes are
shared. `arm` stops a process at a fault point (`faults/points.py`).
Blocking calls; each returns when its effect is visible.
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
from mail.record import QueueEntry
from mail.route import ToMailbox
from mail.settings import LogSettings
from mailstore.maildir.names import parse_name
from tests.support.builders.records import delivery
from tests.support.faults.attempt_ledger import AttemptLedgerReader
from tests.support.faults.points import ATTEMPT_LEDGER, POINTS
from tests.support.faults.volume import Volume
from tests.support.servers.eilpost_process import EilpostProcess, Sections, directory_toml
from tests.support.servers.kafka_log import make_topics, settings_on
from tests.support.servers.object_store import ObjectServer
from tests.support.servers.ports import block_until, free_port

ROLES = ("ingress", "router", "delivery", "mailstore")
SESSION_SECONDS = 6  # a process without heartbeats for this long loses its shards
IN_FLIGHT = 50  # concurrent deliveries of a process: the most that its loss can duplicate
INLINE_MAX = 8192  # larger messages go through the spool
HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 9))  # of the sink: one site each


class Member(EilpostProcess):
    """One process of one role."""

    def __init__(self, name: str, home: Path, settings: Sections, *, directory: str, faulty: bool = True) -> None:
        self.name = name
        self.role = name.partition("-")[0]
        module = ("-m", "tests.support.faults.process") if faulty else ("-m", "eilpost")
        super().__init__(home, settings, directory=directory, command=(sys.executable, *module, self.role))
        self.attempts = AttemptLedgerReader(home / ATTEMPT_LEDGER)  # of a delivery process with fault points

    def arm(self, point: str, *, least_bytes: int = 0) -> None:
        """Stop the process when the next message of at least `size_bytes` reaches `point`."""
        assert point in POINTS[self.role]
        part = self.home / "arming"
        part.write_text(f"{point} {least_bytes}")
        part.rename(self.home / "armed")

    def disarm(self) -> None:
        (self.home / "armed").unlink(missing_ok=True)

    def cut_network(self, seconds: float, *, reset: bool) -> None:
        """Cut its network to the brokers when it resumes from its fault point."""
        (self.home / "cut").write_text(f"{seconds} {'reset' if reset else 'whole'}")

    def hits(self) -> list[dict[str, Any]]:
        """Every hit of a fault point, over all starts."""
        path = self.home / "hits"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ready(self) -> bool:
        with suppress(OSError):
            return self.is_running and self.get("/readyz")[0] == 200
        return False


class MailCluster:
    """`counts`: processes of each role; `settings`: sections of eilpost.toml on top of the tests' defaults.

    `store` is the spool's object store; without it the spool is a volume of files. `defaults`: default time-outs
    instead of short ones. `faulty`: processes have fault points.
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
            "spool": {**self.spool.settings(), "max_inline_size": f"{INLINE_MAX}B"},
            "directory": {"url": f"file:{folder}/directory.toml"},
            "mailboxes": {"url": f"maildir:{folder}/mail"},
            "router": {"retry_delays": ["1s"]},
            "delivery": {
                "max_in_flight_deliveries": IN_FLIGHT,
                "mx_port": self.sink_port,
                "reconnect_backoff": "200ms",
            },
        }
        for name, section in (settings or {}).items():
            self._sections.setdefault(name, {}).update(section)
        if defaults:
            del self._sections["log"]["session_timeout"]
            self._sections["node"] = {"drain_timeout": "30s"}
        if "session_timeout" not in self._sections["log"]:
            self.session_seconds = LogSettings().session_timeout.total_seconds()
        (folder / "directory.toml").write_text(self._directory)
        (folder / "directory.toml").chmod(0o600)  # it has password hashes
        self.members: dict[str, Member] = {}
        for role, count in (counts or dict.fromkeys(ROLES, 2)).items():
            for _ in range(count):
                self.add(role)

    def add(self, role: str) -> Member:
        """Add a process of a role without starting it."""
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
        """Start all stopped processes at once and wait until each is ready."""
        members = [self.members[name] for name in names or self.members]
        for member in members:
            member.thaw()
            member.disarm()
            if not member.is_running:
                member.start(wait=False)
        with ThreadPoolExecutor(len(members)) as threads:
            list(threads.map(lambda member: member.wait_ready(60), members))

    def wait_for_owners(self, deadline_seconds: float = 60.0) -> None:
        """Wait until every shard has one owner; slow in a broker's first minutes."""
        block_until(
            self._is_settled,
            deadline_seconds=deadline_seconds,
            poll_seconds=0.2,
            what=lambda: f"an owner for each shard: {self.owners('router')} {self.owners('delivery')}",
        )

    def _is_settled(self) -> bool:
        return self.has_owners("router", self.log.shards) and self.has_owners("delivery", self.log.delivery_shards)

    def has_owners(self, role: str, shards: int) -> bool:
        """Whether each shard has an owner and each process has a shard."""
        owned = self.owners(role)
        numbers = sorted(number for numbers in owned.values() for number in numbers)
        return numbers == list(range(shards)) and all(owned.values())

    def stop(self) -> None:
        """SIGKILL to all."""
        for member in self.members.values():
            member.kill()

    def deliveries_in_mailbox(self, user: str) -> Counter[str]:
        """Messages of a mailbox by delivery id, from the file names."""
        return Counter(parse_name(path.name).delivery_id or path.name for path in self.mailbox_files(user))

    def mailbox_files(self, user: str) -> Iterator[Path]:
        """The files of a mailbox."""
        for path in (self.folder / "mail").glob(f"*/{user}/*/*"):
            if path.parent.name in ("new", "cur"):
                yield path

    def owners(self, role: str) -> dict[str, list[int]]:
        """The last assigned shards of each running process of a role, from its log."""
        owned: dict[str, list[int]] = {}
        for member in self.members_of(role):
            if member.is_running:
                assignments = [line for line in member.output_since_start().splitlines() if '"shards assigned"' in line]
                owned[member.name] = json.loads(assignments[-1])["shards"] if assignments else []
        return owned

    def mailbox_owner(self, user: str) -> Member:
        """The delivery process that delivers to a user's mailbox."""
        mail = delivery(route=ToMailbox(f"{user}@example.test"))
        shard = shard_of(partition_key(mail), self.log.delivery_shards)
        return next(self.members[name] for name, shards in self.owners("delivery").items() if shard in shards)

    def metric(self, role: str, name: str, **labels: str) -> float:
        """Sum over the responding processes of a role."""
        total = 0.0
        for member in self.members_of(role):
            with suppress(OSError):
                if member.is_running and not member.is_frozen:
                    total += member.metric(name, **labels)
        return total

    def outputs(self) -> Mapping[str, str]:
        return {name: member.output() for name, member in self.members.items()}

    async def queue_entries(self) -> list[QueueEntry]:
        """The queue, read as by `eilpost queue`."""
        for _ in range(10):
            with suppress(LogUnavailable, LogUnusable):
                return [entry async for entry in KafkaHistory(self.log).queue_entries()]
            await asyncio.sleep(1)
        raise AssertionError("the queue cannot be read")

    async def coordinator(self, role: str) -> int:
        """The number of the broker that coordinates a role's group."""
        access = make_access(self.log)
        admin = AIOKafkaAdminClient(**access.client_options(5.0))
        await admin.start()
        try:
            return int(await admin.find_coordinator(access.group(role)))
        finally:
            await admin.close()

    async def in_sync(self, deadline_seconds: float = 60.0) -> float:
        """Wait until every replica of every partition is in sync; returns the seconds."""
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
