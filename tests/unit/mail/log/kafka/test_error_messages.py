"""Errors of aiokafka in plain words: every one of them is a sentence, and none the name of a class."""

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
# They are of what eilpost does not use, or no errors at all.
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
def test_a_plain_sentence_for_every_error(kind: type[Exception]) -> None:
    told = error_message(kind())
    assert told
    assert not _CLASS_NAME.search(told), told
    assert "\n" not in told


def test_a_refusal_names_the_right_that_the_caller_needs() -> None:
    told = error_message(errors.TopicAuthorizationFailedError(), "Write", "mail.queue")
    assert told == ('not authorized: give this user the ACL Write on topic mail.queue (docs/kafka.md, "Access rights")')


def test_every_error_that_may_be_met_is_in_the_table() -> None:
    assert set(EVERY_ERROR) - set(ERROR_MESSAGES) == _NOT_MET


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TimeoutError(), "the brokers did not answer in time"),
        (errors.UnknownTopicOrPartitionError(), "run `eilpost topics create`, or correct log.prefix"),
        (errors.UnknownTopicOrPartitionError("mail.queue, partition 3"), "(mail.queue, partition 3)"),
        (errors.KafkaConnectionError("No connection to node with id 1"), "(No connection to node with id 1)"),
        (errors.NotEnoughReplicasError(), "start the missing brokers"),
        (errors.InvalidSessionTimeoutError(), "log.session_timeout"),
        (errors.NonEmptyGroup(), "a broker refuses it with error 68 of Kafka's protocol"),
        (errors.KafkaError("Unable to\nfind it"), "Unable to find it"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError(), "there is no connection to the brokers"),
        (errors.KafkaError(), "please report it"),
        (errors.GroupAuthorizationFailedError("mail.router"), "the ACL Read on group mail.router (docs/"),
        (errors.GroupAuthorizationFailedError("Unable to get coordinator id for mail.router"), "group mail.router ("),
        (errors.TransactionalIdAuthorizationFailed("mail.router-0"), "Write on transactional id mail.router-0 ("),
        (errors.TopicAuthorizationFailedError(TopicPartition("mail.queue", 3)), "Describe on topic mail.queue ("),
        (errors.TopicAuthorizationFailedError({"mail.queue", "mail.events"}), "on topic mail.events, mail.queue ("),
        (errors.TopicAuthorizationFailedError("mail.queue", "Alter"), "Alter on topic mail.queue ("),
        (errors.TopicAuthorizationFailedError(), "Describe on topic ("),
    ],
)
def test_what_it_says(error: Exception, told: str) -> None:
    assert told in error_message(error)
