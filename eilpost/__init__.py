"""Command line and wiring: the only package that imports both roles and adapters."""

__version__ = "0.1.0"
