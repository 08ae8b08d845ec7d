"""Time-outs of an outbound connection (RFC 5321 section 4.5.3.2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time-outs for the server's replies, by subsection of RFC 5321 section 4.5.3.2."""

    greeting_seconds: float = 300.0  # .1
    command_seconds: float = 300.0  # .2 MAIL, .3 RCPT; EHLO and RSET alike
    data_seconds: float = 120.0  # .4
    block_seconds: float = 180.0  # .5, for each slice of the content
    dot_seconds: float = 600.0  # .6
    quit_seconds: float = 2.0
    # A whole transaction until the content is sent, and again from the final dot to the last reply, however each single
    # reply is; for content, one second more for each 16 KiB. More than one MAIL, RCPT and DATA may take.
    transaction_seconds: float = 900.0
