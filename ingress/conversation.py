"""What is said in one SMTP session, and in which order: the verbs (RFC 5321 section 4.1.4), without socket or clock
of its own.

In charge of the transaction's state and of the reply to each command. What a line means is in `esmtp`, what is
allowed in `policy`, when a message is ours in `accept`; bytes and time-outs are `session`'s. A new verb is a method
and an entry in `_VERBS`; a new extension a field in `esmtp` and a word in `door.ehlo`. Next: `ingress/accept.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from time import perf_counter

import structlog

from ingress import policy, replies
from ingress.content import begins_with_header, clean, header_of
from ingress.door import Door
from ingress.ending import End
from ingress.esmtp import MailFrom, parse_command, parse_hello, parse_mail, parse_rcpt, parse_vrfy
from ingress.intake import Malformed
from ingress.received import hops, protocol, received
from ingress.wire import Wire
from mail.address import Address
from mail.envelope import Body, Envelope, Recipient
from mail.log import Down, Full
from mail.message import Client, Message
from mail.queueid import new_queue_id
from mail.reply import Reply
from mail.telemetry.ingress import ACCEPT_DURATION, MESSAGE_SIZE, MESSAGES_RECEIVED, SMTP_REPLIES

log = structlog.get_logger()

_JUNK_MAX = 100  # commands that carry no mail, between two messages; more count as errors
_SHOWN_MAX = 20  # addresses in one line of the log
_OPENING = 1024  # octets looked at to see whether a message begins with a header
_DNS_SECONDS = 20.0  # last resort; the resolver gives up by itself before

_VERBS = ("DATA", "EHLO", "EXPN", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "VRFY")
# RFC 5321 section 4.2.4: known, not offered. 502, where an unknown word gets 500.
_KNOWN = frozenset(("AUTH", "BDAT", "BURL", "ETRN", "SAML", "SEND", "SOML", "STARTTLS", "TURN"))
# A browser was made to speak to us; nothing it says next is meant for a mail server (Postfix:
# smtpd_forbidden_commands).
_NOT_SMTP = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
_JUNK = frozenset(("EHLO", "HELO", "HELP", "NOOP", "RSET", "VRFY", "EXPN"))

_REPLIES = {
    (verb, code): SMTP_REPLIES.labels(verb, str(code))
    for verb in (*_VERBS, "CONTENT", "CONNECT", "OTHER")
    for code in (2, 3, 4, 5)
}
_RECEIVED_ACCEPTED = MESSAGES_RECEIVED.labels("accepted")
_RECEIVED_TEMPFAIL = MESSAGES_RECEIVED.labels("tempfail")
_RECEIVED_REJECTED = MESSAGES_RECEIVED.labels("rejected")

_wire = lru_cache(maxsize=512)(Reply.wire)


@dataclass(slots=True)
class Conversation:
    """The state of one session. Replies collect in `out`; `end` says why it is over, once it is."""

    door: Door
    wire: Wire
    ip: str
    port: int
    terms: policy.Terms
    out: list[bytes] = field(default_factory=list)
    end: End | None = None
    errors: int = 0
    helo: str | None = None
    verb: str = "CONNECT"
    _extended: bool = False
    _junk: int = 0
    _mail: MailFrom | None = None
    _recipients: dict[Address, Recipient] = field(default_factory=dict)
    _rcpt_refused: bool = False

    def say(self, reply: Reply) -> None:
        """Reply to the command under way. It leaves with those of its batch (RFC 2920 section 3.2)."""
        self.out.append(_wire(reply))
        self._count(reply.code)

    def _count(self, code: int) -> None:
        _REPLIES[self.verb, code // 100].inc()
        if code >= 500:
            self.errors += 1

    def refuse(self, reply: Reply, **facts: object) -> None:
        """Say so, and one line for whoever is asked about it."""
        if self.helo is not None:
            facts["helo"] = self.helo
        log.info("refused", client=self.ip, verb=self.verb, reply=str(reply), **facts)
        self.say(reply)

    def finish(self, reply: Reply, end: End) -> None:
        """The last word."""
        self.say(reply)
        self.end = end

    def greet(self, *, entered: bool, draining: bool) -> bool:
        """Before any command. False: the client was turned away."""
        if draining:
            refusal = replies.SHUTTING_DOWN
        elif not entered:
            refusal = replies.TOO_MANY_CONNECTIONS
        elif isinstance(self.door.log.condition(), Down):
            refusal = replies.NO_SERVICE
        else:
            self.out.append(self.door.greeting)
            self._count(220)
            return True
        self.refuse(refusal)
        self.end = End.REFUSED
        return False

    def fail(self) -> None:
        """After a bug of ours: a generic, temporary answer, and a clean slate."""
        self.reset()
        if self.wire.intake.in_content:  # nobody knows any more what is content and what a command
            self.finish(replies.OUR_FAULT_CLOSING, End.ERROR)
        else:
            self.say(replies.OUR_FAULT)

    def reset(self) -> None:
        self._mail = None
        self._recipients = {}
        self._rcpt_refused = False

    async def obey(self, line: bytes | Malformed) -> None:
        """One command, one reply; two at DATA."""
        self.verb = "OTHER"
        if isinstance(line, Malformed):
            self.say(replies.BARE_LF if line is Malformed.BARE_LF else replies.LINE_TOO_LONG)
        else:
            command = parse_command(line)
            if isinstance(command, Reply):
                self.say(command)
            else:
                await self._dispatch(command.verb, command.argument)
        if self.errors >= self.door.max_errors and not self.end:
            self.finish(replies.TOO_MANY_ERRORS, End.ERRORS)

    async def _dispatch(self, verb: str, argument: str) -> None:
        method = _METHODS.get(verb)
        if method is None:
            if verb in _NOT_SMTP and self.helo is None:
                self.finish(replies.NOT_SMTP, End.ERRORS)
            else:
                self.say(replies.NOT_IMPLEMENTED if verb in _KNOWN else replies.UNKNOWN_COMMAND)
            return
        self.verb = verb
        if verb in _JUNK:
            self._junk += 1
            if self._junk > _JUNK_MAX:
                self.errors += 1
        await method(self, argument)

    async def _do_ehlo(self, arg: str) -> None:
        self._greet(arg, extended=True)

    async def _do_helo(self, arg: str) -> None:
        self._greet(arg, extended=False)

    def _greet(self, arg: str, *, extended: bool) -> None:
        name = parse_hello(arg)
        if isinstance(name, Reply):
            self.say(name)
            return
        self.helo, self._extended = name, extended
        self.reset()  # RFC 5321 section 4.1.4
        self.out.append(self.door.ehlo if extended else self.door.helo)
        self._count(250)

    async def _do_mail(self, arg: str) -> None:
        if self.helo is None:
            self.say(replies.HELLO_FIRST)
            return
        if self._mail is not None:
            self.say(replies.NESTED_MAIL)
            return
        mail = parse_mail(arg, extended=self._extended)
        if isinstance(mail, Reply):
            self.refuse(mail, argument=arg)
            return
        refusal = self._no_room_for(mail)
        if refusal is not None and refusal.is_temporary:
            _RECEIVED_TEMPFAIL.inc()
        refusal = refusal or await self._check_sender(mail.reverse_path)
        if refusal is not None:
            self.refuse(refusal, sender=_text(mail.reverse_path))
            if refusal.code == 421:
                self.end = End.REFUSED
            return
        self._mail = mail
        self.say(replies.SENDER_OK)

    def _no_room_for(self, mail: MailFrom) -> Reply | None:
        if mail.size is not None and mail.size > self.door.max_size:
            return replies.TOO_LARGE  # RFC 1870 section 6.1
        condition = self.door.log.condition()
        if isinstance(condition, Down):
            return replies.NO_SERVICE
        if isinstance(condition, Full) or not self.wire.has_room(mail.size or 1):
            return replies.NO_ROOM
        return self.door.storeroom.refusal

    async def _check_sender(self, reverse_path: Address | None) -> Reply | None:
        verdict = policy.check_sender(reverse_path, self.door.directory.snapshot, self.terms)
        if isinstance(verdict, policy.AskMx):
            domain = verdict.domain
            resolver = self.door.resolver
            try:
                async with asyncio.timeout(_DNS_SECONDS):
                    judged = policy.judge_mx(await resolver.mx(domain), domain)
                    if isinstance(judged, policy.AskAddresses):
                        judged = policy.judge_addresses(await resolver.addresses(domain), domain)
            except TimeoutError:
                return policy.dns_unknown(domain)
            return judged if isinstance(judged, Reply) else None
        return verdict if isinstance(verdict, Reply) else None

    async def _do_rcpt(self, arg: str) -> None:
        mail = self._mail
        if mail is None:
            self.say(replies.HELLO_FIRST if self.helo is None else replies.MAIL_FIRST)
            return
        rcpt = parse_rcpt(arg, extended=self._extended, utf8=mail.smtputf8)
        if isinstance(rcpt, Reply):
            self._rcpt_refused = True
            self.refuse(rcpt, argument=arg)
            return
        verdict = policy.check_recipient(
            rcpt.forward_path, self.door.directory.snapshot, self.terms, self.door.hostname, self.door.alias_depth
        )
        if isinstance(verdict, Recipient) and verdict.address not in self._recipients:
            if len(self._recipients) >= self.door.max_recipients:
                self._rcpt_refused = True
                self.say(replies.TOO_MANY_RECIPIENTS)
                return
            first = next(iter(self._recipients), None)
            if not policy.may_join(mail.reverse_path, first, verdict.address, self.door.directory.snapshot):
                self._rcpt_refused = True
                self.say(replies.ANOTHER_TRANSACTION)
                return
            if first is None and (closed := await self._no_way_for(mail, verdict)):
                if not self._rcpt_refused:  # once for a message with several recipients
                    _RECEIVED_TEMPFAIL.inc()
                self._rcpt_refused = True
                self.say(closed)
                return
            self._recipients[verdict.address] = verdict  # named twice: sent once
        if isinstance(verdict, Reply):
            self._rcpt_refused = True
            self.refuse(verdict, sender=_text(mail.reverse_path), recipient=_text(rcpt.forward_path))
            return
        self.say(replies.RECIPIENT_OK)

    async def _no_way_for(self, mail: MailFrom, recipient: Recipient) -> Reply | None:
        """A dedicated tenant has topics of its own, which may be full or away while everybody else's are not."""
        tenant = policy.tenant_of(mail.reverse_path, [recipient], self.door.directory.snapshot)
        await self.door.log.prepare(tenant)
        match self.door.log.condition(tenant):
            case Full():
                return replies.NO_ROOM
            case Down():
                return replies.NOT_NOW
            case _:
                return None

    async def _do_data(self, arg: str) -> None:
        mail = self._mail
        if arg:
            self.say(replies.NO_ARGUMENTS)
        elif mail is None:
            self.say(replies.HELLO_FIRST if self.helo is None else replies.MAIL_FIRST)
        elif not self._recipients:
            self.say(replies.NO_VALID_RECIPIENTS if self._rcpt_refused else replies.RCPT_FIRST)
        elif not self.wire.has_room(mail.size or 1):
            _RECEIVED_TEMPFAIL.inc()
            self.refuse(replies.NO_ROOM, sender=_text(mail.reverse_path))
        else:
            self.say(replies.GO_AHEAD)
            if await self.wire.read_content():
                self.verb = "CONTENT"
                await self._take_message(mail)
            self.reset()

    async def _take_message(self, mail: MailFrom) -> None:
        started = perf_counter()
        intake = self.wire.intake
        if intake.content_is_dropped:
            intake.skip_content()
            reply = replies.NO_ROOM if self.wire.content_found_no_room else replies.TOO_LARGE
            self.refuse(reply, sender=_text(mail.reverse_path))
        else:
            reply = await self._decide_and_accept(mail)
        if reply.code == 250:
            self._junk = self.errors = 0  # who brings mail may be wrong now and then (as Postfix counts)
            _RECEIVED_ACCEPTED.inc()
            ACCEPT_DURATION.observe(perf_counter() - started)
        elif reply.is_temporary:
            _RECEIVED_TEMPFAIL.inc()
        else:
            _RECEIVED_REJECTED.inc()

    async def _decide_and_accept(self, mail: MailFrom) -> Reply:
        door = self.door
        now = datetime.now(UTC)
        queue_id = new_queue_id()
        client = Client(
            ip=self.ip,
            port=self.port,
            helo=self.helo or "",
            protocol=protocol(extended=self._extended, smtputf8=mail.smtputf8),
        )
        recipients = tuple(self._recipients.values())
        trace = received(
            client=client,
            hostname=door.hostname,
            queue_id=queue_id,
            recipient=recipients[0].original if len(recipients) == 1 else None,
            now=now,
            smtputf8=mail.smtputf8,
        )
        if not begins_with_header(self.wire.intake.opening(_OPENING)):
            trace += b"\r\n"  # what follows is all body
        content = clean(self.wire.intake.take_content(trace))
        size = len(content) - len(trace)
        if size > door.max_size:
            self.refuse(replies.TOO_LARGE, sender=_text(mail.reverse_path), size=size)
            return replies.TOO_LARGE
        if hops(header_of(content)) - 1 > door.max_hops:
            self.refuse(replies.TOO_MANY_HOPS, sender=_text(mail.reverse_path))
            return replies.TOO_MANY_HOPS
        # BODY says what the client meant to send; the next hop must be told what it did send (RFC 6152 section 3).
        body = mail.body if mail.body is not Body.SEVEN_BIT or content.isascii() else Body.EIGHT_BIT
        message = Message(
            queue_id=queue_id,
            tenant=policy.tenant_of(mail.reverse_path, recipients, door.directory.snapshot),
            received=now,
            envelope=Envelope(mail.reverse_path, recipients, body, mail.smtputf8),
            size_bytes=len(content),
            client=client,
        )
        reply = await door.acceptance.accept(message, content)
        if reply.code != 250:
            self.refuse(reply, queue_id=queue_id, sender=_text(mail.reverse_path))
            return reply
        MESSAGE_SIZE.observe(size)
        log.info(
            "accepted",
            queue_id=queue_id,
            sender=_text(mail.reverse_path),
            to=[str(recipient.original) for recipient in recipients[:_SHOWN_MAX]],
            recipients=len(recipients),
            size=message.size_bytes,  # with our Received line, as trace and the queue say it
            client=self.ip,
            helo=client.helo,
            protocol=client.protocol,
        )
        self.out.append(reply.wire())
        self._count(250)
        return reply

    async def _do_rset(self, arg: str) -> None:
        if arg:
            self.say(replies.NO_ARGUMENTS)
            return
        self.reset()
        self.say(replies.OK)

    async def _do_noop(self, _arg: str) -> None:
        self.say(replies.OK)

    async def _do_help(self, _arg: str) -> None:
        self.say(replies.HELP)

    async def _do_expn(self, _arg: str) -> None:
        self.say(replies.NOT_IMPLEMENTED)

    async def _do_vrfy(self, arg: str) -> None:
        address = parse_vrfy(arg)
        if isinstance(address, Reply):
            self.say(address)
        elif self.door.truthful_vrfy:
            self.say(policy.verify(address, self.door.directory.snapshot))
        else:
            self.say(replies.CANNOT_VRFY)

    async def _do_quit(self, arg: str) -> None:
        if arg:
            self.say(replies.NO_ARGUMENTS)
            return
        self.finish(replies.BYE, End.QUIT)


_METHODS = {verb: getattr(Conversation, f"_do_{verb.lower()}") for verb in _VERBS}


def _text(path: Address | None) -> str:
    return "<>" if path is None else str(path)
