"""TCP forwarder across the network namespace of the tests' Docker engine; a script with the standard library only.

`publish NETWORK ...` is the userland proxy: it takes docker-proxy's arguments, listens on loopback of the namespace
NETWORK and connects to the container. `egress NETWORK PORT` is an HTTP proxy (CONNECT only) for image builds on
127.0.0.1:PORT of that namespace. `names ADDRESS` is the engine's DNS server; it resolves no outside name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_CLONE_NEWNET = 0x40000000
_READY_FD = 3  # docker-proxy reports its start here: "0\n", or "1\n" and the error
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "127.0.0.1": "127.0.0.1"}


def _set_network(file: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@contextlib.contextmanager
def _inside(network: Path) -> Iterator[None]:
    """Move this thread into another network namespace. A socket stays in the namespace in which it was created."""
    with Path("/proc/self/ns/net").open() as own, network.open() as other:
        _set_network(other.fileno())
        try:
            yield
        finally:
            _set_network(own.fileno())


def _listener(network: Path, address: str, port: int) -> socket.socket:
    with _inside(network):
        return socket.create_server((address, port), backlog=512)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def _join(one: Streams, other: Streams) -> None:
    """Copy in both directions until both have ended. A reset on one side resets the other."""
    try:
        await asyncio.gather(_pump(one[0], other[1]), _pump(other[0], one[1]))
    except OSError:
        one[1].transport.abort()
        other[1].transport.abort()
    finally:
        one[1].close()
        other[1].close()


async def _serve(listener: socket.socket, connect: Callable[[Streams], Awaitable[Streams]]) -> None:
    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other = await connect((reader, writer))
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
            return
        await _join((reader, writer), other)

    async with await asyncio.start_server(accepted, sock=listener) as server:
        await server.serve_forever()


def publish(network: Path, words: list[str]) -> None:
    """Proxy one published port until SIGTERM."""
    parser = argparse.ArgumentParser()
    for name in ("proto", "host-ip", "container-ip"):
        parser.add_argument(f"-{name}", required=True)
    for name in ("host-port", "container-port"):
        parser.add_argument(f"-{name}", required=True, type=int)
    options, _ = parser.parse_known_args(words)
    with os.fdopen(_READY_FD, "w") as ready:
        try:
            if options.host_ip == "::":  # another process publishes it for IPv4
                listener = None
            elif options.proto != "tcp" or options.host_ip not in _LOOPBACK:
                raise OSError(f"only TCP on 127.0.0.1 is published, not {options.proto} on {options.host_ip}")
            else:
                listener = _listener(network, _LOOPBACK[options.host_ip], options.host_port)
        except OSError as error:
            ready.write(f"1\n{error}")
            sys.exit(1)
        ready.write("0\n")
    if listener is None:
        signal.pause()
        return

    async def to_container(_: Streams) -> Streams:
        return await asyncio.open_connection(options.container_ip, options.container_port)

    asyncio.run(_serve(listener, to_container))


def egress(network: Path, port: int) -> None:
    """Serve CONNECT requests, through the proxy in HTTPS_PROXY if it is set."""
    upstream = urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or "")

    async def to_registry(client: Streams) -> Streams:
        head = await client[0].readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        if upstream.hostname:
            other = await asyncio.open_connection(upstream.hostname, upstream.port or 3128)
            other[1].write(head)
            return other
        if method != "CONNECT":
            raise ValueError(method)
        host, _, asked = target.rpartition(":")
        other = await asyncio.open_connection(host, int(asked))
        client[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return other

    asyncio.run(_serve(_listener(network, "127.0.0.1", port), to_registry))


def names(address: str) -> None:
    """Answer every query on UDP port 53 of `address` with NXDOMAIN."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        while True:
            query, client = server.recvfrom(4096)
            end = query.find(b"\0", 12) + 5  # end of the question: name, type and class
            server.sendto(query[:2] + b"\x81\x83\0\1\0\0\0\0\0\0" + query[12:end], client)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.argv[1] == "publish":
        publish(Path(sys.argv[2]), sys.argv[3:])
    elif sys.argv[1] == "names":
        names(sys.argv[2])
    else:
        egress(Path(sys.argv[2]), int(sys.argv[3]))
