"""How much of one site may be in hand at a time. Pure.

The window of a site is bounded in deliveries and in bytes, so `dispatched` never fills up behind a slow next hop. The
shard as a whole is bounded too, by *dynamic thresholds* (Choudhury and Hahne, 1998): what a site may hold shrinks with
what is still free in the shard, here with its cube. A single busy site so gets its whole window. With the plain
threshold (no more than what is free) fifteen stalling sites, one after the other, left nothing for anybody; with the
cube the hundredth still finds room. Thousands of sites with one delivery each may fill four fifths: the last is for our
own mailboxes, however slow the world is. Who goes first when a window is short (round robin by tenant, by
due time within a tenant) is kept in `router/mailqueue.py`. Next: `router/mailqueue.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """`site` and `site_bytes`: one site's window; `shard`: deliveries of all sites together."""

    site: int = 1000
    site_bytes: int = 16 << 20
    shard: int = 5000

    def allow(
        self, site_in_hand: int, site_bytes: int, shard_in_hand: int, size_bytes: int, *, is_local: bool = False
    ) -> bool:
        """May one more delivery of `size_bytes` to the site be in hand? `is_local`: it is our own mailboxes."""
        shard = self.shard if is_local else self.shard - self.shard // 5
        if site_in_hand == 0:
            return shard_in_hand < shard  # at least one always is, however large
        return (
            site_in_hand < self.site
            and site_in_hand * shard**2 < max(shard - shard_in_hand, 0) ** 3
            and site_bytes + size_bytes <= self.site_bytes
        )
