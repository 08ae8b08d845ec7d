"""Takes messages in by SMTP. Next: `ingress/session.py`."""
