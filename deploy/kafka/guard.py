"""The guard of a cluster: brokers never outlive the process that started them, whatever ends it.

The brokers are members of this process's group from their first instant. It waits for the end of its standard input,
which only its starter holds open; then it kills the group with SIGKILL, frozen brokers and itself included. This needs
no parent-death signal, which would follow the starting *thread* and exists on Linux only. Next: `deploy/kafka/node.py`.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # In a group of its own it gets no Ctrl-C; a hang-up of the terminal must not end it before its work.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        pass
    os.killpg(0, signal.SIGKILL)
