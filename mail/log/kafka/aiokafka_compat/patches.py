"""Patches of aiokafka's classes, for every client of the process. Importing this module installs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import aiokafka.client
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest
from aiokafka.protocol.metadata import MetadataRequest

from mail.log.kafka.timeouts import TIMEOUTS

Send = Callable[..., Any]


def raise_connection_error(send: Send) -> Send:
    """A write to a connection that was just reset raises KafkaConnectionError, not RuntimeError.

    uvloop raises RuntimeError until the protocol has been notified of the reset, two loop iterations later; asyncio's
    loop does not. The RuntimeError ends any aiokafka task, and after the end of the metadata task every wait for
    metadata is endless. A process that was stopped while its connections were reset nearly always encounters it,
    because all its timers are due in the iteration in which it is notified.
    Upstream: aiokafka issue 1038, uvloop issue 506 (open). Remove when aiokafka's `send` handles RuntimeError, or
    uvloop's `write` does not raise it.
    """

    @wraps(send)
    def safe_send(connection: AIOKafkaConnection, *arguments: Any, **options: Any) -> Any:
        try:
            return send(connection, *arguments, **options)
        except RuntimeError as error:
            connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
            raise KafkaConnectionError(f"Connection at {connection.host}:{connection.port} broken: {error}") from error

    return safe_send


def wait_longer_for_joins(send: Send) -> Send:
    """A join waits as long as a rebalance takes; every other request has the client's time-out.

    aiokafka waits equally long for every response. With a time-out shorter than a rebalance members join again and
    again; with a longer one a coordinator that hangs is not replaced within the session timeout.
    Upstream: none found for aiokafka; Kafka's Java client does it since KAFKA-5570. Remove when aiokafka has a time-out
    for joins.
    """

    @wraps(send)
    def send_join(connection: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
        request_timeout = connection._request_timeout
        if isinstance(request, JoinGroupRequest | SyncGroupRequest):
            connection._request_timeout = TIMEOUTS.join_seconds
        try:
            return send(connection, request, expect_response)
        finally:
            connection._request_timeout = request_timeout

    return send_join


AIOKafkaConnection.send = raise_connection_error(wait_longer_for_joins(AIOKafkaConnection.send))
AIOKafkaConnection._send_sasl_token = raise_connection_error(AIOKafkaConnection._send_sasl_token)

# Clients request the metadata of their topics repeatedly, and by Kafka's default a request creates a missing topic: a
# deleted topic came back with one replica and a retention of a week. A missing topic must be reported instead.
# Upstream: none found. Remove when clients have an option for it, as `allow.auto.create.topics` of Kafka's consumer.
aiokafka.client.MetadataRequest = partial(MetadataRequest, allow_auto_topic_creation=False)

# aiokafka decodes the response as version 2, and drops the connection when it describes a second group.
# Upstream: none found. Remove when the request names the response of its version.
DescribeGroupsRequest_v3.RESPONSE_TYPE = DescribeGroupsResponse_v3
