"""Settings: one TOML file, every key overridable by the environment, every key explained beside its default.

`EILPOST_LOG__URL=...` overrides `[log] url`. This is only the table; reading and checking it is in
`mail/settings_file.py`, and a wrong key, unit or value is one line that names the key (`SettingsError`). Values are
typed and carry their unit; roles get their own section, never the whole.
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

# Type a key so and it is hidden wherever settings are shown and wherever a wrong value is quoted. Its reader says
# `.get_secret_value()`.
Secret = Annotated[SecretStr, PlainSerializer(lambda secret: MASK if secret.get_secret_value() else "")]


def is_secret(field: FieldInfo) -> bool:
    return field.annotation is SecretStr


class SettingsError(Exception):
    """One line that names the key and says what to do; what was found may hold anything, and is shown escaped."""

    def __init__(self, line: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSettings(Section):
    """This host as others see it."""

    hostname: str = Field(
        "localhost", description="Our name in the greeting, EHLO, Received and DSNs; fully qualified."
    )
    log_level: str = Field("info", description="debug, info, warning or error.")
    log_format: str = Field("auto", description='"json", "text", or "auto": text on a terminal, else json.')
    drain: Duration = Field(parse_duration("30s"), description="How long open work may take to finish at shutdown.")


class LogSettings(Section):
    """Where accepted mail is durable."""

    url: str = Field(
        "embedded:var/log.db",
        description='"embedded:FILE" for one process, "kafka://HOST:PORT,HOST:PORT" for a cluster, or "memory:" for '
        "tests (nothing survives).",
    )
    shards: int = Field(
        0,
        ge=0,
        le=1024,
        description="Router shards; fixed when the log is made. 0: what is there; in a new log 1, on Kafka 12.",
    )
    delivery_shards: int = Field(
        0,
        ge=0,
        le=1024,
        description="Shards of `dispatched`; on Kafka they may grow later. 0: as with shards.",
    )
    append_timeout: Duration = Field(
        parse_duration("20s"), description="No confirmation in this time: 451 to the client."
    )
    events_kept: Duration = Field(parse_duration("7d"), description="How long a message's history can be read.")
    backlog_max: int = Field(
        1_000_000,
        ge=1,
        le=1_000_000_000,
        description="So many wait in `accepted` (dedicated tenants apart): new mail gets 452.",
    )
    min_free_disk: Size = Field(
        parse_size("256MiB"),
        description="Less free disk than this, of an embedded log or of a spool in a directory: new mail gets 452.",
    )
    prefix: str = Field("mail.", description="Kafka: stands before the names of topics, groups and transactional ids.")
    durability: Literal["safe", "dev"] = Field(
        "safe",
        description='Kafka: "safe" refuses topics that could lose mail; "dev" takes any, on machines for trials.',
    )
    replication: int = Field(3, ge=1, le=9, description="Kafka: replicas of topics that `eilpost topics create` makes.")
    session_timeout: Duration = Field(
        parse_duration("7s"),
        description="Kafka: a process that is silent for so long loses its shards to others; from 6s to 1m.",
    )
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "", description="Kafka: how to log in; empty: not at all."
    )
    sasl_username: str = Field("", description="Kafka: the name to log in with.")
    sasl_password: Secret = Field(SecretStr(""), description="Kafka: the password to log in with.")
    tls: bool = Field(False, description="Kafka: talk TLS to the brokers.")
    tls_ca: str = Field("", description="Kafka: a PEM file of the authorities to trust; empty: those of the system.")
    tls_cert: str = Field("", description="Kafka: a PEM file of our certificate, where brokers ask for one.")
    tls_key: str = Field("", description="Kafka: a PEM file of its key.")


class SpoolSettings(Section):
    """Where large and waiting content lies."""

    url: str = Field(
        "file:var/spool",
        description='"file:DIRECTORY" of this machine; "s3://BUCKET/PREFIX", "gs://BUCKET/PREFIX" or '
        '"az://CONTAINER/PREFIX", an object store that all processes share; or "memory:" for tests.',
    )
    endpoint: str = Field(
        "", description='Where an S3-compatible server listens, "https://HOST:PORT"; empty: the provider\'s own.'
    )
    region: str = Field("", description="The region of an s3:// bucket; empty: AWS_REGION, else us-east-1.")
    access_key: str = Field(
        "",
        description="The id of the access key, or the name of the az:// account. Empty: the provider's usual "
        "credentials, from the environment (AWS_ACCESS_KEY_ID, ...), the pod or the machine.",
    )
    secret_key: Secret = Field(
        SecretStr(""),
        description="The secret of the access key; better as EILPOST_SPOOL__SECRET_KEY than in a file. Never shown.",
    )
    allow_http: bool = Field(
        False, description='Allow an endpoint of "http://": mail crosses the network in clear text.'
    )
    inline_max: Size = Field(
        parse_size("256KiB"), description="Content up to this size rides inside the log's records."
    )
    expire: Duration = Field(
        parse_duration("7d"),
        description="Spooled content is removed at this age, and stays until then whatever became of its message; "
        "longer than router.lifetime.",
    )


class DirectorySettings(Section):
    """Who exists."""

    url: str = Field("file:directory.toml", description='"file:FILE" (TOML), reloaded when it changes.')


class MailboxesSettings(Section):
    """Where delivered mail is kept."""

    url: str = Field(
        "maildir:var/mail", description='"maildir:DIRECTORY", readable by Dovecot; or "memory:" for tests.'
    )


class ResolverSettings(Section):
    """DNS."""

    servers: list[str] = Field([], description='Addresses like "127.0.0.1:5353"; empty: those of the system.')
    timeout: Duration = Field(parse_duration("5s"), description="One question's time, all servers together.")
    cache_max: int = Field(50_000, ge=0, le=10_000_000, description="Answers kept, each for its TTL.")


class IngressSettings(Section):
    """Taking mail by SMTP."""

    mx: str = Field(
        "127.0.0.1:2525",
        description='Where other servers and our clients connect, "HOST:PORT"; empty: not served.',
    )
    relay_networks: list[str] = Field(
        ["127.0.0.0/8", "::1/128"],
        description="Clients from here may send to any domain; everyone else only to ours. At most a /8 (IPv4) or a "
        "/16 (IPv6) each, or fc00::/7 or fe80::/10.",
    )
    max_size: Size = Field(parse_size("25MiB"), description="A larger message is refused (552 5.3.4).")
    max_recipients: int = Field(
        1000, ge=100, le=10_000, description="Recipients in one message; RFC 5321 asks for at least 100."
    )
    max_connections: int = Field(
        1000, ge=1, le=1_000_000, description="Open connections, all clients together; more get 421."
    )
    max_connections_per_client: int = Field(
        50,
        ge=1,
        le=1_000_000,
        description="Open connections from one address; more get 421. Relay networks are exempt.",
    )
    max_errors: int = Field(20, ge=1, le=1000, description="Errors in one session before it is closed with 421.")
    max_hops: int = Field(
        50, ge=1, le=1000, description="Received lines beyond which a message is taken for a loop (554 5.4.6)."
    )
    bytes_in_flight: Size = Field(
        parse_size("128MiB"),
        description="Content in memory, all sessions together; beyond it, content that comes slowly is cut with 421, "
        "and where there is none, new mail gets 452 4.3.1.",
    )
    bytes_in_flight_per_client: Size = Field(
        parse_size("32MiB"),
        description="Of it, from one address; one message of max_size always fits. Relay networks are exempt.",
    )
    sender_domain_must_resolve: bool = Field(
        True,
        description="Refuse senders whose domain has no MX or address. Off: for relay networks without DNS.",
    )
    sender_check_exempts_relay: bool = Field(False, description="Do not look up sender domains for relay networks.")
    vrfy: bool = Field(False, description="Answer VRFY truthfully instead of 252.")
    command_timeout: Duration = Field(
        parse_duration("5m"), description="Waiting for a command (RFC 5321 section 4.5.3.2.7)."
    )
    data_timeout: Duration = Field(
        parse_duration("3m"), description="Waiting for the next part of a message (section 4.5.3.2.5)."
    )


class RouterSettings(Section):
    """Deciding where mail goes, and when again."""

    lifetime: Duration = Field(parse_duration("5d"), description="An undeliverable message is bounced at this age.")
    retry: list[Duration] = Field(
        [parse_duration(text) for text in ("1m", "5m", "15m", "30m", "1h", "2h", "4h")],
        description="Time before each retry, the last one repeated; each wait is drawn between 10 % and 100 % of "
        "its step.",
    )
    window: int = Field(
        1000, ge=1, le=1_000_000, description="Deliveries of one site in hand at the same time; more wait in the queue."
    )
    in_hand_max: int = Field(
        5000, ge=1, le=1_000_000, description="Deliveries of one shard in hand, all sites together."
    )
    window_bytes: Size = Field(
        parse_size("16MiB"), description="Bytes of one site in hand; at least one delivery always is."
    )
    recipients_per_delivery: int = Field(
        100, ge=1, le=1000, description="Recipients in one transaction (RFC 5321 section 4.5.3.1.8)."
    )
    batch: int = Field(200, ge=1, le=100_000, description="Inputs decided on in one commit, at most.")
    alias_depth: int = Field(20, ge=1, le=1000, description="Aliases of aliases, at most.")


class DeliverySettings(Section):
    """Carrying mail to its next hop."""

    relay: str = Field(
        "",
        description='"smtp://HOST:PORT" or "lmtp://HOST:PORT": everything that is not local goes there; empty: by MX.',
    )
    port: int = Field(25, ge=1, le=65535, description="The port of mail exchangers.")
    connections_per_site: int = Field(
        20, ge=1, le=100_000, description="Connections to one site; reached by slow start."
    )
    connections: int = Field(500, ge=1, le=1_000_000, description="Connections, all sites together.")
    in_flight: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Deliveries to other servers this process works on at the same time, sites that have not answered "
        "lately at most half of them; mailboxes have half as many places of their own.",
    )
    in_flight_bytes: Size = Field(parse_size("64MiB"), description="Their content in memory.")
    idle: Duration = Field(parse_duration("5s"), description="An unused connection is closed after this time.")
    messages_per_connection: int = Field(1000, ge=1, le=1_000_000, description="Then a new one is made.")
    connect_timeout: Duration = Field(parse_duration("30s"), description="Making a connection, one address.")
    dead_site: Duration = Field(
        parse_duration("30s"),
        description="A site that cannot be connected to is not tried again for this time.",
    )
    prefer_ipv6: bool = Field(True, description="Try IPv6 addresses of a host before its IPv4 ones.")
    source_addresses: list[str] = Field(
        [],
        description="IPv4 and IPv6 addresses of this machine that outgoing connections are bound to, in turn within "
        "the family of the destination's address; mail never leaves from another one. Empty: the system chooses.",
    )
    ehlo_name: str = Field(
        "",
        description="Our name in EHLO to other servers; DNS should lead from it to the source addresses and back. "
        "Empty: node.hostname.",
    )


class MailstoreSettings(Section):
    """Serving mailboxes to their owners."""

    pop3: str = Field("127.0.0.1:2110", description='POP3, "HOST:PORT"; empty: not served.')
    max_connections: int = Field(500, ge=1, le=1_000_000, description="Open connections; more are turned away.")
    idle: Duration = Field(
        parse_duration("10m"),
        description="A silent client is logged out (RFC 1939 section 3: at least 10 minutes).",
    )


class HttpSettings(Section):
    """Metrics and health."""

    listen: str = Field("127.0.0.1:8025", description='/metrics, /healthz, /readyz, "HOST:PORT"; empty: not served.')


class Settings(Section):
    """The whole file. `mail.settings_file.load` reads it, and the environment over it."""

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
    """The effective settings as plain values, times and sizes with their units."""
    return settings.model_dump(mode="json")
