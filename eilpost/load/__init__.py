"""`eilpost load`: load generator and accounting sink to test a server or a cluster.

The source sends numbered messages and records the server's replies; the sink acts as the destination servers and
records the arrivals; the ledger compares both. Everything runs in one process on one event loop.
"""
