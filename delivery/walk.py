"""Walk of one attempt over the exchangers of its route, by preference (RFC 5321 section 5.1). No I/O.

After a temporary failure the open recipients go to the next exchanger in the same attempt, as in Postfix. A host whose
addresses all fail, or that had a session, is not tried again, so that one host cannot use up the attempt.
"""

from __future__ import annotations

from collections.abc import Callable

from delivery.transaction import TransactionResult
from mail.outcome import Deferred, Delivered, ExchangerReply, Failed
from mail.reply import Reply

SESSIONS_MAX = 5  # Postfix: smtp_mx_session_limit 2
# No further address is tried after this time, so that an attempt ends although each wait is within its own limit.
WALK_SECONDS = 600.0
REPLIES_MAX = 20
TEXT_MAX = 200  # characters of a reply's text in the record of an attempt


class Walk:
    """Progress of one attempt. `hosts_tried`, `addresses`: those that failed or had a session; `replies`: each
    exchanger asked and what it replied, for the record of the attempt.
    """

    def __init__(
        self, now_seconds: float, set_connecting: Callable[[bool], None] = lambda _: None, *, attempt: int = 1
    ) -> None:
        self.set_connecting = set_connecting  # see `delivery.courier.Progress`
        self.attempt = attempt
        self.hosts: tuple[tuple[int, str], ...] | None = None  # by preference; set by the first selection of targets
        self.hosts_tried: set[str] = set()
        self.addresses: set[str] = set()
        self.sessions = 0
        self.replies: list[ExchangerReply] = []
        self._asked: str | None = None  # whose session is the current one
        self.stalled: tuple[str, str] | None = None  # host and address that did not reply to pipelined commands
        self._is_repeated = False
        self.server_failures: dict[str, Reply] = {}  # by host; see `TransactionResult.failure`
        self._deadline = now_seconds + WALK_SECONDS

    @property
    def is_first_choice(self) -> bool:
        """No exchanger was tried yet: every connection of the peer is as good as a new one."""
        return not self.hosts_tried

    def better_hosts(self, host: str) -> tuple[str, ...]:
        """The hosts with a lower preference value than `host`."""
        hosts = self.hosts or ()
        own = min((preference for preference, name in hosts if name == host), default=0)
        return tuple(name for preference, name in hosts if preference < own)

    def remove_from(self, preference: int) -> None:
        """An exchanger with this preference is this server: only better ones are left."""
        self.hosts = tuple(host for host in self.hosts or () if host[0] < preference)

    def remove_own(self, host: str) -> None:
        """`host` is this server, as its greeting says."""
        self.remove_from(min((preference for preference, name in self.hosts or () if name == host), default=0))

    def may_continue(self, now_seconds: float) -> bool:
        """Whether a further exchanger may be asked."""
        return self.sessions < SESSIONS_MAX and now_seconds < self._deadline

    def on_no_target(self, remote: str, reply: Reply) -> None:
        """An address or host could not be reached, or refused the session."""
        self._record(remote, reply)

    def on_transaction(self, host: str, address: str, remote: str, result: TransactionResult) -> None:
        """An exchanger answered a transaction, or lost it."""
        self._asked = host
        if not self.replies and not result.open:
            return  # the usual case: `replies` matter if there are several exchangers
        for kind in (Deferred, Failed, Delivered):
            reply = next((outcome.reply for outcome in result.outcomes if isinstance(outcome, kind)), None)
            if reply is not None:
                self._record(remote, reply)
                break
        self.server_failures.pop(host, None)
        if result.failure is not None:
            self.server_failures[host] = result.failure
        self.addresses.add(address)

    def end_session(self) -> None:
        """The exchanger has deferred some recipients: the next one may be asked."""
        if self._asked is not None:
            self.hosts_tried.add(self._asked)
            self._asked = None
            self.sessions += 1

    @property
    def asked(self) -> tuple[ExchangerReply, ...]:
        """`replies`, if there are several exchangers or sessions; else the outcomes say it."""
        several = self._is_repeated or len({one.remote for one in self.replies}) > 1
        return tuple(self.replies) if several else ()

    def repeat_stalled(self) -> bool:
        """Whether the exchanger that did not reply to pipelined commands can be asked once more, with single ones."""
        if self.stalled is None or self._is_repeated:
            return False
        host, address = self.stalled
        self._is_repeated = True
        self.hosts_tried.discard(host)
        self.addresses.discard(address)
        return True

    def _record(self, remote: str, reply: Reply) -> None:
        text = reply.text.removeprefix(f"{remote}: ")[:TEXT_MAX]
        asked = ExchangerReply(remote, reply.with_text(text))
        if len(self.replies) < REPLIES_MAX and asked not in self.replies:
            self.replies.append(asked)
