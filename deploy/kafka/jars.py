"""Jars of a broker, fetched once per version by Maven and shared by all clusters of this machine.

They are stored in `$EILPOST_KAFKA_JARS`, else in `~/.cache/eilpost/kafka-VERSION`. With concurrent callers, one process
fetches while the others wait, and no process sees an incomplete folder.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSION = os.environ.get("EILPOST_KAFKA_VERSION", "4.3.1")
_OLDEST_JAVA = 17


class BrokerError(Exception):
    """No broker can run; the text is one paragraph for people."""


def folder() -> Path:
    """The folder of the jars, whether it exists or not."""
    named = os.environ.get("EILPOST_KAFKA_JARS")
    if named:
        return Path(named).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "eilpost" / f"kafka-{VERSION}"


def are_fetched() -> bool:
    """Whether the jars are complete."""
    return next(folder().glob("kafka_*.jar"), None) is not None


def archive_path() -> Path:
    """Path of the class archive for these jars and this Java, which `prepare_jars` of cluster.py creates.

    Java ignores an archive that does not match.
    """
    java = hashlib.sha256(_java_version().encode()).hexdigest()[:12]
    return folder() / f"classes-{java}.jsa"


@functools.cache
def _java_version() -> str:
    return subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr


@functools.cache
def why_missing() -> str | None:
    """Why no broker can be started here; None when one can (the jars may still have to be fetched)."""
    if not shutil.which("java"):
        return f"no Java {_OLDEST_JAVA} or newer (apt-get install default-jre-headless maven)"
    output = _java_version()
    version = re.search(r'version "(\d+)', output)
    if version is None or int(version[1]) < _OLDEST_JAVA:
        return f"Java {_OLDEST_JAVA} or newer is needed, but `java -version` prints: {output.strip().splitlines()[:1]}"
    if not are_fetched() and not shutil.which("mvn"):
        return "Kafka's jars are missing, and Maven is not installed (apt-get install maven)"
    return None


def fetch() -> Path:
    """Fetch the jars if they are missing; returns their folder. Raises BrokerError."""
    jars = folder()
    if are_fetched():
        return jars
    missing = why_missing()
    if missing:
        raise BrokerError(missing)
    jars.parent.mkdir(parents=True, exist_ok=True)
    with jars.with_name(jars.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not are_fetched():
            _fetch_into(jars)
    return jars


def _fetch_into(jars: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=jars.name + ".", dir=jars.parent) as temporary:
        part = Path(temporary) / "jars"
        # Maven may create a target/ folder next to the POM, so it gets a copy.
        pom = shutil.copy(HERE / "pom.xml", temporary)
        command = ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", pom, f"-Dkafka.version={VERSION}"]
        command += ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={part}"]
        maven = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if maven.returncode != 0 or not list(part.glob("kafka_*.jar")):
            raise BrokerError(f"Maven could not fetch Kafka {VERSION}: {(maven.stdout + maven.stderr).strip()[-2000:]}")
        part.rename(jars)
