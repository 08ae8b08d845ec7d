"""A load is sent only to own servers and to reserved domains."""

from __future__ import annotations

import asyncio
import socket

import pytest

from eilpost.load.target import NameNotResolved, Target, TargetRefused, check_address, check_domain

OWN = [
    "127.0.0.1",
    "::1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.1.1",
    "100.64.0.1",
    "fd00::1",
    "fe80::1%eth0",
]
PUBLIC = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "172.32.0.1"]


@pytest.mark.parametrize("address", OWN)
def test_private_addresses_are_allowed(address: str) -> None:
    check_address(address, 25, allow_public=False)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_need_a_flag_and_another_port_than_25(address: str) -> None:
    with pytest.raises(TargetRefused, match="--allow-public"):
        check_address(address, 2525, allow_public=False)
    check_address(address, 2525, allow_public=True)
    with pytest.raises(TargetRefused, match="port 25"):
        check_address(address, 25, allow_public=True)


def test_multicast_addresses_are_refused() -> None:
    with pytest.raises(TargetRefused):
        check_address("224.0.0.1", 2525, allow_public=True)


@pytest.mark.parametrize(
    "domain", ["load.test", "a.b.example", "x.invalid", "example.org", "sub.example.com", "LOAD.Test"]
)
def test_reserved_domains_are_allowed(domain: str) -> None:
    assert check_domain(domain, allow_any=False) == domain.lower()


@pytest.mark.parametrize("domain", ["gmail.com", "latest", "contest", "myexample.com", "test.com"])
def test_other_domains_need_a_flag(domain: str) -> None:
    with pytest.raises(ValueError, match="--allow-any-domain"):
        check_domain(domain, allow_any=False)
    assert check_domain(domain, allow_any=True) == domain


@pytest.mark.parametrize("domain", ["", "a b", "x..test", "-"])
def test_invalid_domain_is_refused(domain: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_domain(domain, allow_any=True)


async def test_all_addresses_of_a_name_are_checked_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    address_infos = ["10.0.0.1", "10.0.0.2"]

    async def resolve(host: str, port: int, **how: object) -> list[tuple[object, ...]]:
        assert (host, port) == ("mx.example.test", 2525)
        if not address_infos:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in address_infos]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    target = Target("mx.example.test", 2525)
    assert {await target.address() for _ in range(2)} == {"10.0.0.1", "10.0.0.2"}
    address_infos.append("8.8.8.8")
    with pytest.raises(TargetRefused):
        await Target("mx.example.test", 2525).address()
    address_infos.clear()
    with pytest.raises(NameNotResolved, match=r"mx\.example\.test cannot be resolved"):
        await Target("mx.example.test", 2525).address()
    assert await target.address() in ("10.0.0.1", "10.0.0.2")  # asked before
