"""Carries a message once and reports what happened."""
