"""Factory of aiokafka clients with our addresses, security, time-outs and workarounds.

Every client of a process is made here, so that each uses TLS, the same time-outs and the circuit breaker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import create_conn

import mail.log.kafka.aiokafka_compat.patches  # noqa: F401
from mail.endpoint import parse_brokers
from mail.log import LogNotAuthorized, LogUnavailable
from mail.log.kafka.aiokafka_compat.circuits import install_circuit_breaker
from mail.log.kafka.aiokafka_compat.clients import client_of
from mail.log.kafka.certificates import Certificates
from mail.log.kafka.circuit_breaker import CircuitBreaker
from mail.log.kafka.error_messages import error_message as error_message
from mail.log.kafka.error_messages import is_refusal as is_refusal
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import TOPICS, Topic, Topics
from mail.settings import LogSettings

RECORD_BYTES_MAX = 16 << 20  # an envelope of 10,000 recipients plus content; `max.message.bytes` of our topics
BATCH_BYTES = 900_000  # approximate size of a produce batch; below the broker's default for batches that it copies

KafkaError = errors.KafkaError
# aiokafka raises time-outs and operating system errors unchanged.
CLIENT_ERRORS = (errors.KafkaError, errors.ConsumerStoppedError, errors.IllegalOperation, TimeoutError, OSError)


def unavailable(subject: str, error: BaseException, operation: str = "", name: str = "") -> LogUnavailable:
    """`subject`: what is unavailable; `operation` and `name` as in `error_message`."""
    kind = LogNotAuthorized if is_refusal(error) else LogUnavailable
    return kind(f"{subject}: {error_message(error, operation, name)}")


@dataclass(frozen=True, slots=True)
class Access:
    """Addresses, names and security of the brokers. `bootstrap_servers` are "host:port"; `prefix` precedes every topic,
    group and transactional id; `tenant` is the dedicated tenant that owns these topics.
    """

    bootstrap_servers: tuple[str, ...]
    prefix: str
    security: Mapping[str, Any] = field(repr=False)  # contains the password
    circuit_breaker: CircuitBreaker = field(repr=False, compare=False)
    tenant: str = ""
    certificates: Certificates | None = field(default=None, repr=False, compare=False)  # with TLS
    topics: Topics = TOPICS

    def client_options(self, request_seconds: float = TIMEOUTS.request_seconds) -> dict[str, Any]:
        """The arguments of every aiokafka client."""
        return {
            "bootstrap_servers": self.circuit_breaker.available(self.bootstrap_servers),
            "client_id": "eilpost",
            "request_timeout_ms": int(request_seconds * 1000),
            "metadata_max_age_ms": int(TIMEOUTS.metadata_seconds * 1000),
            **self.security,
        }

    def consumer(self, request_seconds: float = TIMEOUTS.request_seconds, **options: Any) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(**options, **self.client_options(request_seconds))
        install_circuit_breaker(client_of(consumer), self.circuit_breaker)
        return consumer

    def producer(self, request_seconds: float = TIMEOUTS.request_seconds, **options: Any) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(**options, **self.client_options(request_seconds))
        install_circuit_breaker(producer.client, self.circuit_breaker)
        return producer

    def admin(self) -> AIOKafkaAdminClient:
        admin = AIOKafkaAdminClient(**self.client_options())
        install_circuit_breaker(client_of(admin), self.circuit_breaker)
        return admin

    @property
    def url(self) -> str:
        return f"kafka://{','.join(self.bootstrap_servers)}"

    @property
    def log_prefix(self) -> str:
        """`log.prefix`, from which a dedicated tenant's prefix is derived."""
        return self.prefix.removesuffix(f"{self.tenant}.") if self.tenant else self.prefix

    def topic(self, topic: Topic) -> str:
        """The topic's name at the brokers."""
        return self.prefix + topic.name

    def partition(self, topic: Topic, shard: int) -> TopicPartition:
        return TopicPartition(self.topic(topic), shard)

    def group(self, role: str) -> str:
        """The consumer group of a role."""
        return f"{self.prefix}{role}"


def make_access(settings: LogSettings, tenant: str = "", topics: Topics = TOPICS) -> Access:
    """Raises LogUnusable for certificates that cannot be read, ValueError for the URL."""
    certificates = Certificates(settings) if settings.tls else None
    security = _security(settings, certificates)

    async def connect(host: str, port: int) -> None:
        (await create_conn(host, port, client_id="eilpost", **security)).close()

    circuit_breaker = CircuitBreaker(connect)
    brokers = parse_brokers(settings.url)
    return Access(brokers, settings.prefix, security, circuit_breaker, tenant, certificates, topics)


def _security(settings: LogSettings, certificates: Certificates | None) -> dict[str, Any]:
    security: dict[str, Any] = {}
    if settings.sasl_mechanism:
        security = {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value(),
        }
    if certificates is not None:
        security["ssl_context"] = certificates.context
    protocol = "SSL" if settings.tls else "PLAINTEXT"
    security["security_protocol"] = f"SASL_{protocol}" if settings.sasl_mechanism else protocol
    return security
