"""Messages for operators, for every error that aiokafka may raise.

aiokafka's errors are class names of Kafka's protocol, often without a text. A message here says what failed and, where
an operator can act, what to do.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiokafka import errors

_NOT_IN_TIME = "the brokers did not answer in time"
_LEADER_ELECTION = "a partition is electing a new leader"
_COORDINATOR_CHANGE = "the group's coordinator is moving to another broker"
_NOT_A_MEMBER = "the group no longer counts this process as a member"
_NO_CONNECTION = "no connection to the brokers"
_TOO_FEW_REPLICAS = "fewer replicas are in sync than min.insync.replicas requires: start the missing brokers"
_TOO_LARGE = "a record is larger than the topic allows: raise its max.message.bytes"
_FENCED = "another process has taken over this shard"
_DAMAGED = "a broker returned damaged records: check its disks and the network"
_INVALID_REQUEST = "the broker refuses an invalid request: please report this"
_NO_ACCESS = "not authorized"
_TOO_MUCH_METADATA = "the metadata of an offset is larger than the brokers' offset.metadata.max.bytes: raise that"
_LOGIN_REFUSED = "authentication failed: correct log.sasl_username and log.sasl_password"

# Refused by the brokers' authorizer: the kind of resource, and the operation unless the caller names one.
_REFUSED: Mapping[type[BaseException], tuple[str, str]] = {
    errors.TopicAuthorizationFailedError: ("topic", "Describe"),
    errors.GroupAuthorizationFailedError: ("group", "Read"),
    errors.TransactionalIdAuthorizationFailed: ("transactional id", "Write"),
    errors.ClusterAuthorizationFailedError: ("cluster", "Describe"),
}

# An error's own class is looked up before its base classes.
ERROR_MESSAGES: Mapping[type[BaseException], str] = {
    TimeoutError: _NOT_IN_TIME,
    errors.KafkaTimeoutError: _NOT_IN_TIME,
    errors.RequestTimedOutError: _NOT_IN_TIME,
    errors.NodeNotReadyError: "a broker does not respond, and the cluster still lists it",
    errors.BrokerNotAvailableError: "a broker does not respond, and the cluster still lists it",
    # The network.
    errors.KafkaConnectionError: _NO_CONNECTION,
    errors.KafkaUnavailableError: _NO_CONNECTION,
    errors.NoBrokersAvailable: _NO_CONNECTION,
    errors.Cancelled: "the connection to a broker was closed",
    errors.TooManyInFlightRequests: "a broker does not keep up with its requests",
    errors.CorrelationIdError: "a broker answered another request: the server there may not be Kafka",
    errors.KafkaProtocolError: "a broker's response cannot be decoded: the server there may not be Kafka",
    errors.MetadataEmptyBrokerList: "the cluster lists no broker: wait until its brokers have started",
    errors.UnrecognizedBrokerVersion: "the client does not know this broker's release",
    errors.IncompatibleBrokerVersion: "the client does not support this broker's release: use Kafka 4.x",
    errors.UnsupportedVersionError: "the client does not support this broker's release: use Kafka 4.x",
    # Topics and partitions.
    errors.UnknownTopicOrPartitionError: (
        "a topic or partition is missing: run `eilpost topics create`, or correct log.prefix"
    ),
    errors.InvalidTopicError: "the name of a topic is not allowed: correct log.prefix",
    errors.TopicAlreadyExistsError: "the topic exists already",
    errors.InvalidPartitionsError: "the brokers refuse this number of partitions: see log.shards",
    errors.InvalidReplicationFactorError: (
        "fewer brokers are running than replicas are required: start the others, or lower log.replication"
    ),
    errors.InvalidReplicationAssignmentError: "the brokers refuse this number of replicas: see log.replication",
    errors.InvalidConfigurationError: "the brokers refuse a topic's configuration",
    errors.PolicyViolationError: "a policy of the cluster forbids it (create.topic.policy.class.name and the like)",
    errors.ReassignmentInProgress: "a partition is being moved to other brokers: wait for its end",
    errors.LeaderNotAvailableError: _LEADER_ELECTION,
    errors.NotLeaderForPartitionError: _LEADER_ELECTION,
    errors.ReplicaNotAvailableError: _LEADER_ELECTION,
    errors.StaleLeaderEpochCodeError: _LEADER_ELECTION,
    errors.StaleMetadata: _LEADER_ELECTION,
    errors.ListenerNotFound: "a broker has no listener for the protocol of log.url: see its advertised.listeners",
    errors.NotControllerError: "the cluster is electing a new controller",
    errors.StaleControllerEpochError: "the cluster is electing a new controller",
    # Records.
    errors.NotEnoughReplicasError: _TOO_FEW_REPLICAS,
    errors.NotEnoughReplicasAfterAppendError: _TOO_FEW_REPLICAS,
    errors.MessageSizeTooLargeError: _TOO_LARGE,
    errors.RecordTooLargeError: _TOO_LARGE,
    errors.RecordListTooLargeError: "a batch is larger than a segment of the topic: raise its segment.bytes",
    errors.CorruptRecordException: _DAMAGED,
    errors.InvalidFetchRequestError: _DAMAGED,
    errors.InvalidTimestampError: "the topic refuses our timestamps: set its message.timestamp.type to LogAppendTime",
    errors.OffsetOutOfRangeError: "the next offset does not exist: the topic was truncated or recreated",
    errors.NoOffsetForPartitionError: "the next offset does not exist: the topic was truncated or recreated",
    errors.UnsupportedCodecError: "records have an unsupported compression: set compression.type = producer",
    errors.UnsupportedForMessageFormatError: "the topic's records have an old format: use Kafka 4.x",
    errors.KafkaStorageError: "a broker cannot use its disk: see its logs",
    errors.LogDirNotFound: "a broker cannot use its disk: see its logs",
    errors.UnknownError: "a broker failed without a reason: see its logs",
    # Groups.
    errors.GroupLoadInProgressError: _COORDINATOR_CHANGE,
    errors.GroupCoordinatorNotAvailableError: _COORDINATOR_CHANGE,
    errors.NotCoordinatorForGroupError: _COORDINATOR_CHANGE,
    errors.IllegalGenerationError: _NOT_A_MEMBER,
    errors.UnknownMemberIdError: _NOT_A_MEMBER,
    errors.CommitFailedError: _NOT_A_MEMBER,
    errors.RebalanceInProgressError: "the group is rebalancing",
    errors.MemberIdRequired: "the group is rebalancing",
    errors.InconsistentGroupProtocolError: "the group has members that are not eilpost: use another log.prefix",
    errors.InvalidGroupIdError: "the brokers refuse the name of the group: correct log.prefix",
    errors.InvalidSessionTimeoutError: (
        "the brokers refuse log.session_timeout: set it between their group.min.session.timeout.ms and"
        " group.max.session.timeout.ms"
    ),
    errors.OffsetMetadataTooLargeError: _TOO_MUCH_METADATA,
    errors.InvalidCommitOffsetSizeError: _TOO_MUCH_METADATA,
    # Transactions.
    errors.ProducerFenced: _FENCED,
    errors.InvalidProducerEpoch: _FENCED,
    errors.InvalidProducerIdMapping: _FENCED,
    errors.TransactionCoordinatorFenced: "the transaction coordinator is moving to another broker",
    errors.ConcurrentTransactions: "the last transaction has not ended yet",
    errors.InvalidTxnState: "the transaction was ended by the broker",
    errors.UnknownProducerId: "the broker has forgotten this producer",
    errors.OutOfOrderSequenceNumber: "an earlier batch is missing at the broker",
    errors.DuplicateSequenceNumber: "the broker has this batch already",
    errors.InvalidTransactionTimeout: "transaction.max.timeout.ms of the brokers is less than 15 s: raise it",
    errors.ProducerClosed: "the producer is closed",
    # Authentication and authorization.
    **dict.fromkeys(_REFUSED, _NO_ACCESS),
    errors.AuthenticationFailedError: _LOGIN_REFUSED,
    errors.SaslAuthenticationFailed: _LOGIN_REFUSED,
    errors.AuthenticationMethodNotSupported: "the broker does not support this mechanism: see log.sasl_mechanism",
    errors.UnsupportedSaslMechanismError: "the broker does not support this mechanism: see log.sasl_mechanism",
    errors.IllegalSaslStateError: "the broker requires no authentication, or another mechanism: see log.sasl_mechanism",
    errors.SecurityDisabled: "the brokers have no authorizer",
    errors.QuotaViolationError: "this user's quota at the brokers is exceeded",
    # Errors of closed clients, and errors that should not occur.
    errors.ConsumerStoppedError: "the reader is closed",
    errors.IllegalStateError: "the reader is not a member of its group",
    errors.IllegalArgumentError: _INVALID_REQUEST,
    errors.IllegalOperation: _INVALID_REQUEST,
    errors.InvalidRequiredAcksError: _INVALID_REQUEST,
    errors.InvalidRequestError: _INVALID_REQUEST,
    errors.KafkaConfigurationError: _INVALID_REQUEST,
    errors.OperationNotAttempted: "the broker did not attempt the operation",
}
# Their text adds which connection or topic failed.
_WITH_TEXT = (errors.KafkaConnectionError, errors.UnknownTopicOrPartitionError)


def is_refusal(error: BaseException) -> bool:
    """Whether the brokers' authorizer refused the request."""
    return isinstance(error, tuple(_REFUSED))


def error_message(error: BaseException, operation: str = "", name: str = "") -> str:
    """Message for operators, never a class name. `operation` and `name` are the ACL operation and the topic of the
    request; an operation in the error's second argument has priority.
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
        return f"a broker returned error {error.errno} of Kafka's protocol"
    return _arguments_text(error) or "the Kafka client failed without a reason: please report this"


def _refusal(error: BaseException, operation: str, name: str) -> str:
    resource, usual = next(words for kind, words in _REFUSED.items() if isinstance(error, kind))
    if resource != "topic":
        operation = ""
    operation = str(error.args[1]) if len(error.args) > 1 else operation or usual
    on = f"{resource} {name or _resource_name(error)}".strip()
    return f'{_NO_ACCESS}: give this user the ACL {operation} on {on} (docs/kafka.md, "Access rights")'


def _resource_name(error: BaseException) -> str:
    """The resource that aiokafka names: alone, in a set, in a TopicPartition, or after "id for"."""
    match error.args[:1]:
        case (set() as names,):
            return ", ".join(sorted(names))
        case ((str() as topic, int()),):
            return topic
        case (str() as text,):
            return text.rpartition(" id for ")[2]
    return ""


def _arguments_text(error: BaseException) -> str:
    """The error's arguments as one line."""
    return " ".join(" ".join(map(str, error.args)).split())
