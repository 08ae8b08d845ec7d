"""The roof: the command line, and the only place where an adapter meets a role."""

__version__ = "0.1.0"
