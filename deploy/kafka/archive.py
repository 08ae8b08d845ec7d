"""Java class archive (AppCDS) of a broker, which halves the start time of a node.

Created once per set of jars and Java version, next to the jars, by starting and stopping one broker; that takes some
seconds. A broker also starts without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from pathlib import Path

from deploy.kafka import jars
from deploy.kafka.cluster import Cluster


def prepare() -> Path:
    """Fetch the jars and create the archive, if missing; returns their folder. Raises BrokerError."""
    folder = jars.fetch()
    archive = jars.archive_path()
    if archive.exists():
        return folder
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            _make(archive)
    return folder


def _make(archive: Path) -> None:
    part = archive.with_suffix(".part")
    part.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="eilpost-kafka-") as data:
        cluster = Cluster(1, Path(data), archive=[f"-XX:ArchiveClassesAtExit={part}"])
        try:
            cluster.start()
        finally:
            # Java writes the archive when the broker exits, which takes longer.
            cluster.stop(timeout_seconds=60)
    with contextlib.suppress(FileNotFoundError):
        part.rename(archive)
