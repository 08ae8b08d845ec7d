"""Carries a message once and reports what happened. Next: `delivery/worker.py`."""
