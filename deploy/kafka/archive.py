"""The classes of a broker, loaded and verified once: with this archive (Java's AppCDS) a node starts in half the time.

Made once for the jars and the Java, beside the jars, by starting one broker and ending it; that takes some seconds.
A broker starts without it just as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from pathlib import Path

from deploy.kafka import jars
from deploy.kafka.cluster import Cluster


def prepare() -> Path:
    """All that is needed once and takes long: the jars and the archive. The folder of both. Raises BrokerError."""
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
            # It is written when the broker ends, which takes that much longer.
            cluster.stop(timeout_seconds=60)
    with contextlib.suppress(FileNotFoundError):
        part.rename(archive)
