"""Handshake of an outbound connection: greeting, EHLO or LHLO, and HELO for a server without EHLO. No I/O.

STARTTLS and AUTH will be further commands between EHLO and the end. Source: RFC 5321 sections 3.1, 3.2 and 4.1.1.1,
RFC 2033, RFC 7504.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from delivery.capabilities import Capabilities
from delivery.peer import Credentials, TlsPolicy, refuse_clear_text
from delivery.reply_parser import ServerReply
from mail.reply import Reply
from mail.route import RelayProtocol


class HandshakeStep(Enum):
    """What the server replies to next."""

    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"


@dataclass(frozen=True, slots=True)
class HandshakeFailure:
    """Why the connection cannot be used. `reply`: 4xx, for deliveries; `server_reply`: that of the server, if it is the
    reason. `is_own`: the server has a name of ours. `is_by_policy`: because of TLS policy or credentials.
    `rejects_mail`: the greeting says that the server accepts no mail at all.
    """

    reply: Reply
    server_reply: Reply | None = None
    is_own: bool = False
    is_by_policy: bool = False
    rejects_mail: bool = False


class Handshake:
    """`capabilities` are those of the server when it has ended."""

    def __init__(
        self,
        hostname: str,
        remote: str,
        protocol: RelayProtocol,
        own_names: frozenset[str],
        tls: TlsPolicy,
        credentials: Credentials | None,
    ) -> None:
        self.step = HandshakeStep.GREETING
        self.capabilities = Capabilities()
        self._hostname = hostname.encode("ascii", "replace")
        self._remote = remote
        self._protocol = protocol
        self._own_names = own_names
        self._tls = tls
        self._credentials = credentials

    def receive(self, reply: ServerReply) -> bytes | HandshakeFailure | None:
        """The next command; None when the connection is ready for transactions."""
        if not reply.negative and self._is_own_name(reply):
            return self.failure("has the name of this server:", reply, is_own=True)
        match self.step:
            case HandshakeStep.GREETING:
                if reply.code == 220:
                    self.step = HandshakeStep.EHLO
                    return b"%s %s\r\n" % (self._ehlo_verb, self._hostname)
                # RFC 7504 section 3, RFC 5321 section 3.1.
                return self.failure("sent the greeting", reply, rejects_mail=reply.code in (521, 554))
            case HandshakeStep.EHLO:
                if reply.positive:
                    self.capabilities = Capabilities.parse(reply.lines)
                    return self._end()
                if reply.code >= 500 and self._protocol is RelayProtocol.SMTP:
                    # RFC 5321 section 3.2: fall back to HELO.
                    self.step = HandshakeStep.HELO
                    return b"HELO %s\r\n" % self._hostname
                return self.failure(f"replied to {self._ehlo_verb.decode()}:", reply)
            case HandshakeStep.HELO:
                return self._end() if reply.positive else self.failure("replied to HELO:", reply)

    def failure(
        self, how: str, reply: ServerReply, *, is_own: bool = False, rejects_mail: bool = False
    ) -> HandshakeFailure:
        """A failure because of `reply`. A 5xx is treated as 4xx here: it is often temporary and about the client's
        address (block lists), not about the message.
        """
        server_reply = reply.to_reply()
        rest = server_reply.status.partition(".")[2]
        temporary = Reply(450, f"4.{rest}", f"{self._remote} {how} {server_reply}")
        return HandshakeFailure(temporary, server_reply, is_own=is_own, rejects_mail=rejects_mail)

    def _end(self) -> HandshakeFailure | None:
        """The connection is ready, unless it needs more than this session can do."""
        refusal = refuse_clear_text(self._tls, self._credentials)
        return None if refusal is None else HandshakeFailure(refusal.about(self._remote), is_by_policy=True)

    def _is_own_name(self, reply: ServerReply) -> bool:
        """RFC 5321 sections 4.2 and 4.1.1.1: the reply begins with the server's host name."""
        name = reply.lines[0].strip().partition(b" ")[0]
        return name.decode("ascii", "replace").rstrip(".").lower() in self._own_names

    @property
    def _ehlo_verb(self) -> bytes:
        return b"EHLO" if self._protocol is RelayProtocol.SMTP else b"LHLO"  # RFC 2033 section 4.1
