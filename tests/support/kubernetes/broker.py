"""Apache Kafka next to the test cluster, in its network: clients connect to `HOST`, pods also through a Service.

Started as a script in the cluster's namespaces with a folder as its argument; the file `ready` appears there when the
broker is ready. It ends with the namespaces.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from deploy.kafka.cluster import Cluster
from tests.support.kubernetes.configuration import HOST

PORT = 9092
_LISTENERS = {
    "listeners": f"PLAINTEXT://0.0.0.0:{PORT},CONTROLLER://127.0.0.1:{PORT + 100}",
    "advertised.listeners": f"PLAINTEXT://{HOST}:{PORT}",
}


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", __name__, str(folder)]


def ready(folder: Path) -> bool:
    return (folder / "ready").exists()


if __name__ == "__main__":
    home = Path(sys.argv[1])
    Cluster(1, home, base_port=PORT, settings=_LISTENERS).start()
    (home / "ready").touch()
    signal.pause()
