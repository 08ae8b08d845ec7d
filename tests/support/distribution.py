"""Distribution of the tests over the two worker processes of `make test`.

Files of tests without real parts come first, in both processes. Files that start servers, brokers, containers or a
cluster, whose time limits assume an idle machine, follow one after the other in one of them.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_MARKERS = re.compile(r"\bmark\.(\w+)")
_EXCLUSIVE = {
    *("kafka", "kafka_cluster", "kafka_tools", "fault", "slow", "postfix", "swaks", "objects", "prometheus"),
    *("kubernetes", "keda", "kube_router", "docker", "docker_compose", "ordinary_user"),
}
_EXCLUSIVE_GROUP = "exclusive"


@functools.cache
def group(file: Path) -> str:
    """The name of a file's group: tests of one group run in one process, one after the other."""
    markers = set(_MARKERS.findall(file.read_text(encoding="utf-8"))) if file.is_file() else set()
    return _EXCLUSIVE_GROUP if _EXCLUSIVE & markers or "journeys" in file.parts else str(file)


class _Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return group(self.config.rootpath / nodeid.split("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Scheduler(config, log)


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if items and hasattr(items[0].config, "workerinput"):
        items.sort(key=lambda item: group(item.path) == _EXCLUSIVE_GROUP)
