"""One child supervisor per run: supervised processes end with the run, even after SIGKILL."""

from __future__ import annotations

import atexit
import functools

from eilpost.child_supervisor import ChildSupervisor


@functools.cache
def group() -> int:
    """For `Popen(process_group=...)`. Ctrl-C does not reach the group: a test ends the processes that it started."""
    supervisor = ChildSupervisor()
    atexit.register(supervisor.close)
    return supervisor.process_group
