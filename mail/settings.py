"""Settings model: every section and key with its type, default and description.

`mail/settings_file.py` reads and checks the TOML file and the environment (`EILPOST_LOG__URL` overrides `[log] url`).
Each role receives only its own section.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, SecretStr
from pydantic.fields import FieldInfo

from mail.masking import MASK
from mail.units import format_duration, format_size, parse_duration, parse_size

Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
Size = Annotated[int, BeforeValidator(parse_size), PlainSerializer(format_size)]

# A key of this type is masked in `eilpost config show` and in error lines.
Secret = Annotated[SecretStr, PlainSerializer(lambda secret: MASK if secret.get_secret_value() else "")]


def is_secret(field: FieldInfo) -> bool:
    return field.annotation is SecretStr


class SettingsError(Exception):
    """One line that names the key and says what to do. Unprintable characters of the quoted value are escaped."""

    def __init__(self, line: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSettings(Section):
    """Identity, logs and shutdown of the process."""

    hostname: str = Field(
        "localhost",
        description="Fully qualified host name for the SMTP greeting, EHLO, Received and DSNs. Set the name that "
        "DNS maps to this server.",
    )
    log_level: str = Field(
        "info",
        description="Least severe log lines that are written: debug, info, warning or error. info has a line for "
        "each message and attempt; debug is for the search of a fault.",
    )
    log_format: str = Field("auto", description='"json", "text" or "auto" (text on a terminal, else json).')
    drain_timeout: Duration = Field(
        parse_duration("30s"),
        description="Time limit for open sessions and deliveries at shutdown. No accepted mail is lost at its end. "
        "Change it together with the time limit of the service manager (TimeoutStopSec), which has to "
        "be at least 10 seconds longer.",
    )


class LogSettings(Section):
    """Message log: the durable store of accepted mail."""

    url: str = Field(
        "embedded:var/log.db",
        description='"embedded:FILE" for one process, "kafka://HOST:PORT,HOST:PORT" for a cluster, or "memory:" for '
        "tests (mail is lost at exit).",
    )
    shards: int = Field(
        0,
        ge=0,
        le=1024,
        description="Number of router shards, which is the maximum number of router processes with work; fixed when "
        "the log is created. 0: the number of the existing log; for a new log 1, on Kafka 12.",
    )
    delivery_shards: int = Field(
        0,
        ge=0,
        le=1024,
        description="Number of delivery shards (partitions of `dispatched`), which is the maximum number of "
        "delivery processes with work; on Kafka it can be increased later. 0: as for shards.",
    )
    append_timeout: Duration = Field(
        parse_duration("20s"),
        description="Time limit for an append to the log; after it the client gets 451 and sends the message again. "
        "Keep it longer than a failover of the brokers (about 10 s) and shorter than the 10 minutes "
        "that clients wait.",
    )
    events_retention: Duration = Field(
        parse_duration("7d"),
        description="Retention of message histories (`eilpost trace`). On Kafka a history needs about 1.1 kB of "
        "disk for each message and replica.",
    )
    max_unrouted_messages: int = Field(
        1_000_000,
        ge=1,
        le=1_000_000_000,
        description="Maximum number of unrouted messages; above it new mail gets 452. Each dedicated tenant is "
        "counted separately. Decrease it where the disk of the log has no room for as many messages.",
    )
    min_free_disk: Size = Field(
        parse_size("256MiB"),
        description="Minimum free disk space for an embedded log and a spool directory; below it new mail gets 452, "
        "and accepted mail is still delivered. Increase it where other programs write to the disk.",
    )
    prefix: str = Field(
        "mail.",
        description="Kafka: prefix of topic names, group ids and transactional ids. Change it for a second "
        "installation on the same brokers.",
    )
    durability: Literal["safe", "dev"] = Field(
        "safe",
        description='Kafka: "safe" refuses to start with topics whose configuration could lose mail; "dev" accepts '
        "them, for trials only.",
    )
    replication: int = Field(
        3,
        ge=1,
        le=9,
        description="Kafka: replication factor for `eilpost topics create`. Less than 3 can lose mail with a lost "
        "broker.",
    )
    session_timeout: Duration = Field(
        parse_duration("7s"),
        description="Kafka: a process that sends no heartbeat for this time loses its shards to others; 6s to 1m. "
        "Increase it where processes pause for seconds; the mail of a killed process waits as long.",
    )
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "", description="Kafka: SASL mechanism; needs sasl_username and sasl_password. Empty: no authentication."
    )
    sasl_username: str = Field("", description="Kafka: SASL user name.")
    sasl_password: Secret = Field(
        SecretStr(""), description="Kafka: SASL password. Prefer the variable EILPOST_LOG__SASL_PASSWORD to this file."
    )
    tls: bool = Field(False, description="Kafka: use TLS to connect to the brokers.")
    tls_ca: str = Field(
        "",
        description="Kafka: PEM file of the trusted CA certificates; empty: the system's. Set it where the brokers "
        "have certificates of a private CA.",
    )
    tls_cert: str = Field("", description="Kafka: PEM file of the client certificate, if the brokers require one.")
    tls_key: str = Field("", description="Kafka: PEM file of the client certificate's private key.")


class SpoolSettings(Section):
    """Storage for the content of large messages and of deliveries that wait in the queue."""

    url: str = Field(
        "file:var/spool",
        description='"file:DIRECTORY" on this machine; "s3://BUCKET/PREFIX", "gs://BUCKET/PREFIX" or '
        '"az://CONTAINER/PREFIX" for an object store; or "memory:" for tests. All processes of a '
        "cluster must use the same storage.",
    )
    endpoint: str = Field(
        "", description='"https://HOST:PORT" of an S3-compatible server; empty: the endpoint of the provider.'
    )
    region: str = Field("", description="Region of an s3:// bucket; empty: AWS_REGION, else us-east-1.")
    access_key: str = Field(
        "",
        description="Access key id, or the name of the az:// account. Empty: the provider's default credentials, from "
        "the environment (AWS_ACCESS_KEY_ID, ...), the pod or the machine.",
    )
    secret_key: Secret = Field(
        SecretStr(""),
        description="Secret of the access key. Prefer the variable EILPOST_SPOOL__SECRET_KEY to this file.",
    )
    allow_http: bool = Field(False, description='Allow an "http://" endpoint: mail crosses the network unencrypted.')
    max_inline_size: Size = Field(
        parse_size("256KiB"),
        description="Maximum size of content stored in log records; larger content goes to the spool. On Kafka at "
        "most 4MiB; larger records need more memory in the brokers.",
    )
    retention: Duration = Field(
        parse_duration("7d"),
        description="Age after which spooled content is deleted; content that is newer than the oldest open "
        "delivery (held ones included) is kept. Must be longer than router.queue_lifetime. Decrease "
        "both where content has to be removed sooner.",
    )


class DirectorySettings(Section):
    """Domains, users, aliases and tenants."""

    url: str = Field("file:directory.toml", description='"file:FILE": a TOML file, reloaded when it changes.')


class MailboxesSettings(Section):
    """Storage of delivered mail."""

    url: str = Field(
        "maildir:var/mail", description='"maildir:DIRECTORY" (readable by Dovecot), or "memory:" for tests.'
    )


class ResolverSettings(Section):
    """DNS."""

    servers: list[str] = Field(
        [],
        description='Name servers, like "127.0.0.1:5353"; empty: the system\'s. Set a caching resolver on this '
        "machine or network.",
    )
    timeout: Duration = Field(
        parse_duration("5s"),
        description="Time limit for one query over all name servers. Mail whose query gets no answer is tried again "
        "later.",
    )
    max_cache_entries: int = Field(
        50_000,
        ge=0,
        le=10_000_000,
        description="Maximum number of cached answers; 0: no cache. Increase it where the cache misses of many "
        "domains load the name servers.",
    )


class IngressSettings(Section):
    """SMTP server."""

    smtp_listen: str = Field(
        "127.0.0.1:2525",
        description='Listen address for other servers and clients, "HOST:PORT"; empty: disabled. "0.0.0.0:25" or '
        '"[::]:25" receives mail from the Internet.',
    )
    relay_networks: list[str] = Field(
        ["127.0.0.0/8", "::1/128"],
        description="Networks whose clients may send to any domain; other clients may send only to the directory's "
        "domains. Largest networks: /8 (IPv4), /16 (IPv6), fc00::/7 and fe80::/10.",
    )
    max_message_size: Size = Field(
        parse_size("25MiB"),
        description="Maximum message size; larger messages get 552 5.3.4. At most max_in_flight_bytes.",
    )
    max_recipients: int = Field(
        1000,
        ge=100,
        le=10_000,
        description="Maximum recipients of a message (RFC 5321 section 4.5.3.1.8); further ones get 452, and the "
        "client sends them in another transaction.",
    )
    max_connections: int = Field(
        1000, ge=1, le=1_000_000, description="Maximum open connections; further ones get 421. Each needs an open file."
    )
    max_connections_per_client: int = Field(
        50,
        ge=1,
        le=1_000_000,
        description="Maximum open connections per client address; more get 421. Relay networks are exempt. Decrease "
        "it against floods, increase it for many clients behind one address.",
    )
    max_errors: int = Field(
        20,
        ge=1,
        le=1000,
        description="Number of errors after which a session is closed with 421. Decrease it against clients that try "
        "many addresses.",
    )
    max_hops: int = Field(
        50, ge=1, le=1000, description="Maximum number of Received header fields; above it: mail loop, 554 5.4.6."
    )
    max_in_flight_bytes: Size = Field(
        parse_size("128MiB"),
        description="Maximum message data in memory, over all sessions. Above it the largest slow transfer gets "
        "421; if no transfer is slow, new mail gets 452 4.3.1. Increase it, and the memory of the "
        "process, for many large messages at once.",
    )
    max_in_flight_bytes_per_client: Size = Field(
        parse_size("32MiB"),
        description="The same limit per client address; one message of max_message_size is always allowed. "
        "Relay networks are exempt.",
    )
    sender_domain_must_resolve: bool = Field(
        True,
        description="Refuse senders whose domain has no MX and no address record. Disable in networks without DNS.",
    )
    sender_check_exempts_relay_networks: bool = Field(
        False,
        description="Do not check sender domains of relay networks. Enable it where your own machines use "
        "sender domains without DNS.",
    )
    vrfy: bool = Field(
        False,
        description="Reply to VRFY whether the address exists, instead of 252. Spammers use such replies to find "
        "addresses.",
    )
    command_timeout: Duration = Field(
        parse_duration("5m"),
        description="Time limit for the next command (RFC 5321 section 4.5.3.2.7: at least 5 minutes).",
    )
    data_timeout: Duration = Field(
        parse_duration("3m"),
        description="Time limit for the next data of a message (RFC 5321 section 4.5.3.2.5: at least 3 minutes).",
    )


class RouterSettings(Section):
    """Routing, queue and retry times."""

    queue_lifetime: Duration = Field(
        parse_duration("5d"),
        description="Age at which an undelivered message is bounced (RFC 5321 section 4.5.4.1: at least 4 to 5 days).",
    )
    retry_delays: list[Duration] = Field(
        [parse_duration(text) for text in ("1m", "5m", "15m", "30m", "1h", "2h", "4h")],
        description="Maximum wait before each retry; the last value repeats. Each wait is chosen at random between "
        "10 % and 100 % of its value.",
    )
    max_active_deliveries_per_site: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Maximum active deliveries per site and shard; further ones are throttled. Rarely changed: "
        "delivery.max_connections_per_site limits a site first.",
    )
    max_active_deliveries: int = Field(
        5000, ge=1, le=1_000_000, description="Maximum active deliveries per shard, over all sites. Rarely changed."
    )
    max_active_bytes_per_site: Size = Field(
        parse_size("16MiB"),
        description="Maximum bytes of active deliveries per site and shard; one delivery is always allowed. Rarely "
        "changed.",
    )
    max_recipients_per_delivery: int = Field(
        100,
        ge=1,
        le=1000,
        description="Maximum recipients per transaction (RFC 5321 section 4.5.3.1.8). Decrease it where remote "
        "servers accept fewer.",
    )
    max_batch_records: int = Field(
        200, ge=1, le=100_000, description="Maximum number of input records per commit. Rarely changed."
    )
    max_alias_depth: int = Field(20, ge=1, le=1000, description="Maximum depth of nested aliases. Rarely changed.")


class DeliverySettings(Section):
    """Delivery to mailboxes and other servers."""

    relay: str = Field(
        "",
        description='"smtp://HOST:PORT" or "lmtp://HOST:PORT" of the relay for all mail that is not local; empty: '
        "deliver to the MX hosts. Set it where port 25 to the Internet is blocked.",
    )
    mx_port: int = Field(25, ge=1, le=65535, description="TCP port of MX hosts. Another port than 25 is for tests.")
    max_connections_per_site: int = Field(
        20,
        ge=1,
        le=100_000,
        description="Maximum connections per site and process, the same for all sites; slow start. Decrease it "
        "where sites refuse connections, increase it for a relay that accepts more.",
    )
    max_connections: int = Field(
        500, ge=1, le=1_000_000, description="Maximum connections per process. Each needs an open file."
    )
    max_in_flight_deliveries: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Maximum concurrent deliveries to other servers, per process; at most half of them to sites that "
        "have not replied recently. Mailboxes have a separate limit of half this number.",
    )
    max_in_flight_bytes: Size = Field(
        parse_size("64MiB"),
        description="Maximum content of concurrent deliveries in memory, per process. Increase it, and the memory "
        "of the process, for many large messages at once.",
    )
    idle_timeout: Duration = Field(parse_duration("5s"), description="Time after which an unused connection is closed.")
    max_messages_per_connection: int = Field(1000, ge=1, le=1_000_000, description="Maximum messages per connection.")
    connect_timeout: Duration = Field(
        parse_duration("30s"), description="Time limit for a connection to one address; then the next address is tried."
    )
    reconnect_backoff: Duration = Field(
        parse_duration("30s"),
        description="Time during which no connection is attempted to a site after all its hosts failed; its mail is "
        "deferred at once.",
    )
    prefer_ipv6: bool = Field(
        True,
        description="Try the IPv6 addresses of a host before its IPv4 addresses. Disable it where IPv6 is slow or "
        "has no reverse DNS.",
    )
    source_addresses: list[str] = Field(
        [],
        description="IPv4 and IPv6 addresses of this machine to bind outgoing connections to, in rotation within the "
        "address family of the destination; no other address is used. Empty: the system chooses.",
    )
    ehlo_name: str = Field(
        "",
        description="Host name in EHLO to other servers; DNS should map it to the source addresses and back. "
        "Empty: node.hostname.",
    )


class MailstoreSettings(Section):
    """POP3 server."""

    pop3_listen: str = Field(
        "127.0.0.1:2110",
        description='Listen address for POP3, "HOST:PORT"; empty: disabled. There is no TLS yet, so only clients on '
        "this machine can log in.",
    )
    max_connections: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Maximum open connections; further ones are refused. Each needs two open files.",
    )
    idle_timeout: Duration = Field(
        parse_duration("10m"),
        description="Time after which an idle client is disconnected (RFC 1939 section 3: at least 10 minutes).",
    )


class HttpSettings(Section):
    """Metrics and health over HTTP."""

    listen: str = Field(
        "127.0.0.1:8025",
        description='Listen address for /metrics, /healthz and /readyz, "HOST:PORT"; empty: disabled. There is no '
        "authentication: on other addresses than loopback, protect the port by a firewall.",
    )


class Settings(Section):
    """All sections. Built by `mail.settings_file.load`."""

    node: NodeSettings = NodeSettings()
    log: LogSettings = LogSettings()
    spool: SpoolSettings = SpoolSettings()
    directory: DirectorySettings = DirectorySettings()
    mailboxes: MailboxesSettings = MailboxesSettings()
    resolver: ResolverSettings = ResolverSettings()
    ingress: IngressSettings = IngressSettings()
    router: RouterSettings = RouterSettings()
    delivery: DeliverySettings = DeliverySettings()
    mailstore: MailstoreSettings = MailstoreSettings()
    http: HttpSettings = HttpSettings()


def dump(settings: Settings) -> dict[str, Any]:
    """The effective settings as JSON values; times and sizes as text with a unit."""
    return settings.model_dump(mode="json")
