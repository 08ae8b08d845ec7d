"""Why a session is over: a closed set of words, as the metrics and the log call them.

Next: `ingress/conversation.py`.
"""

from __future__ import annotations

from enum import StrEnum


class End(StrEnum):
    QUIT = "quit"  # as RFC 5321 section 4.1.1.10 asks
    LOST = "lost"  # the client went away
    TIMEOUT = "timeout"
    SLOW = "slow"  # its content, while memory was short
    REFUSED = "refused"  # at the greeting, or at MAIL by 421
    ERRORS = "errors"  # too many of the client's
    ERROR = "error"  # one of ours, in the middle of content
    DRAINED = "drained"  # we go, and no message was under way
    CUT = "cut"  # we go, and could not wait
