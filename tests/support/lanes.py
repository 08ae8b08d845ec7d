"""Distribution of the tests over the two worker processes of `make test`.

Test files that use containers or Kubernetes run in one process, which owns the engine and the cluster; files that kill
processes under load or start several brokers run one after the other. Tests of one file stay together.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_MARKERS = re.compile(r"\bmark\.(\w+)")
# A free process takes the lanes in this order, the longest first, and then the other files.
_LANES = {
    "cluster": {"kubernetes", "keda", "kube_router", "docker", "docker_compose"},
    "faults": {"fault", "kafka_cluster"},
}


@functools.cache
def lane(file: Path) -> str:
    """The name of a file's lane: tests of one lane never run at the same time."""
    markers = set(_MARKERS.findall(file.read_text(encoding="utf-8"))) if file.is_file() else set()
    return next((name for name, members in _LANES.items() if members & markers), str(file))


class _Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return lane(self.config.rootpath / nodeid.split("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Scheduler(config, log)


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if items and hasattr(items[0].config, "workerinput"):
        order = [*_LANES]
        items.sort(key=lambda item: order.index(name) if (name := lane(item.path)) in order else len(order))
