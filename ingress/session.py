"""SMTP session of the server: transaction state, and the reply to each command (RFC 5321 section 4.1.4).

`esmtp` parses, `access_policy` decides what is allowed, `received_message` builds messages, `accept` makes them
durable, `connection` does the I/O and the time-outs. What a new verb or parameter needs is in `docs/development.md`.
Next: `ingress/accept.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from ingress import access_policy, esmtp, replies
from ingress.esmtp import MailFrom, parse_command, parse_hello, parse_mail, parse_rcpt, parse_vrfy
from ingress.framer import Malformed
from ingress.listener import Listener
from ingress.received import with_protocol
from ingress.received_message import take_message
from ingress.session_end import SessionEnd
from ingress.tenant import may_share_transaction, tenant_of
from mail.address import Address
from mail.envelope import Recipient
from mail.log import Down, Full
from mail.message import Client
from mail.queue_id import new_queue_id
from mail.reply import Reply
from mail.telemetry.ingress import ACCEPT_DURATION, MESSAGE_SIZE, MESSAGES_RECEIVED, SMTP_REPLIES

if TYPE_CHECKING:
    from ingress.connection import Connection

logger = structlog.get_logger()

_NON_MAIL_COMMANDS_MAX = 100  # between two messages; further ones count as errors
_LOGGED_RECIPIENTS_MAX = 20  # addresses in one log line
_DNS_TIMEOUT_SECONDS = 20.0  # longer than the resolver's own time-out

_REPLIES = {
    (verb, code): SMTP_REPLIES.labels(verb, str(code))
    for verb in (*esmtp.VERBS, "CONTENT", "CONNECT", "OTHER")
    for code in (2, 3, 4, 5)
}
_RECEIVED_ACCEPTED = MESSAGES_RECEIVED.labels("accepted")
_RECEIVED_TEMPFAIL = MESSAGES_RECEIVED.labels("tempfail")
_RECEIVED_REJECTED = MESSAGES_RECEIVED.labels("rejected")

_encoded = lru_cache(maxsize=512)(Reply.to_bytes)


@dataclass(slots=True)
class Session:
    """One SMTP session. Replies are collected in `output`; `end` is set when the session is over."""

    listener: Listener
    connection: Connection
    ip: str
    port: int
    client_policy: access_policy.ClientPolicy
    output: list[bytes] = field(default_factory=list)
    end: SessionEnd | None = None
    errors: int = 0
    helo: str | None = None
    verb: str = "CONNECT"
    _extended: bool = False  # the client sent EHLO
    _non_mail_commands: int = 0
    _mail: MailFrom | None = None
    _recipients: dict[Address, Recipient] = field(default_factory=dict)
    _rcpt_refused: bool = False

    def reply(self, reply: Reply) -> None:
        """Queue a reply; replies to pipelined commands are sent together (RFC 2920 section 3.2)."""
        self.output.append(_encoded(reply))
        self._count_reply(reply.code)

    def _count_reply(self, code: int) -> None:
        _REPLIES[self.verb, code // 100].inc()
        if code >= 500:
            self.errors += 1

    def refuse(self, reply: Reply, **fields: object) -> None:
        """Queue a refusal and log it."""
        if self.helo is not None:
            fields["helo"] = self.helo
        logger.info("command refused", client=self.ip, verb=self.verb, reply=str(reply), **fields)
        self.reply(reply)

    def close(self, reply: Reply, end: SessionEnd) -> None:
        """Queue the last reply and end the session."""
        self.reply(reply)
        self.end = end

    def greet(self, *, admitted: bool, draining: bool) -> bool:
        """Queue the greeting. Return False when the connection was refused."""
        if draining:
            refusal = replies.SHUTTING_DOWN
        elif not admitted:
            refusal = replies.TOO_MANY_CONNECTIONS
        elif isinstance(self.listener.log.condition(), Down):
            refusal = replies.SERVICE_NOT_AVAILABLE
        else:
            self.output.append(self.listener.greeting_reply)
            self._count_reply(220)
            return True
        self.refuse(refusal)
        self.end = SessionEnd.REJECTED
        return False

    def reply_local_error(self) -> None:
        """After an internal error: queue a generic temporary reply and reset the transaction."""
        self.reset()
        if self.connection.framer.in_data:  # the boundary between data and commands is lost
            self.close(replies.LOCAL_ERROR_CLOSING, SessionEnd.INTERNAL_ERROR)
        else:
            self.reply(replies.LOCAL_ERROR)

    def reset(self) -> None:
        self._mail = None
        self._recipients = {}
        self._rcpt_refused = False

    async def handle(self, line: bytes | Malformed) -> None:
        """Handle one command line."""
        self.verb = "OTHER"
        if isinstance(line, Malformed):
            self.reply(replies.BARE_LF if line is Malformed.BARE_LF else replies.LINE_TOO_LONG)
        else:
            command = parse_command(line)
            if isinstance(command, Reply):
                self.reply(command)
            else:
                await self._dispatch(command.verb, command.argument)
        if self.errors >= self.listener.max_errors and not self.end:
            self.close(replies.TOO_MANY_ERRORS, SessionEnd.TOO_MANY_ERRORS)

    async def _dispatch(self, verb: str, argument: str) -> None:
        handler = _HANDLERS.get(verb)
        if handler is None:
            if verb in esmtp.FORBIDDEN_COMMANDS and self.helo is None:
                self.close(replies.NOT_SMTP, SessionEnd.NOT_SMTP)
            else:
                self.reply(replies.NOT_IMPLEMENTED if verb in esmtp.NOT_OFFERED else replies.UNKNOWN_COMMAND)
            return
        self.verb = verb
        if verb in esmtp.NON_MAIL_COMMANDS:
            self._non_mail_commands += 1
            if self._non_mail_commands > _NON_MAIL_COMMANDS_MAX:
                self.errors += 1
        await handler(self, argument)

    async def _do_ehlo(self, arg: str) -> None:
        self._hello(arg, extended=True)

    async def _do_helo(self, arg: str) -> None:
        self._hello(arg, extended=False)

    def _hello(self, arg: str, *, extended: bool) -> None:
        name = parse_hello(arg)
        if isinstance(name, Reply):
            self.reply(name)
            return
        self.helo, self._extended = name, extended
        self.reset()  # RFC 5321 section 4.1.4
        self.output.append(self.listener.ehlo_reply if extended else self.listener.helo_reply)
        self._count_reply(250)

    async def _do_mail(self, arg: str) -> None:
        if self.helo is None:
            self.reply(replies.HELLO_FIRST)
            return
        if self._mail is not None:
            self.reply(replies.NESTED_MAIL)
            return
        mail = parse_mail(arg, extended=self._extended)
        if isinstance(mail, Reply):
            self.refuse(mail, argument=arg)
            return
        refusal = self._check_capacity(mail)
        if refusal is not None and refusal.is_temporary:
            _RECEIVED_TEMPFAIL.inc()
        refusal = refusal or await self._check_sender(mail.reverse_path)
        if refusal is not None:
            self.refuse(refusal, sender=_path_text(mail.reverse_path))
            if refusal.code == 421:
                self.end = SessionEnd.REJECTED
            return
        self._mail = mail
        self.reply(replies.SENDER_OK)

    def _check_capacity(self, mail: MailFrom) -> Reply | None:
        if mail.size is not None and mail.size > self.listener.max_size:
            return replies.TOO_LARGE  # RFC 1870 section 6.1
        condition = self.listener.log.condition()
        if isinstance(condition, Down):
            return replies.SERVICE_NOT_AVAILABLE
        if isinstance(condition, Full) or not self.connection.has_capacity(mail.size or 1):
            return replies.INSUFFICIENT_STORAGE
        return self.listener.spool_monitor.refusal

    async def _check_sender(self, reverse_path: Address | None) -> Reply | None:
        verdict: access_policy.Ok | access_policy.QueryMx | access_policy.QueryAddresses | Reply
        verdict = access_policy.check_sender(reverse_path, self.listener.directory.snapshot, self.client_policy)
        if isinstance(verdict, access_policy.QueryMx):
            domain, resolver = verdict.domain, self.listener.resolver
            try:
                async with asyncio.timeout(_DNS_TIMEOUT_SECONDS):
                    verdict = access_policy.evaluate_mx(await resolver.mx(domain), domain)
                    if isinstance(verdict, access_policy.QueryAddresses):
                        verdict = access_policy.evaluate_addresses(await resolver.addresses(domain), domain)
            except TimeoutError:
                return replies.SENDER_DOMAIN_LOOKUP_FAILED.about(domain)
        return verdict if isinstance(verdict, Reply) else None

    async def _do_rcpt(self, arg: str) -> None:
        mail = self._mail
        if mail is None:
            self.reply(replies.HELLO_FIRST if self.helo is None else replies.MAIL_FIRST)
            return
        rcpt = parse_rcpt(arg, extended=self._extended, utf8=mail.smtputf8)
        if isinstance(rcpt, Reply):
            self._rcpt_refused = True
            self.refuse(rcpt, argument=arg)
            return
        listener = self.listener
        verdict = access_policy.check_recipient(
            rcpt.forward_path, listener.directory.snapshot, self.client_policy, listener.hostname, listener.alias_depth
        )
        refusal: Reply | None
        if isinstance(verdict, Reply):
            refusal = verdict
        else:
            refusal = await self._check_transaction(mail, verdict)
            if refusal is None:
                self._recipients.setdefault(verdict.address, verdict)  # a duplicate recipient gets one copy
                self.reply(replies.RECIPIENT_OK)
                return
        self._rcpt_refused = True
        self.refuse(refusal, sender=_path_text(mail.reverse_path), recipient=_path_text(rcpt.forward_path))

    async def _check_transaction(self, mail: MailFrom, recipient: Recipient) -> Reply | None:
        """Check whether the transaction can have one more recipient."""
        if recipient.address in self._recipients:
            return None
        if len(self._recipients) >= self.listener.max_recipients:
            return replies.TOO_MANY_RECIPIENTS
        first = next(iter(self._recipients), None)
        snapshot = self.listener.directory.snapshot
        if not may_share_transaction(mail.reverse_path, first, recipient.address, snapshot):
            return replies.SEPARATE_TRANSACTION
        refusal = await self._check_tenant_log(mail, recipient) if first is None else None
        if refusal is not None and not self._rcpt_refused:  # count once per message
            _RECEIVED_TEMPFAIL.inc()
        return refusal

    async def _check_tenant_log(self, mail: MailFrom, recipient: Recipient) -> Reply | None:
        """Check the tenant's log: a dedicated tenant has its own topics, which may be full or unavailable alone."""
        tenant = tenant_of(mail.reverse_path, [recipient], self.listener.directory.snapshot)
        await self.listener.log.open_tenant(tenant)
        match self.listener.log.condition(tenant):
            case Full():
                return replies.INSUFFICIENT_STORAGE
            case Down():
                return replies.TENANT_NOT_AVAILABLE
            case _:
                return None

    async def _do_data(self, arg: str) -> None:
        mail = self._mail
        if arg:
            self.reply(replies.NO_ARGUMENTS)
        elif mail is None:
            self.reply(replies.HELLO_FIRST if self.helo is None else replies.MAIL_FIRST)
        elif not self._recipients:
            self.reply(replies.NO_VALID_RECIPIENTS if self._rcpt_refused else replies.RCPT_FIRST)
        elif not self.connection.has_capacity(mail.size or 1):
            _RECEIVED_TEMPFAIL.inc()
            self.refuse(replies.INSUFFICIENT_STORAGE, sender=_path_text(mail.reverse_path))
        else:
            self.reply(replies.START_MAIL_INPUT)
            if await self.connection.read_data():
                self.verb = "CONTENT"
                await self._receive_message(mail)
            self.reset()

    async def _receive_message(self, mail: MailFrom) -> None:
        started = perf_counter()
        framer = self.connection.framer
        if framer.data_is_discarded:
            framer.skip_data()
            reply = replies.INSUFFICIENT_STORAGE if self.connection.data_over_budget else replies.TOO_LARGE
            self.refuse(reply, sender=_path_text(mail.reverse_path))
        else:
            reply = await self._accept_message(mail)
        if reply.code == 250:
            self._non_mail_commands = self.errors = 0  # as Postfix: an accepted message clears the error count
            _RECEIVED_ACCEPTED.inc()
            ACCEPT_DURATION.observe(perf_counter() - started)
        elif reply.is_temporary:
            _RECEIVED_TEMPFAIL.inc()
        else:
            _RECEIVED_REJECTED.inc()

    async def _accept_message(self, mail: MailFrom) -> Reply:
        queue_id = new_queue_id()
        client = Client(
            ip=self.ip,
            port=self.port,
            helo=self.helo or "",
            protocol=with_protocol(extended=self._extended, smtputf8=mail.smtputf8),
        )
        recipients = tuple(self._recipients.values())
        received = take_message(
            self.connection.framer,
            self.listener,
            mail=mail,
            recipients=recipients,
            client=client,
            queue_id=queue_id,
            now=datetime.now(UTC),
        )
        message = received.message
        refusal = received.check(self.listener)
        if refusal is not None:
            self.refuse(refusal, sender=_path_text(mail.reverse_path), content_bytes=received.content_bytes)
            return refusal
        reply = await self.listener.acceptance.accept(message, received.content)
        if reply.code != 250:
            self.refuse(reply, queue_id=queue_id, sender=_path_text(mail.reverse_path))
            return reply
        MESSAGE_SIZE.observe(received.content_bytes)
        logger.info(
            "message accepted",
            queue_id=queue_id,
            sender=_path_text(mail.reverse_path),
            to=[str(recipient.original) for recipient in recipients[:_LOGGED_RECIPIENTS_MAX]],
            recipients=len(recipients),
            size_bytes=message.size_bytes,
            client=self.ip,
            helo=client.helo,
            protocol=client.protocol,
        )
        self.output.append(reply.to_bytes())
        self._count_reply(250)
        return reply

    async def _do_rset(self, arg: str) -> None:
        if arg:
            self.reply(replies.NO_ARGUMENTS)
            return
        self.reset()
        self.reply(replies.OK)

    async def _do_noop(self, _arg: str) -> None:
        self.reply(replies.OK)

    async def _do_help(self, _arg: str) -> None:
        self.reply(replies.HELP)

    async def _do_expn(self, _arg: str) -> None:
        self.reply(replies.NOT_IMPLEMENTED)

    async def _do_vrfy(self, arg: str) -> None:
        address = parse_vrfy(arg)
        if isinstance(address, Reply):
            self.reply(address)
        elif self.listener.vrfy_enabled:
            self.reply(access_policy.verify_address(address, self.listener.directory.snapshot))
        else:
            self.reply(replies.CANNOT_VRFY)

    async def _do_quit(self, arg: str) -> None:
        if arg:
            self.reply(replies.NO_ARGUMENTS)
            return
        self.close(replies.BYE, SessionEnd.QUIT)


_HANDLERS = {verb: getattr(Session, f"_do_{verb.lower()}") for verb in esmtp.VERBS}


def _path_text(path: Address | None) -> str:
    return "<>" if path is None else str(path)
