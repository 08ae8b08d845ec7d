"""Takes messages in by SMTP."""
