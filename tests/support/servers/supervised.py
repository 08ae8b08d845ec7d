"""Processes of tests end with the run that started them, even one that is killed hard: one supervisor for a whole
run."""

from __future__ import annotations

import atexit
import functools

from eilpost.child_supervisor import ChildSupervisor


@functools.cache
def group() -> int:
    """For `Popen(process_group=...)`. Ctrl-C does not go there: a test ends what it started."""
    supervisor = ChildSupervisor()
    atexit.register(supervisor.close)
    return supervisor.process_group
