"""Keeps mail until its owner fetches it."""
