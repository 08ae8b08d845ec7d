"""Tests of the provider of a route: a known one by host name, else `other`; `local` for mailboxes."""

from __future__ import annotations

import pytest

from delivery.provider import DOMAINS, provider_of
from mail.route import RelayProtocol, Route, ToMailbox, ToMx, ToRelay, Unresolved


def mx(*hosts: str) -> ToMx:
    return ToMx("far.test", tuple((10 * number, host) for number, host in enumerate(hosts, 1)))


@pytest.mark.parametrize(
    ("route", "provider"),
    [
        (ToMailbox("alice@example.test"), "local"),
        (mx("aspmx.l.google.com", "alt1.aspmx.l.google.com"), "google"),
        (mx("Example-Test.mail.protection.OUTLOOK.com."), "microsoft"),
        (mx("mta5.am0.yahoodns.net"), "yahoo"),
        (mx("mx.far.test", "aspmx.l.google.com"), "other"),  # the best host decides
        (mx("notgoogle.com"), "other"),  # a part of a label is no suffix
        (mx("google.com.far.test"), "other"),
        (mx("192.0.2.7"), "other"),
        (mx(), "other"),
        (ToRelay("email-smtp.eu-west-1.amazonaws.com", 587), "amazon"),
        (ToRelay("smtp.sendgrid.net", 587), "sendgrid"),
        (ToRelay("smart.test", 24, RelayProtocol.LMTP), "other"),
        (Unresolved("far.test"), "other"),
    ],
)
def test_provider_of_a_route(route: Route, provider: str) -> None:
    assert provider_of(route) == provider


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_listed_domain_matches_itself_and_its_subdomains(domain: str) -> None:
    assert provider_of(mx(f"mx1.{domain}")) == provider_of(mx(domain)) == DOMAINS[domain]
