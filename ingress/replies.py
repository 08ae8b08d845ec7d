"""Fixed SMTP replies, each with the RFC section that defines it. Pure.

Internal faults get a generic 4xx reply; the detail is in the log only.
"""

from __future__ import annotations

from mail.reply import Reply

OK = Reply(250, "2.0.0", "Ok")
SENDER_OK = Reply(250, "2.1.0", "Sender ok")
RECIPIENT_OK = Reply(250, "2.1.5", "Recipient ok")
START_MAIL_INPUT = Reply(354, "", "End data with <CR><LF>.<CR><LF>")  # RFC 2034 section 4: no enhanced code on 3xx
BYE = Reply(221, "2.0.0", "Bye")
HELP = Reply(214, "2.0.0", "Commands: EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT; see RFC 5321")
CANNOT_VRFY = Reply(252, "2.5.0", "Cannot VRFY user, but will take a message and try")  # RFC 5321 section 3.5.3

# Syntax and order, RFC 5321 section 4.2.4 and 4.3.2; enhanced codes X.5.Z by RFC 3463 section 3.6.
UNKNOWN_COMMAND = Reply(500, "5.5.1", "Command not recognized")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "Command not implemented")
LINE_TOO_LONG = Reply(500, "5.5.2", "Line too long")  # RFC 5321 section 4.5.3.1.4
BARE_LF = Reply(500, "5.5.2", "Line does not end in CR LF (RFC 5321 section 2.3.8)")
BAD_CHARACTERS = Reply(500, "5.5.2", "Control or undecodable characters in command")
NO_ARGUMENTS = Reply(501, "5.5.4", "Command takes no parameters")
HELLO_FIRST = Reply(503, "5.5.1", "Send EHLO or HELO first")
NESTED_MAIL = Reply(503, "5.5.1", "Nested MAIL command")
MAIL_FIRST = Reply(503, "5.5.1", "Send MAIL first")
RCPT_FIRST = Reply(503, "5.5.1", "Send RCPT first")
NO_VALID_RECIPIENTS = Reply(554, "5.5.1", "No valid recipients")  # RFC 5321 section 3.3
HELLO_SYNTAX = Reply(501, "5.5.4", "Syntax: EHLO hostname")
MAIL_SYNTAX = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
RCPT_SYNTAX = Reply(501, "5.5.4", "Syntax: RCPT TO:<address>")
VRFY_SYNTAX = Reply(501, "5.5.4", "Syntax: VRFY address")
PARAMETER_SYNTAX = Reply(501, "5.5.4", "Malformed parameter")
PARAMETER_REPEATED = Reply(501, "5.5.4", "Duplicate parameter")
PARAMETER_UNKNOWN = Reply(555, "5.5.4", "Parameter not recognized or not implemented")  # RFC 5321 section 4.1.1.11
PARAMETER_NEEDS_EHLO = Reply(555, "5.5.4", "Parameters require EHLO")

# Addresses, RFC 3463 section 3.2; RFC 6531 section 3.5 for 5.6.7.
BAD_SENDER_SYNTAX = Reply(553, "5.1.7", "Sender address is malformed")
BAD_RECIPIENT_SYNTAX = Reply(553, "5.1.3", "Recipient address is malformed")
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "Non-ASCII address requires SMTPUTF8")

# RFC 3463 section 3.2 has no code for "this sender does not exist": X.1.1 is about a destination, X.1.8 about the
# sender's system. Postfix also uses X.1.0, other address status.
UNKNOWN_SENDER = Reply(550, "5.1.0", "sender does not exist here")
SENDER_DOMAIN_NOT_FOUND = Reply(550, "5.1.8", "sender domain does not exist or does not accept mail")
SENDER_DOMAIN_LOOKUP_FAILED = Reply(450, "4.1.8", "sender domain lookup failed, try again later")
SENDER_DOMAIN_NULL_MX = Reply(550, "5.7.27", "sender domain does not accept mail (null MX)")  # RFC 7505 section 4.2
NO_SUCH_USER = Reply(550, "5.1.1", "no such user here")
RELAYING_DENIED = Reply(550, "5.7.1", "relaying denied")  # RFC 5321 section 3.6.2, RFC 3463 section 3.8

# VRFY, RFC 5321 sections 3.5.1 and 3.5.3.
USER_EXISTS = Reply(250, "2.1.5", "Ok")
USER_AMBIGUOUS = Reply(553, "5.1.4", "User ambiguous")
NOT_A_USER = Reply(252, "2.5.0", "Not a user of this system")
VRFY_NO_SUCH_USER = Reply(550, "5.1.1", "No such user here")

# Limits. RFC 1870 section 6.1 (552), RFC 5321 section 4.5.3.1.10 (452), section 6.3 (loops).
TOO_LARGE = Reply(552, "5.3.4", "Message is too large")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")
# RFC 5321 section 4.5.3.1.10: after 452 the client sends the recipient in another transaction.
SEPARATE_TRANSACTION = Reply(452, "4.5.3", "Recipient requires a separate transaction, try again later")
TOO_MANY_HOPS = Reply(554, "5.4.6", "Too many hops, possible mail loop")

# Closing the connection, RFC 5321 section 3.8.
TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "Too many connections, try again later")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors")
NOT_SYNCHRONIZED = Reply(554, "5.5.0", "SMTP protocol synchronization")  # RFC 2920 section 3.1
NOT_SMTP = Reply(421, "4.7.0", "This is an SMTP server")
TIMED_OUT = Reply(421, "4.4.2", "Timed out")
TOO_SLOW = Reply(421, "4.3.1", "Server busy and message data too slow, try again later")
SHUTTING_DOWN = Reply(421, "4.3.2", "Shutting down, try again later")
SERVICE_NOT_AVAILABLE = Reply(421, "4.3.2", "Service not available, try again later")

# Temporary faults of this server.
TENANT_NOT_AVAILABLE = Reply(451, "4.3.2", "Service for this domain not available, try again later")
INSUFFICIENT_STORAGE = Reply(452, "4.3.1", "Insufficient system storage, try again later")
NOT_CONFIRMED = Reply(451, "4.3.0", "Message not confirmed, try again later")
LOCAL_ERROR = Reply(451, "4.3.0", "Local error, try again later")
LOCAL_ERROR_CLOSING = Reply(421, "4.3.0", "Local error, try again later")
