"""`eilpost load`: a load generator and an accounting sink for trying a server or a cluster.

The source sends numbered messages and records the server's replies; the sink stands for the destination servers and
records what arrived; the ledger compares the two. Everything runs in one process on one event loop.
"""
