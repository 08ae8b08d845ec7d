"""Counts of a valid directory file and warnings about it, for `eilpost config check` and `eilpost doctor`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from eilpost.doctor.finding import Finding, warn
from mail.directory import IsUnknown, Snapshot

_NAMES_MAX = 5  # in one line


def directory_counts(snapshot: Snapshot) -> str:
    return f"domains: {len(snapshot.domains)}, users: {len(snapshot.users)}, aliases: {len(snapshot.aliases)}"


def directory_warnings(snapshot: Snapshot, path: Path) -> list[Finding]:
    """The warnings, most severe first. `path` is the file that `snapshot` was read from."""
    warnings = []
    if not snapshot.domains:
        effect = "no address is local; only clients in ingress.relay_networks can send mail, all others get 550 5.7.1"
        warnings.append(warn("directory", f"{path} has no domains: {effect}", "add [domains]"))
    dead = [
        f"{alias} -> {target}"
        for alias, targets in snapshot.aliases.items()
        for target in targets
        if isinstance(snapshot.lookup(target), IsUnknown)
    ]
    if dead:
        more = f" and {len(dead) - _NAMES_MAX} more" if len(dead) > _NAMES_MAX else ""
        warnings.append(
            warn(
                "directory",
                f"{path} has aliases with targets that do not exist; mail for these bounces, and an alias without"
                f" another target is refused at RCPT: {', '.join(dead[:_NAMES_MAX])}{more}",
                "add the mailboxes with `eilpost user add`, or correct the aliases",
            )
        )
    is_writable_volume = not os.statvfs(path).f_flag & os.ST_RDONLY  # a Secret of Kubernetes is not
    if snapshot.users and path.stat().st_mode & stat.S_IROTH and is_writable_volume:
        text = f"{path} has password hashes and every user of this machine can read it"
        warnings.append(warn("directory", text, f"chmod o-r {path}"))
    return warnings
