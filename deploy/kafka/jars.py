"""The jars a broker runs on: fetched once a version by Maven, kept outside the tree, shared by all that start brokers.

They lie in `$EILPOST_KAFKA_JARS`, else in `~/.cache/eilpost/kafka-VERSION`. Any number of processes may ask at the same
time: one fetches, the others wait, and nobody ever sees half a folder.
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
    """Why there is no broker: one paragraph for people."""


def folder() -> Path:
    """Where the jars are or will be."""
    named = os.environ.get("EILPOST_KAFKA_JARS")
    if named:
        return Path(named).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "eilpost" / f"kafka-{VERSION}"


def are_fetched() -> bool:
    """Whether they were fetched."""
    return next(folder().glob("kafka_*.jar"), None) is not None


def archive_path() -> Path:
    """Where the classes a broker loads lie ready for the next start, if they do; `archive.py` makes it.

    It belongs to these jars and this Java, and Java ignores one that does not fit.
    """
    java = hashlib.sha256(_java_version().encode()).hexdigest()[:12]
    return folder() / f"classes-{java}.jsa"


@functools.cache
def _java_version() -> str:
    return subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr


@functools.cache
def why_missing() -> str | None:
    """Why no broker can be started here, for people; None when it can (the jars may still have to be fetched)."""
    if not shutil.which("java"):
        return f"no Java {_OLDEST_JAVA} or newer (apt-get install default-jre-headless maven)"
    said = _java_version()
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < _OLDEST_JAVA:
        return f"Java {_OLDEST_JAVA} or newer is needed, and `java -version` says: {said.strip().splitlines()[:1]}"
    if not are_fetched() and not shutil.which("mvn"):
        return "Kafka's jars are not here and there is no Maven to fetch them (apt-get install maven)"
    return None


def fetch() -> Path:
    """The folder of the jars, filled. Raises BrokerError."""
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
    with tempfile.TemporaryDirectory(prefix=jars.name + ".", dir=jars.parent) as beside:
        part = Path(beside) / "jars"
        # Maven may leave a target/ folder beside the POM it reads: it gets a copy.
        pom = shutil.copy(HERE / "pom.xml", beside)
        command = ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", pom, f"-Dkafka.version={VERSION}"]
        command += ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={part}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not list(part.glob("kafka_*.jar")):
            raise BrokerError(f"Maven could not fetch Kafka {VERSION}: {(done.stdout + done.stderr).strip()[-2000:]}")
        part.rename(jars)
