"""SMTP session state machine (RFC 5321 section 4.1.4), sans I/O.

`receive` yields actions; the driver (`ingress/connection.py`) executes each before it takes the next, and sends the
result back into the generator. `esmtp` parses, `access_policy` decides what is allowed. What a new verb or parameter
needs is in `docs/development.md`. Next: `ingress/accept.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from ingress import access_policy, esmtp, replies
from ingress.access_policy import QueryMx
from ingress.esmtp import MailFrom, parse_command, parse_hello, parse_mail, parse_rcpt, parse_vrfy
from ingress.framer import Malformed
from ingress.policy import Policy
from ingress.received import with_protocol
from ingress.tenant import may_share_transaction, tenant_of
from mail.address import Address, path_text
from mail.directory import Snapshot
from mail.envelope import Recipient
from mail.reply import Reply

# Between two messages; further ones count as errors (Postfix: smtpd_junk_command_limit).
_NON_MAIL_COMMANDS_MAX = 100
_STRESS_NON_MAIL_COMMANDS_MAX = 2
_FIXED_REPLIES = {"NOOP": replies.OK, "HELP": replies.HELP, "EXPN": replies.NOT_IMPLEMENTED}


class SessionEnd(StrEnum):
    """Cause of the end of a session; the values are metric labels and log fields."""

    QUIT = "quit"  # RFC 5321 section 4.1.1.10
    DISCONNECTED = "disconnected"  # the client closed the connection
    TIMEOUT = "timeout"
    SLOW = "slow"  # message data arrived too slowly while the memory budget was used up
    REJECTED = "rejected"  # 421 at the greeting or at MAIL
    TOO_MANY_ERRORS = "too_many_errors"  # the client sent too many invalid commands
    UNAUTH_PIPELINING = "unauth_pipelining"  # the client sent commands ahead where RFC 2920 does not allow it
    NOT_SMTP = "not_smtp"  # the session began with an HTTP request line
    INTERNAL_ERROR = "internal_error"  # an internal exception while message data was read
    SHUTDOWN = "shutdown"  # the server drained, and no message was in progress
    ABORTED = "aborted"  # the drain time-out expired


class Refused(Struct, frozen=True):
    """Send `reply` and log it. `counted`: it counts as a refused message (once per message)."""

    reply: Reply
    fields: Mapping[str, object]
    counted: bool

    @property
    def code(self) -> int:
        return self.reply.code


class CheckCapacity(Struct, frozen=True):
    """Check the memory budget for a message, at MAIL also the log and the spool. Result: the refusal or None."""

    size_bytes: int
    at_mail: bool


class OpenTenant(Struct, frozen=True):
    """Open the log of a tenant; that of a dedicated one may be full or unavailable alone. Result: as above."""

    tenant: str


class ReadContent(Struct, frozen=True):
    """Read message data up to its end. Result: None, or the refusal when the data was discarded."""

    bytes_max: int


class ReadLine(Struct, frozen=True):
    """Read a line that is not a command, of at most `bytes_max` octets with its CRLF. Result: as for `receive`."""

    bytes_max: int


class StartTls(Struct, frozen=True):
    """Send the replies, then begin TLS with a new session. The session yields nothing after it."""


class Accept(Struct, frozen=True):
    """Make the message that was read durable. Result: the reply, and log fields when it is a refusal."""

    mail: MailFrom
    recipients: tuple[Recipient, ...]
    helo: str
    protocol: str


class Close(Struct, frozen=True):
    """Send the replies and close. The session yields nothing after it."""

    end: SessionEnd


# A Reply is sent, together with those to other pipelined commands (RFC 2920 section 3.2). The result of QueryMx is the
# refusal or None.
Action = Reply | Refused | CheckCapacity | QueryMx | OpenTenant | ReadContent | ReadLine | StartTls | Accept | Close
Actions = Generator[Action, Any, None]
_Steps = Generator[Action, Any, Reply | Refused]


# The states. Each has the replies to the commands that it does not allow.
_State = Mapping[str, Reply]
START: _State = dict.fromkeys(("MAIL", "RCPT", "DATA"), replies.HELLO_FIRST)  # no EHLO or HELO yet
READY: _State = dict.fromkeys(("RCPT", "DATA"), replies.MAIL_FIRST)
MAIL: _State = {"MAIL": replies.NESTED_MAIL, "DATA": replies.RCPT_FIRST}  # a transaction without RCPT
REFUSED: _State = {"MAIL": replies.NESTED_MAIL, "DATA": replies.NO_VALID_RECIPIENTS}  # every RCPT was refused
RCPT: _State = {"MAIL": replies.NESTED_MAIL}  # at least one recipient


class Session:
    """One session of a client with `client_policy`, on a listener with `policy`. `tls`: the connection is encrypted."""

    def __init__(self, policy: Policy, client_policy: access_policy.ClientPolicy, *, tls: bool = False) -> None:
        self._policy = policy
        self._tls = tls
        self._client_policy = client_policy
        self._snapshot: Snapshot  # of the current command
        self._state: _State = START
        self._end: SessionEnd | None = None
        self._extended = False  # the client sent EHLO
        self._is_ahead = self._under_stress = False  # of the current command
        self._non_mail_commands = 0
        self._mail: MailFrom  # of the current transaction
        self._recipients: dict[Address, Recipient] = {}
        self.helo: str | None = None
        self.errors = 0
        self.verb = "CONNECT"  # metric label of the replies

    def greet(self, refusal: Reply | None) -> Actions:
        """Greet the client, or refuse the connection."""
        if refusal is None:
            yield self._policy.greeting
        else:
            yield self._refuse(refusal)
            yield Close(SessionEnd.REJECTED)

    def receive(
        self, line: bytes | Malformed, snapshot: Snapshot, *, is_ahead: bool = False, under_stress: bool = False
    ) -> Actions:
        """Handle a command line; `snapshot` is the current directory. `is_ahead`: the client sent more after the line,
        before the reply. `under_stress`: the limits of clients outside relay networks are lower.
        """
        self._snapshot = snapshot
        self._is_ahead, self._under_stress = is_ahead, under_stress
        self.verb = "OTHER"
        if isinstance(line, Malformed):
            answer: Reply | Refused | _Steps = replies.BARE_LF if line is Malformed.BARE_LF else replies.LINE_TOO_LONG
        else:
            command = parse_command(line)
            answer = command if isinstance(command, Reply) else self._dispatch(*command)
        final = answer if isinstance(answer, Reply | Refused) else (yield from answer)
        yield final
        if final.code >= 500:
            self.errors += 1
        max_errors = self._policy.max_errors
        if self.errors >= (min(max_errors, self._policy.stress_max_errors) if under_stress else max_errors) and (
            not self._end
        ):
            yield replies.TOO_MANY_ERRORS
            self._end = SessionEnd.TOO_MANY_ERRORS
        if self._end:
            yield Close(self._end)

    def recover(self, *, in_data: bool) -> Actions:
        """After an internal error: send a generic temporary reply and reset the transaction."""
        self._reset()
        if in_data:  # the boundary between data and commands is lost
            yield replies.LOCAL_ERROR_CLOSING
            yield Close(SessionEnd.INTERNAL_ERROR)
        else:
            yield replies.LOCAL_ERROR

    def _dispatch(self, verb: str, argument: str) -> Reply | Refused | _Steps:
        if verb not in esmtp.VERBS:
            if verb in esmtp.FORBIDDEN_COMMANDS and self._state is START:
                self._end = SessionEnd.NOT_SMTP
                return replies.NOT_SMTP
            return replies.NOT_IMPLEMENTED if verb in esmtp.NOT_OFFERED else replies.UNKNOWN_COMMAND
        self.verb = verb
        if (
            self._is_ahead
            and not self._client_policy.may_relay
            and verb != "QUIT"
            and (verb in esmtp.LAST_IN_GROUP or not self._extended)
        ):
            self._end = SessionEnd.UNAUTH_PIPELINING  # as Postfix: smtpd_forbid_unauth_pipelining
            return self._refuse(replies.NOT_SYNCHRONIZED)
        if verb in esmtp.NON_MAIL_COMMANDS:
            self._non_mail_commands += 1
            limit = _STRESS_NON_MAIL_COMMANDS_MAX if self._under_stress else _NON_MAIL_COMMANDS_MAX
            if self._non_mail_commands > limit:
                self.errors += 1
        if argument and verb in esmtp.WITHOUT_ARGUMENT:
            return replies.NO_ARGUMENTS
        refusal = self._state.get(verb)
        if refusal is not None:
            return refusal
        match verb:
            case "MAIL":
                return self._mail_from(argument)
            case "RCPT":
                return self._rcpt_to(argument)
            case "DATA":
                return self._data()
            case "EHLO" | "HELO":
                return self._hello(argument, extended=verb == "EHLO")
            case "QUIT":
                self._end = SessionEnd.QUIT
                return replies.BYE
            case "RSET":
                self._reset()
                return replies.OK
            case "VRFY":
                return self._vrfy(argument)
            case _:
                return _FIXED_REPLIES[verb]

    def _refuse(self, reply: Reply, *, counted: bool = False, **fields: object) -> Refused:
        if self.helo is not None:
            fields["helo"] = self.helo
        if self._state is MAIL:  # only RCPT is refused in this state, and so was every RCPT before
            self._state = REFUSED
        return Refused(reply, fields, counted)

    def _reset(self) -> None:
        self._state = START if self.helo is None else READY
        self._recipients = {}

    # Commands

    def _hello(self, argument: str, *, extended: bool) -> Reply:
        name = parse_hello(argument)
        if isinstance(name, Reply):
            return name
        self.helo, self._extended = name, extended
        self._reset()  # RFC 5321 section 4.1.4
        return self._policy.ehlo_reply if extended else self._policy.helo_reply

    def _mail_from(self, argument: str) -> _Steps:
        mail = parse_mail(argument, extended=self._extended)
        if isinstance(mail, Reply):
            return self._refuse(mail, argument=argument)
        refusal: Reply | None
        counted = False
        if mail.size is not None and mail.size > self._policy.max_size:
            refusal = replies.TOO_LARGE  # RFC 1870 section 6.1
        else:
            refusal = yield CheckCapacity(mail.size or 1, at_mail=True)
            counted = refusal is not None
        if refusal is None:
            verdict = access_policy.check_sender(mail.reverse_path, self._snapshot, self._client_policy)
            refusal = (yield verdict) if isinstance(verdict, QueryMx) else verdict
        if refusal is not None:
            self._end = SessionEnd.REJECTED if refusal.code == 421 else None
            return self._refuse(refusal, counted=counted, sender=path_text(mail.reverse_path))
        self._mail = mail
        self._state = MAIL
        return replies.SENDER_OK

    def _rcpt_to(self, argument: str) -> _Steps:
        mail, policy = self._mail, self._policy
        rcpt = parse_rcpt(argument, extended=self._extended, utf8=mail.smtputf8)
        if isinstance(rcpt, Reply):
            return self._refuse(rcpt, argument=argument)
        recipient = access_policy.check_recipient(
            rcpt.forward_path, self._snapshot, self._client_policy, policy.hostname, policy.alias_depth
        )
        refusal: Reply | None = None
        counted = False
        if isinstance(recipient, Reply):
            refusal = recipient
        elif recipient.address in self._recipients:
            return replies.RECIPIENT_OK  # a duplicate recipient gets one copy
        elif not self._recipients:
            refusal = yield OpenTenant(tenant_of(mail.reverse_path, (recipient,), self._snapshot))
            counted = self._state is MAIL  # once per message
        elif len(self._recipients) >= policy.max_recipients:
            refusal = replies.TOO_MANY_RECIPIENTS
        elif not may_share_transaction(
            mail.reverse_path, next(iter(self._recipients)), recipient.address, self._snapshot
        ):
            refusal = replies.SEPARATE_TRANSACTION
        if refusal is None:
            assert isinstance(recipient, Recipient)
            self._recipients[recipient.address] = recipient
            self._state = RCPT
            return replies.RECIPIENT_OK
        sender, path = path_text(mail.reverse_path), path_text(rcpt.forward_path)
        return self._refuse(refusal, counted=counted, sender=sender, recipient=path)

    def _data(self) -> _Steps:
        mail = self._mail
        fields: Mapping[str, object] = {}
        reply: Reply | None = yield CheckCapacity(mail.size or 1, at_mail=False)
        if reply is None:
            yield replies.START_MAIL_INPUT
            reply = yield ReadContent(self._policy.max_size)
            self.verb = "CONTENT"
            if reply is None:
                protocol = with_protocol(extended=self._extended, smtputf8=mail.smtputf8, tls=self._tls)
                reply, fields = yield Accept(mail, tuple(self._recipients.values()), self.helo or "", protocol)
            self._reset()
        if reply.code != 250:
            fields = fields or {"sender": path_text(mail.reverse_path)}
            return self._refuse(reply, counted=True, **fields)
        self._non_mail_commands = self.errors = 0  # as Postfix: an accepted message clears the error count
        return reply

    def _vrfy(self, argument: str) -> Reply:
        address = parse_vrfy(argument)
        if isinstance(address, Reply):
            return address
        if not self._policy.vrfy_enabled:
            return replies.CANNOT_VRFY
        return access_policy.verify_address(address, self._snapshot)
