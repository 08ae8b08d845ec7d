"""Concurrency limits per site and per shard, so that a slow next hop cannot fill `dispatched`. No I/O.

A site is limited in deliveries and bytes, and by *dynamic thresholds* (Choudhury and Hahne, 1998): its share shrinks
with the cube of the shard's free capacity. With a linear threshold fifteen stalled sites used up the shard; with the
cube the hundredth still may have an active delivery.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SiteLimits:
    """Limits of active deliveries. A fifth of `deliveries_per_shard` is reserved for local mailboxes."""

    deliveries_per_site: int = 1000
    bytes_per_site: int = 16 << 20
    deliveries_per_shard: int = 5000

    def allow(
        self, site_active: int, site_active_bytes: int, shard_active: int, size_bytes: int, *, is_local: bool = False
    ) -> bool:
        """Whether one more delivery of `size_bytes` to the site may become active. `is_local`: to mailboxes."""
        shard_limit = (
            self.deliveries_per_shard if is_local else self.deliveries_per_shard - self.deliveries_per_shard // 5
        )
        if site_active == 0:
            return shard_active < shard_limit  # one delivery may exceed the byte limit
        return (
            site_active < self.deliveries_per_site
            and site_active * shard_limit**2 < max(shard_limit - shard_active, 0) ** 3
            and site_active_bytes + size_bytes <= self.bytes_per_site
        )
