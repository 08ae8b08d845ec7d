"""What went wrong at the brokers, in plain words: a sentence for every error of aiokafka that a person may meet.

aiokafka's errors are names of classes, often without a word beside; they mean something to who knows Kafka's protocol.
A line of ours says what is so, and where a person can do something, what. Never here: whether to try again.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiokafka import errors

_NOT_IN_TIME = "the brokers did not answer in time"
_LEADER_ELECTION = "the leader of a partition is being chosen anew"
_COORDINATOR_CHANGE = "the group's coordinator is being chosen anew"
_NOT_A_MEMBER = "the group has gone on without this process"
_NO_CONNECTION = "there is no connection to the brokers"
_TOO_FEW_REPLICAS = "fewer replicas are in sync than min.insync.replicas asks for: start the missing brokers"
_TOO_LARGE = "a record is larger than the topic takes: raise its max.message.bytes"
_FENCED = "another process has taken this shard over"
_DAMAGED = "records came damaged from a broker: look at its disks and at the network"
_INVALID_REQUEST = "the broker does not take what we asked: please report it"
_NO_ACCESS = "not authorized"
_TOO_MUCH_METADATA = "the metadata of an offset is larger than the brokers' offset.metadata.max.bytes: raise that"
_LOGIN_REFUSED = "the log-in was refused: correct log.sasl_username and log.sasl_password"

# What the brokers' authorizer refused: the kind of resource, and the operation where the caller names no other.
_REFUSED: Mapping[type[BaseException], tuple[str, str]] = {
    errors.TopicAuthorizationFailedError: ("topic", "Describe"),
    errors.GroupAuthorizationFailedError: ("group", "Read"),
    errors.TransactionalIdAuthorizationFailed: ("transactional id", "Write"),
    errors.ClusterAuthorizationFailedError: ("cluster", "Describe"),
}

# A subclass may stand beside its base: the error's own class is looked up first.
ERROR_MESSAGES: Mapping[type[BaseException], str] = {
    TimeoutError: _NOT_IN_TIME,
    errors.KafkaTimeoutError: _NOT_IN_TIME,
    errors.RequestTimedOutError: _NOT_IN_TIME,
    errors.NodeNotReadyError: "a broker that the others still count in does not answer",
    errors.BrokerNotAvailableError: "a broker that the others still count in does not answer",
    # The network.
    errors.KafkaConnectionError: _NO_CONNECTION,
    errors.KafkaUnavailableError: _NO_CONNECTION,
    errors.NoBrokersAvailable: _NO_CONNECTION,
    errors.Cancelled: "the connection to a broker was closed",
    errors.TooManyInFlightRequests: "a broker does not keep up with its requests",
    errors.CorrelationIdError: "a broker answered another question: what listens there may be no Kafka",
    errors.KafkaProtocolError: "a broker's answer cannot be read: what listens there may be no Kafka",
    errors.MetadataEmptyBrokerList: "the cluster names no broker: wait until its brokers have started",
    errors.UnrecognizedBrokerVersion: "the broker is of a release that this client does not know",
    errors.IncompatibleBrokerVersion: "the broker is of a release that this client cannot talk to: use Kafka 4.x",
    errors.UnsupportedVersionError: "the broker is of a release that this client cannot talk to: use Kafka 4.x",
    # Topics and partitions.
    errors.UnknownTopicOrPartitionError: (
        "a topic or partition is missing: run `eilpost topics create`, or correct log.prefix"
    ),
    errors.InvalidTopicError: "the name of a topic is not allowed: correct log.prefix",
    errors.TopicAlreadyExistsError: "the topic is there already",
    errors.InvalidPartitionsError: "the brokers do not take this number of partitions: see log.shards",
    errors.InvalidReplicationFactorError: (
        "there are fewer brokers than replicas are asked for: start the others, or lower log.replication"
    ),
    errors.InvalidReplicationAssignmentError: "the brokers do not take this number of replicas: see log.replication",
    errors.InvalidConfigurationError: "the brokers do not take a topic's configuration",
    errors.PolicyViolationError: "a policy of the cluster forbids it (create.topic.policy.class.name and the like)",
    errors.ReassignmentInProgress: "a partition is being moved to other brokers: wait until that is done",
    errors.LeaderNotAvailableError: _LEADER_ELECTION,
    errors.NotLeaderForPartitionError: _LEADER_ELECTION,
    errors.ReplicaNotAvailableError: _LEADER_ELECTION,
    errors.StaleLeaderEpochCodeError: _LEADER_ELECTION,
    errors.StaleMetadata: _LEADER_ELECTION,
    errors.ListenerNotFound: "a broker has no listener of the kind that log.url names: see its advertised.listeners",
    errors.NotControllerError: "the cluster's controller is being chosen anew",
    errors.StaleControllerEpochError: "the cluster's controller is being chosen anew",
    # Records.
    errors.NotEnoughReplicasError: _TOO_FEW_REPLICAS,
    errors.NotEnoughReplicasAfterAppendError: _TOO_FEW_REPLICAS,
    errors.MessageSizeTooLargeError: _TOO_LARGE,
    errors.RecordTooLargeError: _TOO_LARGE,
    errors.RecordListTooLargeError: "a batch is larger than a segment of the topic: raise its segment.bytes",
    errors.CorruptRecordException: _DAMAGED,
    errors.InvalidFetchRequestError: _DAMAGED,
    errors.InvalidTimestampError: "the topic does not take our times: set its message.timestamp.type to LogAppendTime",
    errors.OffsetOutOfRangeError: "what was to be read next is not there any more: the topic was cut or made anew",
    errors.NoOffsetForPartitionError: "what was to be read next is not there any more: the topic was cut or made anew",
    errors.UnsupportedCodecError: "records are packed in a way we cannot read: set compression.type = producer",
    errors.UnsupportedForMessageFormatError: "the topic's records are of an old format: use Kafka 4.x",
    errors.KafkaStorageError: "a broker cannot use its disk: look at its logs",
    errors.LogDirNotFound: "a broker cannot use its disk: look at its logs",
    errors.UnknownError: "a broker failed and does not say how: look at its logs",
    # Groups.
    errors.GroupLoadInProgressError: _COORDINATOR_CHANGE,
    errors.GroupCoordinatorNotAvailableError: _COORDINATOR_CHANGE,
    errors.NotCoordinatorForGroupError: _COORDINATOR_CHANGE,
    errors.IllegalGenerationError: _NOT_A_MEMBER,
    errors.UnknownMemberIdError: _NOT_A_MEMBER,
    errors.CommitFailedError: _NOT_A_MEMBER,
    errors.RebalanceInProgressError: "the group is sharing its shards out anew",
    errors.MemberIdRequired: "the group is sharing its shards out anew",
    errors.InconsistentGroupProtocolError: "the group has members of another program: use another log.prefix",
    errors.InvalidGroupIdError: "the brokers do not take the name of the group: correct log.prefix",
    errors.InvalidSessionTimeoutError: (
        "the brokers do not take log.session_timeout: it has to lie between their group.min.session.timeout.ms and"
        " group.max.session.timeout.ms"
    ),
    errors.OffsetMetadataTooLargeError: _TOO_MUCH_METADATA,
    errors.InvalidCommitOffsetSizeError: _TOO_MUCH_METADATA,
    # Transactions.
    errors.ProducerFenced: _FENCED,
    errors.InvalidProducerEpoch: _FENCED,
    errors.InvalidProducerIdMapping: _FENCED,
    errors.TransactionCoordinatorFenced: "the coordinator of transactions is being chosen anew",
    errors.ConcurrentTransactions: "the last transaction is still being ended",
    errors.InvalidTxnState: "the transaction was ended by the broker",
    errors.UnknownProducerId: "the broker has forgotten this producer",
    errors.OutOfOrderSequenceNumber: "a batch before this one is missing at the broker",
    errors.DuplicateSequenceNumber: "the broker has this batch already",
    errors.InvalidTransactionTimeout: "transaction.max.timeout.ms of the brokers is less than 15 s: raise it",
    errors.ProducerClosed: "the producer is closed",
    # Who may.
    **dict.fromkeys(_REFUSED, _NO_ACCESS),
    errors.AuthenticationFailedError: _LOGIN_REFUSED,
    errors.SaslAuthenticationFailed: _LOGIN_REFUSED,
    errors.AuthenticationMethodNotSupported: "the broker does not take this way to log in: see log.sasl_mechanism",
    errors.UnsupportedSaslMechanismError: "the broker does not take this way to log in: see log.sasl_mechanism",
    errors.IllegalSaslStateError: "the broker asks for no log-in, or for another one: see log.sasl_mechanism",
    errors.SecurityDisabled: "the brokers have no access rules to change",
    errors.QuotaViolationError: "the brokers' quota for this user is used up",
    # What ends with its client, or should not be.
    errors.ConsumerStoppedError: "the reader is closed",
    errors.IllegalStateError: "the reader is not a member of its group",
    errors.IllegalArgumentError: _INVALID_REQUEST,
    errors.IllegalOperation: _INVALID_REQUEST,
    errors.InvalidRequiredAcksError: _INVALID_REQUEST,
    errors.InvalidRequestError: _INVALID_REQUEST,
    errors.KafkaConfigurationError: _INVALID_REQUEST,
    errors.OperationNotAttempted: "the broker did not get to it",
}
# Their text says more: which connection, which topic.
_WITH_TEXT = (errors.KafkaConnectionError, errors.UnknownTopicOrPartitionError)


def is_refusal(error: BaseException) -> bool:
    """Whether the brokers' authorizer refused it."""
    return isinstance(error, tuple(_REFUSED))


def error_message(error: BaseException, operation: str = "", name: str = "") -> str:
    """What went wrong, in plain words; never the name of a class. `operation` and `name` say what was asked of which
    topic, as ACLs name it; an error whose second argument is an operation knows better.
    """
    if is_refusal(error):
        return _refusal(error, operation, name)
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return error.strerror or _arguments_text(error) or _NO_CONNECTION
    for kind in type(error).__mro__:
        if kind in ERROR_MESSAGES:
            text = _arguments_text(error) if isinstance(error, _WITH_TEXT) else ""
            return f"{ERROR_MESSAGES[kind]} ({text})" if text else ERROR_MESSAGES[kind]
    if isinstance(error, errors.BrokerResponseError):
        return f"a broker refuses it with error {error.errno} of Kafka's protocol"
    return _arguments_text(error) or "the Kafka client failed and does not say how: please report it"


def _refusal(error: BaseException, operation: str, name: str) -> str:
    resource, usual = next(words for kind, words in _REFUSED.items() if isinstance(error, kind))
    if resource != "topic":
        operation = ""
    operation = str(error.args[1]) if len(error.args) > 1 else operation or usual
    on = f"{resource} {name or _resource_name(error)}".strip()
    return f'{_NO_ACCESS}: give this user the ACL {operation} on {on} (docs/kafka.md, "Access rights")'


def _resource_name(error: BaseException) -> str:
    """The resource that aiokafka names: alone, in a set, in a TopicPartition, or behind "id for"."""
    match error.args[:1]:
        case (set() as names,):
            return ", ".join(sorted(names))
        case ((str() as topic, int()),):
            return topic
        case (str() as text,):
            return text.rpartition(" id for ")[2]
    return ""


def _arguments_text(error: BaseException) -> str:
    """What was said beside its name."""
    return " ".join(" ".join(map(str, error.args)).split())
