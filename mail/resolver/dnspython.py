"""Resolver with dnspython: MX and address look-ups with a cache and a time limit. No DNSSEC validation.

A truncated UDP answer is repeated over TCP (RFC 7766), the EDNS size is 1232 octets, CNAMEs are followed. NXDOMAIN and
NODATA are cached for the SOA minimum (RFC 2308), at most `NEGATIVE_MAX`; SERVFAIL, REFUSED and time-outs are
`DnsUnknown` and are not cached.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses, MxAnswer, MxHosts, NoRecords, NoSuchDomain, NullMx
from mail.resolver.cache import AnswerCache
from mail.settings import ResolverSettings
from mail.settings_values import name_server
from mail.telemetry.lookup import DNS_DURATION

POSITIVE_MAX = timedelta(days=1)
NEGATIVE_MAX = timedelta(minutes=15)
_EDNS_BYTES = 1232  # DNS flag day 2020: avoids IP fragments
_SERVER_TIMEOUT_SECONDS = 2.0  # then the next server is tried
_CONCURRENT_QUERIES = 256  # further queries wait, within their time limit

_Question = tuple[str, str]  # name without final dot, "MX" | "A" | "AAAA"
_Answer = MxAnswer | AddressAnswer


class DnsResolver:
    """With `settings.servers` empty the system's name servers are read once. Without any server every answer is
    DnsUnknown.
    """

    def __init__(self, settings: ResolverSettings) -> None:
        self._timeout_seconds = settings.timeout.total_seconds()
        self._backend = dns.asyncbackend.get_backend("asyncio")
        self._resolver = _make_resolver(settings)
        self._query_limit = asyncio.Semaphore(_CONCURRENT_QUERIES)
        self._cache: AnswerCache[_Question, _Answer] = AnswerCache(self._query, settings.max_cache_entries)

    async def mx(self, domain: str) -> MxAnswer:
        answer = await self._cache.answer((_normalize(domain), "MX"))
        assert not isinstance(answer, IpAddresses)
        return answer

    async def addresses(self, host: str) -> AddressAnswer:
        name = _normalize(host)
        try:
            return IpAddresses((str(ipaddress.ip_address(name)),))
        except ValueError:
            pass
        answers = await asyncio.gather(self._cache.answer((name, "A")), self._cache.answer((name, "AAAA")))
        ips = tuple(ip for answer in answers if isinstance(answer, IpAddresses) for ip in answer.addresses)
        if ips:
            return IpAddresses(ips)
        for answer in answers:  # the unanswered query could have returned an address
            if isinstance(answer, DnsUnknown):
                return answer
        return NoSuchDomain() if any(isinstance(answer, NoSuchDomain) for answer in answers) else NoRecords()

    async def close(self) -> None:
        """Cancel running queries. Idempotent."""
        await self._cache.close()

    async def _query(self, question: _Question) -> tuple[_Answer, float]:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_seconds + 1), self._query_limit:
                answer, seconds = await self._resolve(*question)
        except TimeoutError:
            answer, seconds = _unknown(*question, "timed out")
        DNS_DURATION.labels(_RESULTS.get(type(answer), "found")).observe(time.perf_counter() - started)
        return answer, seconds

    async def _resolve(self, name: str, kind: str) -> tuple[_Answer, float]:
        if self._resolver is None:
            return _unknown(name, kind, "failed: no name server is configured; set resolver.servers")
        try:
            absolute = dns.name.from_text(name + ".")
        except (dns.exception.DNSException, UnicodeError):
            return NoSuchDomain(), 0.0  # not a valid DNS name
        try:
            answer = await self._resolver.resolve(
                absolute, kind, raise_on_no_answer=False, search=False, backend=self._backend
            )
        except dns.resolver.NXDOMAIN as error:
            nxdomain: Any = error  # its methods are not typed
            return NoSuchDomain(), _negative_seconds(nxdomain.response(nxdomain.qnames()[0]))
        except dns.resolver.LifetimeTimeout:
            return _unknown(name, kind, "timed out")
        except dns.resolver.NoNameservers as error:
            return _unknown(name, kind, f"failed: {_last_error(error)}")
        except (dns.exception.DNSException, OSError) as error:
            return _unknown(name, kind, f"failed: {type(error).__name__}")
        if answer.rrset is None:
            return NoRecords(), _negative_seconds(answer.response)
        return _parse_records(kind, answer.rrset), min(answer.chaining_result.minimum_ttl, POSITIVE_MAX.total_seconds())


_RESULTS = {NoRecords: "nodata", NoSuchDomain: "nxdomain", DnsUnknown: "error"}


def _make_resolver(settings: ResolverSettings) -> dns.asyncresolver.Resolver | None:
    try:
        resolver = dns.asyncresolver.Resolver(configure=not settings.servers)
    except dns.resolver.NoResolverConfiguration:
        return None
    if settings.servers:
        resolver.nameservers = [
            dns.nameserver.Do53Nameserver(host, port) for host, port in map(name_server, settings.servers)
        ]
    resolver.cache = None  # AnswerCache has negative caching by SOA and single flight
    resolver.lifetime = settings.timeout.total_seconds()
    resolver.timeout = min(_SERVER_TIMEOUT_SECONDS, resolver.lifetime)
    resolver.use_edns(0, 0, _EDNS_BYTES)
    return resolver


def _parse_records(kind: str, records: Iterable[Any]) -> MxHosts | NullMx | IpAddresses:
    if kind != "MX":
        return IpAddresses(tuple(record.address for record in records))
    hosts = sorted({(record.preference, _normalize(record.exchange.to_text())) for record in records})
    named = tuple((preference, host) for preference, host in hosts if host)
    # RFC 7505 section 3: "." is a null MX only as the single record; it is ignored when other hosts are listed.
    return MxHosts(named) if named else NullMx()


def _normalize(name: str) -> str:
    return name.rstrip(".").lower()


def _negative_seconds(response: Any) -> float:
    """RFC 2308 section 5: the smaller of the SOA's TTL and its minimum; 0 without an SOA."""
    if not any(records.rdtype == dns.rdatatype.SOA for records in response.authority):
        return 0.0
    return float(min(response.resolve_chaining().minimum_ttl, NEGATIVE_MAX.total_seconds()))


def _unknown(name: str, kind: str, failure: str) -> tuple[DnsUnknown, float]:
    return DnsUnknown(f"DNS lookup of {name} {kind} {failure}"), 0.0  # not cached


def _last_error(error: dns.resolver.NoNameservers) -> str:
    """The error of the last server: "SERVFAIL", "REFUSED", ..."""
    errors = error.kwargs.get("errors") or []
    last = errors[-1][3] if errors else "no server answers"
    return last if isinstance(last, str) else type(last).__name__
