"""Settings model: every section and key with its type, default and description.

`mail/settings_file.py` reads and checks the TOML file and the environment (`EILPOST_LOG__URL` overrides `[log] url`).
The sections of the roles are in `mail/settings_roles.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr

from mail.settings_roles import DeliverySettings, IngressSettings, MailstoreSettings, RouterSettings
from mail.settings_section import Duration, Secret, Section, Size
from mail.units import parse_duration, parse_size


class NodeSettings(Section):
    """Identity, logs and shutdown of the process."""

    hostname: str = "localhost"
    """Fully qualified host name for the SMTP greeting, EHLO, Received and DSNs. Set the name that DNS maps to this
    server.
    """
    log_level: str = "info"
    """Least severe log lines that are written: debug, info, warning or error. info has a line for each message and
    attempt; debug is for the search of a fault.
    """
    log_format: str = "auto"
    """ "json", "text" or "auto" (text on a terminal, else json)."""
    drain_timeout: Duration = parse_duration("30s")
    """Time limit for open sessions and deliveries at shutdown. No accepted mail is lost at its end. Change it together
    with the time limit of the service manager (TimeoutStopSec), which has to be at least 10 seconds longer.
    """


class LogSettings(Section):
    """Message log: the durable store of accepted mail."""

    url: str = "embedded:var/log.db"
    """ "embedded:FILE" for one process, "kafka://HOST:PORT,HOST:PORT" for a cluster, or "memory:" for tests (mail is
    lost at exit).
    """
    shards: int = Field(0, ge=0, le=1024)
    """Number of router shards, which is the maximum number of router processes with work; fixed when the log is
    created. 0: the number of the existing log; for a new log 1, on Kafka 12.
    """
    delivery_shards: int = Field(0, ge=0, le=1024)
    """Number of delivery shards (partitions of `dispatched`), which is the maximum number of delivery processes with
    work; on Kafka it can be increased later. 0: as for shards.
    """
    append_timeout: Duration = parse_duration("20s")
    """Time limit for an append to the log; after it the client gets 451 and sends the message again. Keep it longer
    than a failover of the brokers (about 10 s) and shorter than the 10 minutes that clients wait.
    """
    events_retention: Duration = parse_duration("7d")
    """Retention of message histories (`eilpost trace`). On Kafka a history needs about 1.1 kB of disk for each message
    and replica.
    """
    max_unrouted_messages: int = Field(1_000_000, ge=1, le=1_000_000_000)
    """Maximum number of unrouted messages; above it new mail gets 452. Each dedicated tenant is counted separately.
    Decrease it where the disk of the log has no room for as many messages.
    """
    min_free_disk: Size = parse_size("256MiB")
    """Minimum free disk space for an embedded log and a spool directory; below it new mail gets 452, and accepted mail
    is still delivered. Increase it where other programs write to the disk.
    """
    prefix: str = "mail."
    """Kafka: prefix of topic names, group ids and transactional ids. Change it for a second installation on the same
    brokers.
    """
    durability: Literal["safe", "dev"] = "safe"
    """Kafka: "safe" refuses to start with topics whose configuration could lose mail; "dev" accepts them, for trials
    only.
    """
    replication: int = Field(3, ge=1, le=9)
    """Kafka: replication factor for `eilpost topics create`. Less than 3 can lose mail with a lost broker."""
    session_timeout: Duration = parse_duration("7s")
    """Kafka: a process that sends no heartbeat for this time loses its shards to others; 6s to 1m. Increase it where
    processes pause for seconds; the mail of a killed process waits as long.
    """
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    """Kafka: SASL mechanism; needs sasl_username and sasl_password. Empty: no authentication."""
    sasl_username: str = ""
    """Kafka: SASL user name."""
    sasl_password: Secret = SecretStr("")
    """Kafka: SASL password. Prefer the variable EILPOST_LOG__SASL_PASSWORD to this file."""
    tls: bool = False
    """Kafka: use TLS to connect to the brokers."""
    tls_ca: str = ""
    """Kafka: PEM file of the trusted CA certificates; empty: the system's. Set it where the brokers have certificates
    of a private CA.
    """
    tls_cert: str = ""
    """Kafka: PEM file of the client certificate, if the brokers require one."""
    tls_key: str = ""
    """Kafka: PEM file of the client certificate's private key."""


class SpoolSettings(Section):
    """Storage for the content of large messages and of deliveries that wait in the queue."""

    url: str = "file:var/spool"
    """ "file:DIRECTORY" on this machine; "s3://BUCKET/PREFIX", "gs://BUCKET/PREFIX" or "az://CONTAINER/PREFIX" for an
    object store; or "memory:" for tests. All processes of a cluster must use the same storage.
    """
    endpoint: str = ""
    """ "https://HOST:PORT" of an S3-compatible server; empty: the endpoint of the provider."""
    region: str = ""
    """Region of an s3:// bucket; empty: AWS_REGION, else us-east-1."""
    access_key: str = ""
    """Access key id, or the name of the az:// account. Empty: the provider's default credentials, from the environment
    (AWS_ACCESS_KEY_ID, ...), the pod or the machine.
    """
    secret_key: Secret = SecretStr("")
    """Secret of the access key. Prefer the variable EILPOST_SPOOL__SECRET_KEY to this file."""
    allow_http: bool = False
    """Allow an "http://" endpoint: mail crosses the network unencrypted."""
    max_inline_size: Size = parse_size("256KiB")
    """Maximum size of content stored in log records; larger content goes to the spool. On Kafka at most 4MiB; larger
    records need more memory in the brokers.
    """
    retention: Duration = parse_duration("7d")
    """Age after which spooled content is deleted; content that is newer than the oldest open delivery (held ones
    included) is kept. Must be longer than router.queue_lifetime. Decrease both where content has to be removed sooner.
    """


class DirectorySettings(Section):
    """Domains, users, aliases and tenants."""

    url: str = "file:directory.toml"
    """ "file:FILE": a TOML file, reloaded when it changes."""


class MailboxesSettings(Section):
    """Storage of delivered mail."""

    url: str = "maildir:var/mail"
    """ "maildir:DIRECTORY" (readable by Dovecot), or "memory:" for tests."""


class ResolverSettings(Section):
    """DNS."""

    servers: list[str] = Field([])
    """Name servers, like "127.0.0.1:5353"; empty: the system's. Set a caching resolver on this machine or network."""
    timeout: Duration = parse_duration("5s")
    """Time limit for one query over all name servers. Mail whose query gets no answer is tried again later."""
    max_cache_entries: int = Field(50_000, ge=0, le=10_000_000)
    """Maximum number of cached answers; 0: no cache. Increase it where the cache misses of many domains load the name
    servers.
    """


class HttpSettings(Section):
    """Metrics and health over HTTP."""

    listen: str = "127.0.0.1:8025"
    """Listen address for /metrics, /healthz and /readyz, "HOST:PORT"; empty: disabled. There is no authentication: on
    other addresses than loopback, protect the port by a firewall.
    """


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
