"""Distribution of the tests over the two worker processes of `make test`.

Files that start brokers, containers or a cluster run one after the other in the first process. Their time
limits assume a nearly idle machine: the second process, which runs all other files at the same time, has low priority.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_MARKERS = re.compile(r"\bmark\.(\w+)")
_EXCLUSIVE = {
    *("kafka", "kafka_cluster", "kafka_tools", "fault"),
    *("kubernetes", "keda", "kube_router", "docker", "docker_compose"),
}
_EXCLUSIVE_GROUP = "exclusive"
_FIRST = "gw0"
_NICENESS = 10


@functools.cache
def group(file: Path) -> str:
    """The name of a file's group: tests of one group run in one process, one after the other."""
    markers = set(_MARKERS.findall(file.read_text(encoding="utf-8"))) if file.is_file() else set()
    return _EXCLUSIVE_GROUP if _EXCLUSIVE & markers else str(file)


class _Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return group(self.config.rootpath / nodeid.split("::")[0])

    def schedule(self) -> None:
        """The first process gets the first group."""
        self.assigned_work = dict(sorted(self.assigned_work.items(), key=lambda work: work[0].gateway.id))
        super().schedule()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Scheduler(config, log)


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: group(item.path) != _EXCLUSIVE_GROUP)
    if items and group(items[0].path) == _EXCLUSIVE_GROUP and config.workerinput["workerid"] != _FIRST:
        os.nice(_NICENESS)
