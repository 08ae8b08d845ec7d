"""Fields and constants of Strimzi's KafkaTopic and KafkaUser classes, read from its API jar.

Strimzi publishes its CustomResourceDefinitions neither in a Maven artifact nor in a Go module. They are generated from
these classes and have the same fields.
"""

from __future__ import annotations

import functools
import struct
import zipfile
from dataclasses import dataclass
from io import BytesIO

from tests.support.maven import Jar

JAR = Jar("strimzi-api", "io.strimzi:api", "0.50.0")
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


@functools.cache
def java_class(name: str) -> JavaClass:
    """A class by its name below `io.strimzi.api.kafka.model`, for example "topic/KafkaTopicSpec"."""
    with zipfile.ZipFile(JAR.path) as jar:
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
