"""SMTP server: accepts messages from clients and appends them to the log."""
