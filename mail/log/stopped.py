"""Registry of this process's shards that stopped and need an operator, with the reasons.

The count is a metric, and /readyz shows the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence

from mail.telemetry.log import SHARDS_STOPPED


class StoppedShards:
    def __init__(self) -> None:
        self._reasons: dict[tuple[str, int], str] = {}

    def record(self, role: str, shard: int, reason: str) -> None:
        self._reasons[role, shard] = reason
        self._count(role)

    def resume(self, role: str, shard: int) -> None:
        if self._reasons.pop((role, shard), None) is not None:
            self._count(role)

    def reasons(self) -> Sequence[str]:
        return [f"{role}, shard {shard}: {reason}" for (role, shard), reason in sorted(self._reasons.items())]

    def _count(self, role: str) -> None:
        SHARDS_STOPPED.labels(role).set(sum(stopped_role == role for stopped_role, _ in self._reasons))


STOPPED_SHARDS = StoppedShards()
