"""Kafka's command-line tools for the commands of the pages, as scripts that use the broker's jars."""

from __future__ import annotations

from pathlib import Path

from deploy.kafka import jars
from deploy.kafka.cluster import prepare_jars
from tests.support.maven import Jar

JAR = Jar("kafka-tools", "org.apache.kafka:kafka-tools", jars.VERSION)
_CLASSES = {
    "kafka-console-consumer.sh": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "kafka-consumer-groups.sh": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
}


def why_missing() -> str | None:
    return jars.why_missing() or JAR.why_missing()


def prepare() -> None:
    if jars.why_missing() is None:
        prepare_jars()
        JAR.prepare()


def write_scripts(folder: Path) -> None:
    """Write the scripts, which Kafka's distribution has in `bin`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = ":".join(map(str, [JAR.path, *sorted(jars.folder().glob("*.jar"))]))
    for name, main in _CLASSES.items():
        script = folder / name
        script.write_text(
            f'#!/bin/sh\nexec java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "{path}" {main} "$@"\n'
        )
        script.chmod(0o755)
