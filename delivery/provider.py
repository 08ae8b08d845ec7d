"""Mailbox providers by mail host name, for metric labels: a fixed list, `other` and `local`. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import assert_never

from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved

LOCAL = "local"
OTHER = "other"

# Parent domains of the providers' MX and submission hosts.
DOMAINS = {
    "google.com": "google",
    "googlemail.com": "google",
    "outlook.com": "microsoft",
    "hotmail.com": "microsoft",
    "office365.com": "microsoft",
    "mx.microsoft": "microsoft",
    "yahoodns.net": "yahoo",
    "yahoo.com": "yahoo",
    "icloud.com": "apple",
    "me.com": "apple",
    "protonmail.ch": "proton",
    "proton.me": "proton",
    "gmx.net": "gmx",
    "web.de": "gmx",
    "mail.com": "gmx",
    "ionos.de": "ionos",
    "ionos.com": "ionos",
    "kundenserver.de": "ionos",
    "messagingengine.com": "fastmail",
    "zoho.com": "zoho",
    "zoho.eu": "zoho",
    "zoho.in": "zoho",
    "yandex.ru": "yandex",
    "yandex.net": "yandex",
    "mail.ru": "mailru",
    "qq.com": "tencent",
    "netease.com": "netease",
    "comcast.net": "comcast",
    "orange.fr": "orange",
    "t-online.de": "telekom",
    "pphosted.com": "proofpoint",
    "ppe-hosted.com": "proofpoint",
    "mimecast.com": "mimecast",
    "mimecast.co.za": "mimecast",
    "amazonaws.com": "amazon",
    "sendgrid.net": "sendgrid",
}


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
