"""DNS server on loopback, UDP and TCP on one port, with a zone that a test may change while it runs.

async with DnsServer(Zone(mx={"a.test": [(10, "mx.a.test")]}, addresses={"mx.a.test": ["127.0.0.1"]})) as server:
    settings = ResolverSettings(servers=[server.address])
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset


@dataclass
class Zone:
    """Names without final dot. A missing name does not exist (NXDOMAIN); one with an empty list has no records."""

    mx: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    addresses: dict[str, list[str]] = field(default_factory=dict)
    cname: dict[str, str] = field(default_factory=dict)
    txt: dict[str, list[str]] = field(default_factory=dict)
    fail: set[str] = field(default_factory=set)  # SERVFAIL
    silent: set[str] = field(default_factory=set)  # no answer at all
    truncated: set[str] = field(default_factory=set)  # over UDP: the TC flag; the answer only over TCP
    ttl_seconds: int = 300
    negative_seconds: int = 60  # the SOA's minimum TTL
    has_soa: bool = True  # whether negative answers can be cached


class DnsServer:
    """`queries` counts queries by (name, type) over UDP, `tcp_queries` over TCP."""

    def __init__(self, zone: Zone | None = None) -> None:
        self.zone = zone or Zone()
        self.queries: Counter[tuple[str, str]] = Counter()
        self.tcp_queries: Counter[tuple[str, str]] = Counter()
        self.payloads: set[int] = set()  # EDNS sizes received
        self.port = 0
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):  # a TCP port that is free on UDP too
            self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", port)
            self.port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Udp(self), ("127.0.0.1", self.port), family=socket.AF_INET
                )
                return
            except OSError:
                self._tcp.close()
        raise RuntimeError("no free port for the DNS server")

    async def close(self) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()

    async def __aenter__(self) -> DnsServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2))
                answer = self.answer(await reader.readexactly(size), tcp=True)
                if answer is not None:
                    writer.write(len(answer).to_bytes(2) + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def answer(self, wire: bytes, *, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        (self.tcp_queries if tcp else self.queries)[name, kind] += 1
        if query.edns >= 0:
            self.payloads.add(query.payload)
        if name in self.zone.silent:
            return None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA | dns.flags.AA
        if name in self.zone.fail:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif name in self.zone.truncated and not tcp:
            response.flags |= dns.flags.TC
        else:
            self._fill(response, name, kind)
        return response.to_wire()

    def _fill(self, response: dns.message.Message, name: str, kind: str) -> None:
        zone, ttl = self.zone, self.zone.ttl_seconds
        seen = set()
        while name in zone.cname and name not in seen:
            seen.add(name)
            target = zone.cname[name]
            response.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", "CNAME", target + "."))
            name = target.lower()
        texts: list[str] = []
        match kind:
            case "MX":
                texts = [f"{preference} {host.rstrip('.')}." for preference, host in zone.mx.get(name, [])]
            case "A" | "AAAA":
                version = 4 if kind == "A" else 6
                texts = [ip for ip in zone.addresses.get(name, []) if ipaddress.ip_address(ip).version == version]
            case "TXT":
                texts = [f'"{text}"' for text in zone.txt.get(name, [])]
        if texts:
            response.answer.append(dns.rrset.from_text(name + ".", ttl, "IN", kind, *texts))
            return
        if not any(name in records for records in (zone.mx, zone.addresses, zone.txt)):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if zone.has_soa:
            minimum = zone.negative_seconds
            response.authority.append(
                dns.rrset.from_text(
                    "test.", 3600, "IN", "SOA", f"ns.test. hostmaster.test. 1 7200 900 1209600 {minimum}"
                )
            )


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server.answer(data, tcp=False)
        if answer is not None:
            self._transport.sendto(answer, addr)
