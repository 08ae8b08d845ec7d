"""Messages for aiokafka's errors: each is a sentence, and none a class name."""

from __future__ import annotations

import inspect
import re

import pytest
from aiokafka import TopicPartition, errors

from mail.log.kafka.error_messages import ERROR_MESSAGES, error_message

EVERY_ERROR = sorted(
    {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)},
    key=lambda kind: kind.__name__,
)
_CLASS_NAME = re.compile("|".join(rf"\b{kind.__name__}\b" for kind in EVERY_ERROR if kind.__name__ != "Cancelled"))
# Not errors, or errors of features that eilpost does not use.
_NOT_MET = {
    errors.KafkaError,
    errors.BrokerResponseError,
    errors.NoError,
    errors.DelegationTokenAuthDisabled,
    errors.DelegationTokenNotFound,
    errors.DelegationTokenOwnerMismatch,
    errors.DelegationTokenRequestNotAllowed,
    errors.DelegationTokenAuthorizationFailed,
    errors.DelegationTokenExpired,
    errors.InvalidPrincipalType,
    errors.NonEmptyGroup,
    errors.GroupIdNotFound,
    errors.FetchSessionIdNotFound,
    errors.InvalidFetchSessionEpoch,
}


@pytest.mark.parametrize(
    "kind", [kind for kind in EVERY_ERROR if kind is not errors.BrokerResponseError], ids=lambda kind: kind.__name__
)
def test_every_error_has_a_sentence_without_class_names(kind: type[Exception]) -> None:
    message = error_message(kind())
    assert message
    assert not _CLASS_NAME.search(message), message
    assert "\n" not in message


def test_a_refusal_names_the_missing_acl() -> None:
    message = error_message(errors.TopicAuthorizationFailedError(), "Write", "mail.queue")
    assert message == (
        'not authorized: give this user the ACL Write on topic mail.queue (docs/kafka.md, "Access rights")'
    )


def test_every_error_of_aiokafka_is_in_the_table() -> None:
    assert set(EVERY_ERROR) - set(ERROR_MESSAGES) == _NOT_MET


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TimeoutError(), "the brokers did not answer in time"),
        (errors.UnknownTopicOrPartitionError(), "run `eilpost topics create`, or correct log.prefix"),
        (errors.UnknownTopicOrPartitionError("mail.queue, partition 3"), "(mail.queue, partition 3)"),
        (errors.KafkaConnectionError("No connection to node with id 1"), "(No connection to node with id 1)"),
        (errors.NotEnoughReplicasError(), "start the missing brokers"),
        (errors.InvalidSessionTimeoutError(), "log.session_timeout"),
        (errors.NonEmptyGroup(), "a broker returned error 68 of Kafka's protocol"),
        (errors.KafkaError("Unable to\nfind it"), "Unable to find it"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError(), "no connection to the brokers"),
        (errors.KafkaError(), "please report this"),
        (errors.GroupAuthorizationFailedError("mail.router"), "the ACL Read on group mail.router (docs/"),
        (errors.GroupAuthorizationFailedError("Unable to get coordinator id for mail.router"), "group mail.router ("),
        (errors.TransactionalIdAuthorizationFailed("mail.router-0"), "Write on transactional id mail.router-0 ("),
        (errors.TopicAuthorizationFailedError(TopicPartition("mail.queue", 3)), "Describe on topic mail.queue ("),
        (errors.TopicAuthorizationFailedError({"mail.queue", "mail.events"}), "on topic mail.events, mail.queue ("),
        (errors.TopicAuthorizationFailedError("mail.queue", "Alter"), "Alter on topic mail.queue ("),
        (errors.TopicAuthorizationFailedError(), "Describe on topic ("),
    ],
)
def test_messages_of_individual_errors(error: Exception, message: str) -> None:
    assert message in error_message(error)
