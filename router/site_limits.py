"""How much of one site may be in hand at a time. Pure.

The window of a site is bounded in deliveries and in bytes, so `dispatched` never fills up behind a slow next hop. The
shard as a whole is bounded too, by *dynamic thresholds* (Choudhury and Hahne, 1998): what a site may hold shrinks with
what is still free in the shard, here with its cube. A single busy site so gets its whole window. With the plain
threshold (no more than what is free) fifteen stalling sites, one after the other, left nothing for anybody; with the
cube the hundredth still finds room. Thousands of sites with one delivery each may fill four fifths: the last is for our
own mailboxes, however slow the world is. Who goes first when a window is short (round robin by tenant, by
due time within a tenant) is kept in `router/mail_queue.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SiteLimits:
    """`deliveries_per_site` and `bytes_per_site`: one site's window;
    `deliveries_per_shard`: deliveries of all sites together."""

    deliveries_per_site: int = 1000
    bytes_per_site: int = 16 << 20
    deliveries_per_shard: int = 5000

    def allow(
        self, site_active: int, site_active_bytes: int, shard_active: int, size_bytes: int, *, is_local: bool = False
    ) -> bool:
        """May one more delivery of `size_bytes` to the site be in hand? `is_local`: it is our own mailboxes."""
        shard_limit = (
            self.deliveries_per_shard if is_local else self.deliveries_per_shard - self.deliveries_per_shard // 5
        )
        if site_active == 0:
            return shard_active < shard_limit  # at least one always is, however large
        return (
            site_active < self.deliveries_per_site
            and site_active * shard_limit**2 < max(shard_limit - shard_active, 0) ** 3
            and site_active_bytes + size_bytes <= self.bytes_per_site
        )
