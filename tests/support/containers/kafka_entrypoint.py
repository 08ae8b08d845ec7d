"""Entry point of the substitute for the image `apache/kafka`; takes the same environment variables.

`KAFKA_A_B` is the property `a.b` (`__` stands for `_`, `___` for `-`), CLUSTER_ID formats the data folder at the first
start, and KAFKA_HEAP_OPTS goes to Java. Standard library only.
"""

import os
import subprocess
from pathlib import Path

CONFIGURATION = Path("/tmp/server.properties")
NOT_PROPERTIES = ("KAFKA_HEAP_OPTS", "KAFKA_OPTS")
JAVA = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
LOGGING = "-Dlog4j2.configurationFile=/opt/kafka/log4j2.xml"


def key(variable: str) -> str:
    """The property name for a variable."""
    name = variable.removeprefix("KAFKA_").lower()
    return name.replace("___", "-").replace("__", "\0").replace("_", ".").replace("\0", "_")


def main() -> None:
    settings = {key(name): value for name, value in os.environ.items() if name.startswith("KAFKA_")}
    for name in NOT_PROPERTIES:
        settings.pop(key(name), None)
    CONFIGURATION.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    options = f"{os.environ.get('KAFKA_HEAP_OPTS', '')} {os.environ.get('KAFKA_OPTS', '')}".split()
    java = [*JAVA, *options, LOGGING, "-cp", "/opt/kafka/libs/*"]
    storage = ["kafka.tools.StorageTool", "format", "--ignore-formatted"]
    storage += ["--cluster-id", os.environ.get("CLUSTER_ID", "5L6g3nShT-eMCtK--X86sw"), "--config", str(CONFIGURATION)]
    subprocess.run([*java, *storage], check=True)
    os.execvp(java[0], [*java, "kafka.Kafka", str(CONFIGURATION)])


if __name__ == "__main__":
    main()
