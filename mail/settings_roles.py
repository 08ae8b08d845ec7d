"""Settings of the roles: SMTP server, router, delivery, POP3 server. Each role receives only its own section."""

from __future__ import annotations

from pydantic import Field

from mail.settings_section import Duration, Section, Size
from mail.units import parse_duration, parse_size


class IngressSettings(Section):
    """SMTP server."""

    smtp_listen: str = "127.0.0.1:2525"
    """Listen address for other servers and clients, "HOST:PORT"; empty: disabled. "0.0.0.0:25" or "[::]:25" receives
    mail from the Internet.
    """
    relay_networks: list[str] = Field(["127.0.0.0/8", "::1/128"])
    """Networks whose clients may send to any domain; other clients may send only to the directory's domains. Largest
    networks: /8 (IPv4), /16 (IPv6), fc00::/7 and fe80::/10.
    """
    max_message_size: Size = parse_size("25MiB")
    """Maximum message size; larger messages get 552 5.3.4. At most max_in_flight_bytes."""
    max_recipients: int = Field(1000, ge=100, le=10_000)
    """Maximum recipients of a message (RFC 5321 section 4.5.3.1.8); further ones get 452, and the client sends them in
    another transaction.
    """
    max_connections: int = Field(1000, ge=1, le=1_000_000)
    """Maximum open connections; further ones get 421. Each needs an open file."""
    max_connections_per_client: int = Field(50, ge=1, le=1_000_000)
    """Maximum open connections per client: an IPv4 address, or an IPv6 /64; four times as many per /48. More get 421.
    Relay networks are exempt. Decrease it against floods, increase it for many clients behind one address.
    """
    reserved_connections_percent: int = Field(20, ge=0, le=90)
    """Percentage of max_connections that only clients of relay_networks can use. Increase it where your own clients are
    many.
    """
    stress_timeout: Duration = parse_duration("10s")
    """Time limit for the next command or data of clients outside relay_networks under stress: while they hold nine
    tenths or more of the connections that they may have, until they hold less than half (Postfix: smtpd_timeout with
    stress).
    """
    stress_max_errors: int = Field(1, ge=1, le=1000)
    """max_errors for clients outside relay_networks under stress (Postfix: smtpd_hard_error_limit with stress); then
    two EHLO or other commands without mail are free, not 100.
    """
    max_errors: int = Field(20, ge=1, le=1000)
    """Number of errors after which a session is closed with 421. Decrease it against clients that try many addresses.
    """
    max_hops: int = Field(50, ge=1, le=1000)
    """Maximum number of Received header fields; above it: mail loop, 554 5.4.6."""
    max_in_flight_bytes: Size = parse_size("128MiB")
    """Maximum message data in memory, over all sessions. Above it the largest slow transfer gets 421; if no transfer is
    slow, new mail gets 452 4.3.1. Increase it, and the memory of the process, for many large messages at once.
    """
    max_in_flight_bytes_per_client: Size = parse_size("32MiB")
    """The same limit per client, as of max_connections_per_client; one message of max_message_size is always
    allowed. Relay networks are exempt.
    """
    sender_domain_must_resolve: bool = True
    """Refuse senders whose domain has no MX and no address record. Disable in networks without DNS."""
    sender_check_exempts_relay_networks: bool = False
    """Do not check sender domains of relay networks. Enable it where your own machines use sender domains without DNS.
    """
    vrfy: bool = False
    """Reply to VRFY whether the address exists, instead of 252. Spammers use such replies to find addresses."""
    command_timeout: Duration = parse_duration("5m")
    """Time limit for the next command (RFC 5321 section 4.5.3.2.7: at least 5 minutes)."""
    data_timeout: Duration = parse_duration("3m")
    """Time limit for the next data of a message. The RFC has no value for servers; RFC 5321 section 4.5.3.2.5 gives
    clients 3 minutes for each block that they send. All data of a message may take five times this, and one second more
    for each 16 KiB.
    """


class RouterSettings(Section):
    """Routing, queue and retry times."""

    queue_lifetime: Duration = parse_duration("5d")
    """Age at which an undelivered message is bounced (RFC 5321 section 4.5.4.1: at least 4 to 5 days)."""
    retry_delays: list[Duration] = Field(
        [parse_duration(text) for text in ("1m", "5m", "15m", "30m", "1h", "2h", "4h")]
    )
    """Maximum wait before each retry; the last value repeats. Each wait is chosen at random between 10 % and 100 % of
    its value.
    """
    max_active_deliveries_per_site: int = Field(1000, ge=1, le=1_000_000)
    """Maximum active deliveries per site and shard; further ones are throttled. Rarely changed:
    delivery.max_connections_per_site limits a site first.
    """
    max_active_deliveries: int = Field(5000, ge=1, le=1_000_000)
    """Maximum active deliveries per shard, over all sites. Rarely changed."""
    max_active_bytes_per_site: Size = parse_size("16MiB")
    """Maximum bytes of active deliveries per site and shard; one delivery is always allowed. Rarely changed."""
    max_recipients_per_delivery: int = Field(100, ge=1, le=1000)
    """Maximum recipients per transaction (RFC 5321 section 4.5.3.1.8). Decrease it where remote servers accept fewer.
    """
    max_batch_records: int = Field(200, ge=1, le=100_000)
    """Maximum number of input records per commit. Rarely changed."""
    max_alias_depth: int = Field(20, ge=1, le=1000)
    """Maximum depth of nested aliases. Rarely changed."""


class DeliverySettings(Section):
    """Delivery to mailboxes and other servers."""

    relay: str = ""
    """ "smtp://HOST:PORT" or "lmtp://HOST:PORT" of the relay for all mail that is not local; empty: deliver to the MX
    hosts. Set it where port 25 to the Internet is blocked.
    """
    mx_port: int = Field(25, ge=1, le=65535)
    """TCP port of MX hosts. Another port than 25 is for tests."""
    max_connections_per_site: int = Field(20, ge=1, le=100_000)
    """Maximum connections per site and process, the same for all sites; slow start. Decrease it where sites refuse
    connections, increase it for a relay that accepts more.
    """
    max_connections: int = Field(500, ge=1, le=1_000_000)
    """Maximum connections per process. Each needs an open file."""
    max_in_flight_deliveries: int = Field(500, ge=1, le=1_000_000)
    """Maximum concurrent deliveries to other servers, per process; at most half of them to sites that have not replied
    promptly yet, or not at their last attempts. Deliveries that wait for a connection to open or for the greeting do
    not count: max_connections limits them. Mailboxes have a separate limit of half this number.
    """
    max_in_flight_bytes: Size = parse_size("64MiB")
    """Maximum content of concurrent deliveries in memory, per process. Increase it, and the memory of the process, for
    many large messages at once.
    """
    idle_timeout: Duration = parse_duration("5s")
    """Time after which an unused connection is closed."""
    max_messages_per_connection: int = Field(1000, ge=1, le=1_000_000)
    """Maximum messages per connection."""
    connect_timeout: Duration = parse_duration("30s")
    """Time limit for a connection to one address; then the next address is tried."""
    reconnect_backoff: Duration = parse_duration("30s")
    """Time during which no connection is attempted to a site after all its hosts failed; its mail is deferred at once.
    A host that failed while another one of the site worked is tried last for this time, doubled with each further
    failure up to 16 times.
    """
    prefer_ipv6: bool = True
    """Try the IPv6 addresses of a host before its IPv4 addresses. Disable it where IPv6 is slow or has no reverse DNS.
    """
    source_addresses: list[str] = Field([])
    """IPv4 and IPv6 addresses of this machine to bind outgoing connections to, in rotation within the address family of
    the destination; no other address is used. Empty: the system chooses.
    """
    ehlo_name: str = ""
    """Host name in EHLO to other servers; DNS should map it to the source addresses and back. Empty: node.hostname."""
    own_addresses: list[str] = Field([])
    """Further IPv4 and IPv6 addresses at which other servers reach this installation, on mx_port: those of load
    balancers, of NAT, and of its other machines. An MX host with one of them, or with ingress.smtp_listen, is this
    server, so mail is not sent to it, nor to hosts of equal or worse preference.
    """


class MailstoreSettings(Section):
    """POP3 server."""

    pop3_listen: str = "127.0.0.1:2110"
    """Listen address for POP3, "HOST:PORT"; empty: disabled. There is no TLS yet, so only clients on this machine can
    log in.
    """
    max_connections: int = Field(500, ge=1, le=1_000_000)
    """Maximum open connections; for further ones, the oldest connection of another machine that waits without login is
    closed, or they are refused. At most 20 without login per client: an IPv4 address, or an IPv6 /64, four times as
    many per /48. Each needs two open files.
    """
    idle_timeout: Duration = parse_duration("10m")
    """Time after which an idle client is disconnected (RFC 1939 section 3: at least 10 minutes)."""
