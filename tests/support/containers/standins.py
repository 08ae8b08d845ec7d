"""Substitutes for the public images of the compose files, for machines without access to an image registry.

Each contains the program of the public image (Kafka's jars from Maven on this machine's Java, Debian's Prometheus, the
object store built with Go) and takes the configuration in the compose files. The sink counts messages.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.kafka import jars
from tests.support.containers import images
from tests.support.containers.engine import Engine
from tests.support.servers.object_store import VERSITYGW

_HERE = Path(__file__).parent
_NOT_OF_A_RUNTIME = shutil.ignore_patterns("jmods", "src.zip", "man", "docs", "include", "ct.sym", "demo", "legal")
_SIGNALS = "STOPSIGNAL SIGTERM\n"

_KAFKA = """
COPY java /opt/java
COPY libs /opt/kafka/libs
COPY log4j2.xml kafka_entrypoint.py /opt/kafka/
ENV PATH=/opt/java/bin:/usr/local/bin:/usr/bin:/bin
RUN install -d -o 1000 -g 1000 /var/lib/kafka/data
USER 1000
ENTRYPOINT ["python3", "/opt/kafka/kafka_entrypoint.py"]
"""
_OBJECTS = """
COPY versitygw /usr/local/bin/versitygw
ENTRYPOINT ["versitygw"]
"""
_PROMETHEUS = """
COPY prometheus /bin/prometheus
RUN install -d -o 65534 -g 65534 /prometheus
USER 65534
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
"""
_SINK = """
COPY tests /srv/tests
WORKDIR /srv
ENTRYPOINT ["python", "-m", "tests.support.containers.sink"]
"""


def all_images(engine: Engine) -> dict[str, str]:
    """The image variables of the compose files with the names of images in this engine."""
    eilpost = images.image().load_into(engine)
    return {
        "EILPOST_IMAGE": eilpost,
        "KAFKA_IMAGE": kafka(engine),
        "OBJECTS_IMAGE": _built(engine, "objects", _OBJECTS, _put({"versitygw": VERSITYGW.path})),
        "PROMETHEUS_IMAGE": _built(engine, "prometheus", _PROMETHEUS, _put({"prometheus": _program("prometheus")})),
        "SINK_IMAGE": _built(engine, "sink", _SINK, _put_sink, start=eilpost),
    }


def kafka(engine: Engine) -> str:
    """The broker, in the version of the jars."""

    def put(folder: Path) -> None:
        java = _program("java").parents[1]
        # Debian's Java has symbolic links to its configuration in /etc.
        shutil.copytree(java, folder / "java", ignore=_NOT_OF_A_RUNTIME, ignore_dangling_symlinks=True)
        shutil.copytree(jars.fetch(), folder / "libs", ignore=shutil.ignore_patterns("*.jsa"))
        _put({"log4j2.xml": jars.HERE / "log4j2.xml", "kafka_entrypoint.py": _HERE / "kafka_entrypoint.py"})(folder)

    return _built(engine, "kafka", _KAFKA, put)


def _built(engine: Engine, name: str, lines: str, put: Callable[[Path], None], *, start: str = "") -> str:
    """Build an image on the base image, or on `start`, from the files that `put` writes next to the Dockerfile."""
    tag = f"eilpost.test/{name}:test"
    if not engine.has(tag):
        with tempfile.TemporaryDirectory(prefix=f"eilpost-{name}-") as folder:
            put(Path(folder))
            (Path(folder) / "Dockerfile").write_text(f"FROM {start or images.base_image(engine)}\n{_SIGNALS}{lines}")
            engine.build(Path(folder), tag)
    return tag


def _put(files: Mapping[str, Path]) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        for name, source in files.items():
            shutil.copy2(source, folder / name)

    return put


def _put_sink(folder: Path) -> None:
    support = _HERE.parent
    for file in (support / "faults" / "accounting.py", _HERE / "sink.py"):
        copy = folder / "tests/support" / file.relative_to(support)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)


def _program(name: str) -> Path:
    found = shutil.which(name)
    assert found is not None, name  # checked by `why_missing`
    return Path(os.path.realpath(found))
