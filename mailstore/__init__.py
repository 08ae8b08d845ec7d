"""Keeps mail until its owner fetches it. Next: `mailstore/mailboxes.py`."""
