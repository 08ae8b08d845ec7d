"""Mailbox providers by mail host name, for metric labels: a fixed list, `other` and `local`. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import assert_never

from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved
from mail.telemetry.delivery import LOCAL, OTHER

# Parent domains of the providers' MX and submission hosts.
_DOMAINS_BY_PROVIDER = {
    "google": ("google.com", "googlemail.com"),
    "microsoft": ("outlook.com", "hotmail.com", "office365.com", "mx.microsoft"),
    "yahoo": ("yahoodns.net", "yahoo.com"),
    "apple": ("icloud.com", "me.com"),
    "proton": ("protonmail.ch", "proton.me"),
    "gmx": ("gmx.net", "web.de", "mail.com"),
    "ionos": ("ionos.de", "ionos.com", "kundenserver.de"),
    "fastmail": ("messagingengine.com",),
    "zoho": ("zoho.com", "zoho.eu", "zoho.in"),
    "yandex": ("yandex.ru", "yandex.net"),
    "mailru": ("mail.ru",),
    "tencent": ("qq.com",),
    "netease": ("netease.com",),
    "comcast": ("comcast.net",),
    "orange": ("orange.fr",),
    "telekom": ("t-online.de",),
    "proofpoint": ("pphosted.com", "ppe-hosted.com"),
    "mimecast": ("mimecast.com", "mimecast.co.za"),
    "amazon": ("amazonaws.com",),
    "sendgrid": ("sendgrid.net",),
}
DOMAINS = {domain: provider for provider, domains in _DOMAINS_BY_PROVIDER.items() for domain in domains}


def provider_of(route: Route) -> str:
    """The provider of a route, by its best MX host or by its relay."""
    match route:
        case ToMailbox():
            return LOCAL
        case ToRelay(host):
            return _provider_of_host(host)
        case ToMx(_, hosts):
            return _provider_of_host(hosts[0][1]) if hosts else OTHER
        case Unresolved():
            return OTHER
        case _:
            assert_never(route)


@lru_cache(maxsize=10_000)
def _provider_of_host(host: str) -> str:
    name = host.lower().rstrip(".")
    while name:
        if name in DOMAINS:
            return DOMAINS[name]
        name = name.partition(".")[2]
    return OTHER
