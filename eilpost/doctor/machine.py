"""Doctor checks of this machine: spool, free space, mailboxes, directory, DNS.

It writes only to directories that the current user owns: the server could not access files of another user.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from pwd import getpwuid
from shutil import disk_usage
from time import perf_counter

from eilpost.doctor.directory_warnings import directory_counts, directory_warnings
from eilpost.doctor.finding import Finding, fail, ok, warn
from eilpost.format import format_age, format_bytes
from eilpost.wiring import ProcessConfig, directory_path, make_spool
from mail.directory import DirectoryUnusable
from mail.directory.file import load
from mail.resolver import DnsUnknown, IpAddresses
from mail.settings import ResolverSettings, Settings
from mail.settings_section import SettingsError
from mail.spool import SpoolDamaged, SpoolUnavailable

_CONTENT_BYTES = 64


def owner_finding(subject: str, path: Path) -> Finding | None:
    """A finding when `path` belongs to another user and is not group-writable for this one (Kubernetes volumes are)."""
    file_status = path.stat()
    owner = file_status.st_uid
    if owner == os.geteuid() or (
        file_status.st_mode & stat.S_IWGRP and file_status.st_gid in {os.getegid(), *os.getgroups()}
    ):
        return None
    try:
        name = getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    return warn(subject, f"{path} belongs to {name}: not checked", f"run as {name}: sudo -u {name} eilpost doctor")


def space_finding(subject: str, path: Path, minimum: int, consequence: str = "new mail gets 452") -> Finding:
    """Free space of the file system of `path`, which may not exist yet; `consequence` of less than `minimum` bytes."""
    free = disk_usage(_nearest_existing(path)).free
    text = f"{format_bytes(free)} free at {path}"
    if free < minimum:
        return fail(subject, f"{text}, less than log.min_free_disk", f"free disk space: {consequence}")
    return (
        warn(subject, f"{text}, near log.min_free_disk", "free disk space") if free < 4 * minimum else ok(subject, text)
    )


def _nearest_existing(path: Path) -> Path:
    return next((candidate for candidate in (path, *path.absolute().parents) if candidate.exists()), Path("/"))


def folder_finding(subject: str, path: Path) -> Finding | None:
    """A finding when a directory does not exist yet, or it or its nearest existing parent is not writable."""
    existing = _nearest_existing(path)
    if not existing.is_dir():
        return fail(subject, f"{existing} is a file, not a directory", "move the file, or set another directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        return fail(subject, f"{existing} is not writable by this user", "change its owner, or set another directory")
    return ok(subject, f"{path} does not exist yet; it is created at the first start") if existing != path else None


async def spool(process_config: ProcessConfig) -> list[Finding]:
    """Store content and read it back."""
    url = process_config.settings.spool.url
    findings = _spool_shared(process_config.settings)
    if url.startswith("file:"):
        path = process_config.path(url.removeprefix("file:"))
        findings.append(space_finding("spool space", path, process_config.settings.log.min_free_disk))
        problem = folder_finding("spool", path) or owner_finding("spool", path)
        if problem is not None:
            return [problem, *findings]
    return [await _round_trip(process_config), *findings]


async def _round_trip(process_config: ProcessConfig) -> Finding:
    url = process_config.settings.spool.url
    content = b"eilpost doctor " + secrets.token_hex(_CONTENT_BYTES // 2).encode()
    started_at = perf_counter()
    try:
        spool = make_spool(process_config)
        try:
            await spool.start()
            read_back = await spool.read(await spool.put(content))
        finally:
            await spool.close()
    except (SpoolUnavailable, SpoolDamaged, SettingsError) as error:
        refused = "all new mail gets 451 (452 when it is full)" if url.startswith("file:") else "large mail gets 451"
        return fail("spool", str(error), f"check spool.url; until it works {refused}, and queued mail waits")
    if read_back != content:
        return fail("spool", f"{url} returned other data than was written", "check the disk or the object store")
    return ok("spool", f"{url}: written and read in {format_age(timedelta(seconds=perf_counter() - started_at))}")


def _spool_shared(settings: Settings) -> list[Finding]:
    if settings.log.url.startswith("kafka:") and not settings.spool.url.startswith(("s3:", "gs:", "az:")):
        text = f"{settings.spool.url} must be the same storage for all processes of the cluster"
        return [warn("spool shared", text, "with several machines use an object store: spool.url = s3://BUCKET")]
    return []


async def mailboxes(process_config: ProcessConfig) -> list[Finding]:
    url = process_config.settings.mailboxes.url
    if not url.startswith("maildir:"):
        return []
    path = process_config.path(url.removeprefix("maildir:"))
    finding = folder_finding("mailboxes", path) or owner_finding("mailboxes", path)
    consequence = "deliveries to mailboxes are deferred when it is full"
    return [
        finding or ok("mailboxes", f"{path} is writable"),
        space_finding("mailboxes space", path, process_config.settings.log.min_free_disk, consequence),
    ]


async def directory(process_config: ProcessConfig) -> list[Finding]:
    path = directory_path(process_config)
    try:
        snapshot, _ = await asyncio.to_thread(load, path)
    except DirectoryUnusable as error:
        return [fail("directory", str(error), "correct the file; a running server uses the last good version")]
    warnings = await asyncio.to_thread(directory_warnings, snapshot, path)
    return warnings or [ok("directory", f"{path}: {directory_counts(snapshot)}")]


async def dns(process_config: ProcessConfig) -> list[Finding]:
    """Query each configured server for node.hostname, unless no DNS is needed."""
    settings = process_config.settings
    by_mx = not settings.delivery.relay
    if not (by_mx or settings.ingress.sender_domain_must_resolve):
        return [ok("dns", "not used: delivery.relay is set and sender domains are not checked")]
    servers = settings.resolver.servers
    queries: Sequence[list[str]] = [[server] for server in servers] or [[]]
    results = await asyncio.gather(*(_query_server(settings, queried) for queried in queries))
    any_responds = any(isinstance(result, float) for result, _ in results)
    findings = [
        _server(" ".join(queried) or "(system)", result, any_responds=any_responds)
        for queried, (result, _) in zip(queries, results, strict=True)
    ]
    if any_responds and by_mx and not any(has_address for _, has_address in results):
        text = f"{settings.node.hostname} has no address in DNS"
        advice = "other servers may refuse mail from this name: set node.hostname, or add the DNS record"
        findings.append(warn("node.hostname", text, advice))
    return findings


async def _query_server(settings: Settings, servers: list[str]) -> tuple[float | str, bool]:
    """The duration in seconds or the error; and whether node.hostname has an address."""
    from mail.resolver.dnspython import DnsResolver

    resolver = DnsResolver(ResolverSettings(servers=servers, timeout=settings.resolver.timeout, max_cache_entries=0))
    started_at = perf_counter()
    try:
        found_addresses = await resolver.addresses(settings.node.hostname)
    finally:
        await resolver.close()
    if isinstance(found_addresses, DnsUnknown):
        return found_addresses.reason, False
    return perf_counter() - started_at, isinstance(found_addresses, IpAddresses)


def _server(name: str, result: float | str, *, any_responds: bool) -> Finding:
    subject = f"dns {name}"
    if isinstance(result, float):
        return ok(subject, f"responds in {format_age(timedelta(seconds=result))}")
    if any_responds:
        return warn(subject, result, "repair it or remove it from resolver.servers: it delays queries")
    return fail(subject, result, "set resolver.servers to a server that responds: mail waits for DNS")
