"""Fields and constants of Strimzi's KafkaTopic and KafkaUser classes, read from its API jar.

Strimzi publishes its CustomResourceDefinitions neither in a Maven artifact nor in a Go module. They are generated from
these classes and have the same fields.
"""

from __future__ import annotations

import fcntl
import functools
import shutil
import struct
import subprocess
import zipfile
from dataclasses import dataclass
from io import BytesIO

from tests.support.golang import BIN

VERSION = "0.50.0"
JAR = BIN.parent / f"strimzi-api-{VERSION}.jar"
_PACKAGE = "io/strimzi/api/kafka/model/"
# Length by tag of a constant pool entry (JVM specification section 4.4); Utf8 has a length field.
_ENTRY_BYTES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4, 19: 2, 20: 2}
_UTF8, _LONG, _DOUBLE, _CLASS, _STRING = 1, 5, 6, 7, 8


@dataclass(frozen=True, slots=True)
class JavaClass:
    """`fields`: names of its own fields; `constants`: the strings that it uses."""

    fields: frozenset[str]
    constants: frozenset[str]
    parent: str


_failures: list[str] = []


def why_missing() -> str | None:
    if JAR.exists():
        return None
    if _failures:
        return _failures[0]
    return None if shutil.which("mvn") else "there is no Maven to fetch Strimzi's API with (apt-get install maven)"


def prepare() -> None:
    """Fetch the jar if it is missing. After a failure `why_missing` returns the reason."""
    if why_missing() is not None:
        return
    JAR.parent.mkdir(parents=True, exist_ok=True)
    with JAR.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if JAR.exists():
            return
        folder = JAR.with_suffix(".part")
        command = [
            *("mvn", "--quiet", "--batch-mode", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"),
            *(f"-Dartifact=io.strimzi:api:{VERSION}", f"-DoutputDirectory={folder}"),
        ]
        try:
            subprocess.run(command, check=True, timeout=300, cwd=JAR.parent, capture_output=True)
        except subprocess.SubprocessError as error:
            _failures.append(f"Maven could not fetch io.strimzi:api:{VERSION}: {error}")
            return
        (fetched,) = folder.glob("*.jar")
        fetched.rename(JAR)
        folder.rmdir()


@functools.cache
def java_class(name: str) -> JavaClass:
    """A class by its name below `io.strimzi.api.kafka.model`, for example "topic/KafkaTopicSpec"."""
    with zipfile.ZipFile(JAR) as jar:
        return _parse(BytesIO(jar.read(f"{_PACKAGE}{name}.class")))


def fields_of(name: str) -> frozenset[str]:
    """The fields of a class and of the Strimzi classes that it extends."""
    found = java_class(name)
    inherited = fields_of(found.parent.removeprefix(_PACKAGE)) if found.parent.startswith(_PACKAGE) else frozenset()
    return (found.fields | inherited) - {"additionalProperties"}


def _parse(file: BytesIO) -> JavaClass:
    """JVM specification section 4.1, up to the fields."""

    def number(layout: str) -> int:
        (value,) = struct.unpack(f">{layout}", file.read(struct.calcsize(f">{layout}")))
        return int(value)

    file.seek(8)
    texts: dict[int, str] = {}
    references: dict[int, tuple[int, int]] = {}
    index, count = 1, number("H")
    while index < count:
        tag = number("B")
        if tag == _UTF8:
            texts[index] = file.read(number("H")).decode("utf-8", "replace")
        elif tag in (_CLASS, _STRING):
            references[index] = tag, number("H")
        else:
            file.read(_ENTRY_BYTES[tag])
        index += 2 if tag in (_LONG, _DOUBLE) else 1
    file.read(4)  # access flags, this class
    parent = texts[references[number("H")][1]]
    file.read(2 * number("H"))  # interfaces
    fields = set()
    for _ in range(number("H")):
        file.read(2)
        fields.add(texts[number("H")])
        file.read(2)
        for _ in range(number("H")):
            file.read(2)
            file.read(number("I"))
    strings = {texts[at] for tag, at in references.values() if tag == _STRING}
    return JavaClass(frozenset(fields), frozenset(strings), parent)
