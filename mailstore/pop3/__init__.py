"""POP3 (RFC 1939): how owners fetch their mail."""
